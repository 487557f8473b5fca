"""The reporting half of the benchmark: stored results, one table, one figure."""

import io
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from tests.benchmarks.measure import Goal, Result

PEER, LIMIT, MET, MISSED = "#2f6db3", "0.55", "#2a9d5c", "#d1495b"
HEADING: dict[str, Any] = {"fontsize": 8, "fontweight": "bold", "backgroundcolor": "white"}
COLUMNS = ("row", "contender", "median", "spread", "ratio", "goal", "met", "outputs")


def store(path: Path, results: Sequence[Result]) -> None:
    """Add results to a file; a row of the same name is replaced where it stands."""
    kept = {values["name"]: values for values in json.loads(path.read_text())} if path.is_file() else {}
    kept |= {result.name: result.to_dict() for result in results}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(list(kept.values()), indent=1) + "\n")
    os.replace(partial, path)  # noqa: PTH105


def table_lines(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One line per contender, in `COLUMNS`; the line of ours carries the row's title and what its check said."""
    lines = []
    for result in results:
        names = ["ours", *(name for name in result.values if name != "ours")]
        for name in names:
            first = name == "ours"
            goals = [goal for goal in result.goals if (goal.against or "ours") == name]
            values = result.values[name]
            lines.append(
                (
                    result.title if first else "",
                    name,
                    f"{number(result.median(name))} {result.unit}",
                    f"{number(min(values))} – {number(max(values))}" if len(values) > 1 else "",
                    "" if first else _ratio(result, name),
                    ", ".join(goal_text(goal, result.unit) for goal in goals),
                    ", ".join("yes" if result.met(goal) else "NO" for goal in goals),
                    result.outputs if first else "",
                )
            )
    return lines


def goal_text(goal: Goal, unit: str) -> str:
    """A goal in a few characters."""
    if goal.at_least is not None:
        return f"≥ {goal.at_least:g}× better"
    return f"≤ {goal.at_most:g} {unit}" if goal.against is None else f"≤ {goal.at_most:g}× it"


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(result: Result, name: str) -> str:
    better = statistics.median(result.times_better(name))
    bounded = [goal for goal in result.goals if goal.against == name and goal.at_most is not None]
    return f"{number(1 / better)}× it" if bounded or better < 1 else f"{number(better)}× better"


def markdown(results: Sequence[Result]) -> str:
    """The table for a README."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in table_lines(results))]) + "\n"


def write_report(output: Path, stored: Sequence[Mapping[str, Any]]) -> str:
    """Write ``table.md`` and ``ratios.png``; the table as text."""
    results = [Result.from_dict(values) for values in stored]
    (output / "table.md").write_text(markdown(results))
    if results:
        _figure(results, output / "ratios.png")
    table = Table(*COLUMNS)
    for line in table_lines(results):
        table.add_row(*line)
    console = Console(width=200, file=io.StringIO())
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _figure(results: Sequence[Result], path: Path) -> None:
    """How many times better than each contender ours is, and the goals, on one logarithmic axis."""
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    names: dict[int, str] = {}
    y = 0
    for result in results:
        others = [name for name in result.values if name != "ours"]
        if not others:
            continue
        ours = f"ours {number(result.median('ours'))} {result.unit}"
        alone = [goal for goal in result.goals if goal.against is None]
        ours += "".join(
            f", goal {goal_text(goal, result.unit)}{'' if result.met(goal) else ' missed'}" for goal in alone
        )
        # Within the axes, whose width it may take: no mark is on its line.
        axes.text(0.005, y, f"{result.title}: {ours}", transform=axes.get_yaxis_transform(), va="center", **HEADING)
        for name in others:
            y += 1
            names[y] = name
            better = result.times_better(name)
            colour = LIMIT if name.startswith("limit") else PEER
            axes.plot([min(better), max(better)], [y, y], color=colour, linewidth=2, alpha=0.5)
            axes.plot(statistics.median(better), y, "o", color=colour, markersize=6)
            for goal in (goal for goal in result.goals if goal.against == name):
                bound = goal.at_least if goal.at_least is not None else 1 / (goal.at_most or 1)
                axes.plot(bound, y, "|", color=MET if result.met(goal) else MISSED, markersize=14, markeredgewidth=2.5)
        y += 2
    figure.set_size_inches(11, 0.21 * y + 1.2)
    axes.axvline(1, color="0.4", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="times better than (right of 1: ours is ahead)", ylim=(y, -1))
    axes.set_yticks(list(names), list(names.values()))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.grid(axis="x", which="major", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    marks = [("o", PEER, "against a peer"), ("o", LIMIT, "against a limit")]
    marks += [("|", MET, "goal, reached"), ("|", MISSED, "goal, missed")]
    for mark, colour, label in marks:
        axes.plot([], [], mark, color=colour, label=label, markersize=9, markeredgewidth=2)
    figure.legend(loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
