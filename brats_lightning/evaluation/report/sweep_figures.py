"""Figures of a multirun's page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brats_lightning.evaluation.report.drawing import Chart, Look, name_rows

_WIDTH = 9.2  # inches
_OTHER = 5  # the colour of what did not end
_SPREAD = 10  # positive values with a larger ratio are drawn on a logarithmic axis
_APART = 0.06  # of the height of an axis, between two of its labels
_LONGEST = 16  # characters of a value on an axis


@dataclass(frozen=True)
class Job:
    """A job of a multirun.

    Args:
        name: of its folder.
        settings: key → value as typed, those in which the jobs differ.
        value: of the objective; NaN without one.
        outcome: why it did not end: an error, a loss that diverged, an early end; empty if it did.
        failed: whether it ended by an error.
        scores: its final scores, by name; None for NaN.
    """

    name: str
    settings: Mapping[str, str]
    value: float
    outcome: str
    failed: bool
    scores: Mapping[str, float | int | None]


def history_chart(jobs: Sequence[Job], objective: str, mode: str) -> Chart:
    """The value of each job, and the best so far."""
    table: list[list[Any]] = [["job", objective, "outcome"], *([job.name, job.value, job.outcome] for job in jobs)]
    values = np.array([job.value for job in jobs])
    ended = np.array([not job.outcome for job in jobs])
    best = (np.fmax if mode == "max" else np.fmin).accumulate(np.where(ended, values, np.nan))

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        x = np.arange(len(jobs))
        axes.step(x, best, where="post", color=look.colour(0), lw=1.6, label="best so far")
        axes.plot(x[ended], values[ended], "o", color=look.colour(1), ms=5, alpha=0.8, label="job")
        early = ~ended & ~np.isnan(values)
        if early.any():
            axes.plot(x[early], values[early], "o", mfc="none", color=look.colour(_OTHER), ms=5, label="pruned")
        if (lost := np.isnan(values)).any():
            bottom = axes.get_ylim()[0]
            axes.plot(x[lost], [bottom] * lost.sum(), "x", color=look.colour(_OTHER), label="no score", clip_on=False)
            axes.set_ylim(bottom=bottom)
        axes.set(xlabel="number of the job", ylabel=objective)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid()
        figure.legend(loc="outside upper right", ncols=4)

    return Chart("Score of each job, and the best so far", (_WIDTH, 3.2), draw, table)


def importance_chart(importances: Mapping[str, float]) -> Chart:
    """How much each setting mattered."""
    names = list(importances)[:12]

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        bars = axes.barh(range(len(names)), [importances[name] for name in names], 0.6, color=look.colour(1))
        axes.bar_label(bars, fmt="%.2f", padding=4)
        name_rows(axes, names)
        axes.set(xlim=(0, 1.08), xlabel="importance")

    table: list[list[Any]] = [["setting", "importance"], *([name, importances[name]] for name in names)]
    return Chart("Importance of the settings", (_WIDTH, 0.8 + 0.32 * len(names)), draw, table)


def parallel_chart(ranked: Sequence[Job], varied: Sequence[str], objective: str) -> Chart:
    """Each job as a line through its settings to its score, the better the stronger.

    Args:
        ranked: the jobs, best first.
        varied: the settings, the most important first; the first eight are drawn.
        objective: the score.
    """
    shown = list(varied)[:8]
    table: list[list[Any]] = [["job", *shown, objective]]
    table += [[job.name, *(job.settings.get(name, "") for name in shown), job.value] for job in ranked]
    heights = [_heights([job.settings.get(name, "") for job in ranked]) for name in shown]
    heights.append(_heights([job.value for job in ranked]))
    lines = np.array([places for places, _ in heights]).T

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        for rank, (job, line) in reversed(list(enumerate(zip(ranked, lines, strict=True)))):
            share = 1 - rank / max(1, len(ranked) - 1)
            style: dict[str, Any] = {"color": look.colour(1), "alpha": 0.2 + 0.6 * share, "lw": 1.3}
            if job.outcome:
                style |= {"color": look.colour(_OTHER), "alpha": 0.5, "ls": "--"}
            elif rank == 0:
                style |= {"color": look.colour(0), "alpha": 1.0, "lw": 2.6}
            axes.plot(line, **style)
        for x, (name, (_, ticks)) in enumerate(zip([*shown, objective], heights, strict=True)):
            _draw_axis(axes, look, x, ticks)
            axes.text(x, 1.07, name, ha="center", va="bottom")
        axes.set(xlim=(-0.35, len(shown) + 0.35), ylim=(-0.03, 1.16))
        axes.set_axis_off()

    return Chart("Settings and score of each job", (_WIDTH, 4.2), draw, table)


def _draw_axis(axes: Axes, look: Look, x: int, ticks: Mapping[str, float]) -> None:
    axes.plot([x, x], [0, 1], color=look.ink, lw=0.8, zorder=3)
    for i, (label, height) in enumerate(ticks.items()):
        text = label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"
        axes.plot(x, height, "_", color=look.ink, ms=6, zorder=3)
        place: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (x, height), fontsize=8, zorder=4, gid=f"label-{x}-{i}", **place)  # the page sets it off


def _heights(values: Sequence[Any]) -> tuple[list[float], dict[str, float]]:
    """Places of values on an axis from 0 to 1, NaN for those that have none, and the ticks of the axis.

    Numbers lie on a linear or logarithmic scale, everything else in alphabetical order at equal distances.
    """
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        names = sorted(set(map(str, values)), reverse=True)
        places = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
        return [places[str(value)] for value in values], {name or "not set": place for name, place in places.items()}
    finite = numbers[np.isfinite(numbers)]
    if not len(finite) or np.ptp(finite) == 0:
        return [0.5 if np.isfinite(n) else math.nan for n in numbers], {f"{n:.4g}": 0.5 for n in finite[:1]}
    low, high = float(finite.min()), float(finite.max())
    scale = np.log if low > 0 and high / low > _SPREAD else np.asarray

    def place(number: float) -> float:
        return float((scale(number) - scale(low)) / (scale(high) - scale(low)))

    marks = np.unique(finite)  # the values themselves, unless their labels would overlap
    if np.diff([place(mark) for mark in marks]).min() < _APART:
        marks = np.linspace(low, high, 5) if scale is np.asarray else np.geomspace(low, high, 5)
    ticks = {f"{mark:.3g}": place(mark) for mark in marks}
    return [place(number) if np.isfinite(number) else math.nan for number in numbers], ticks
