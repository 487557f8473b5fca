"""What an arena's results say: means, paired differences with intervals, a table and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brats_lightning.evaluation.bootstrap import Bootstrap

Result = dict[str, Any]
# The scores that are shown, by their title; all others are in the results file.
SCORES = {
    "Dice WT": "dice_wt",
    "Dice TC": "dice_tc",
    "Dice ET": "dice_et",
    "Dice mean": "dice_mean",
    "lesion Dice": "brats2024/lesion_dice_mean",
    "small F1": "brats2026/small_f1_mean",
    "FP per case": "false_positives",
}
LEGEND = (
    "Dice: of voxels. lesion Dice: lesion-wise, `brats2024`. small F1: lesions under 20 mm³, `brats2026`. FP: found "
    "lesions that are none. These three and *mean* are means over WT, TC and ET. Everything is a mean over the cases "
    "that have the score, then over seeds."
)


def case_table(results: Sequence[Result], score: str) -> np.ndarray:
    """(seeds, cases) of one contestant's score, NaN where it is undefined; cases in the results' order."""
    cases = list(results[0]["scores"])
    rows = [[result["scores"][case][score] for case in cases] for result in results]
    return np.array(rows, dtype=np.float64)  # None becomes NaN


def mean_without_nan(values: np.ndarray, axis: int | None = None) -> Any:
    """numpy's nanmean without its warning where there is nothing: NaN."""
    counts = (~np.isnan(values)).sum(axis=axis)
    return np.where(counts > 0, np.nansum(values, axis=axis) / np.maximum(counts, 1), np.nan)


def paired_difference(
    ours: np.ndarray, peer: np.ndarray, patients: Sequence[str], resamples: int
) -> tuple[float, float, float]:
    """Mean of ours − peer over the cases and its 95 % bootstrap interval; seeds are averaged before.

    Where one side alone has no value, a region is neither in the reference nor in its prediction, which is right: 1.
    Patients are resampled, each with all their cases, which are more alike than those of different patients.

    Args:
        ours: (seeds, cases).
        peer: likewise, of as many cases.
        patients: of each case.
        resamples: of the patients, with replacement.
    """
    ours, peer = mean_without_nan(ours, axis=0), mean_without_nan(peer, axis=0)
    one = np.isnan(ours) ^ np.isnan(peer)
    differences = np.where(one & np.isnan(ours), 1, ours) - np.where(one & np.isnan(peer), 1, peer)
    has = ~np.isnan(differences)
    sums, counts = np.where(has, differences, 0.0)[:, None], has[:, None].astype(np.float64)
    low, high = Bootstrap(resamples, 0).interval(sums, counts, patients)
    return float(mean_without_nan(differences)), float(low[0]), float(high[0])


def interval_note(patients: int) -> str:
    """What the interval is: of few patients a bootstrap knows only these, and is too sure of them."""
    if patients == 1:
        return "of one patient"
    if patients == 2:
        return "with the span of the two patients' means, no confidence interval"
    few = f", too narrow of only {patients}" if patients < 10 else ""
    return f"with 95 % interval (bootstrap over patients{few})"


def run_line(result: Result) -> str:
    """One run in one line."""
    scores = [f"{title} {number(mean_of([result], score))}" for title, score in SCORES.items() if "Dice" in title]
    return f"{result['contestant']}, seed {result['seed']}: {result['steps']} steps · " + " · ".join(scores)


def mean_of(results: Sequence[Result], score: str) -> float:
    """Mean over seeds of the mean over cases."""
    return float(mean_without_nan(mean_without_nan(case_table(results, score), axis=1)))


def number(value: float) -> str:
    """Three decimals; a dash for what is undefined."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def difference_cell(mean: float, low: float, high: float) -> str:
    """With its interval, if there is one: a single patient has none."""
    if math.isnan(mean):
        return "–"
    return f"{mean:+.3f}" if math.isnan(low) else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def write_report(results: Sequence[Result], contestants: Sequence[str], output: Path, resamples: int) -> str:
    """Write ``table.md`` and ``figure.png`` below ``output``; the text of the table. The first contestant is ours."""
    by_contestant = {name: [r for r in results if r["contestant"] == name] for name in contestants}
    lines = ["| contestant | seed | steps | " + " | ".join(SCORES) + " |", "|---" * (3 + len(SCORES)) + "|"]
    for name, own in by_contestant.items():
        for result in own:
            lines.append(table_line(name, str(result["seed"]), [result]))
        if len(own) > 1:
            lines.append(table_line(name, "mean", own))
    ours, *peers = contestants
    patients = results[0]["key"]["patients"]
    differences = {
        peer: {
            title: paired_difference(
                case_table(by_contestant[ours], score), case_table(by_contestant[peer], score), patients, resamples
            )
            for title, score in SCORES.items()
        }
        for peer in peers
    }
    if peers:
        lines += ["", f"{ours} minus …, {interval_note(len(set(patients)))}, seeds averaged first", ""]
        lines += ["| peer | " + " | ".join(SCORES) + " |", "|---" * (1 + len(SCORES)) + "|"]
        for peer, scores in differences.items():
            cells = [difference_cell(*values) for values in scores.values()]
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
    key = results[0]["key"]
    cases = f"{len(key['train'])} train, {len(key['test'])} test cases"
    setting = f"{cases}, {key['minutes']:g} minutes, {key['threads']} threads, {key['processor']}"
    text = "\n".join([*lines, "", LEGEND, "", setting]) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text(text)
    draw(by_contestant, differences, interval_note(len(set(patients))), output / "figure.png")
    return text


def table_line(name: str, seed: str, results: Sequence[Result]) -> str:
    """A row of the table: the mean over the given runs of one contestant."""
    steps = round(sum(result["steps"] for result in results) / len(results))
    cells = [number(mean_of(results, score)) for score in SCORES.values()]
    return f"| {name} | {seed} | {steps} | " + " | ".join(cells) + " |"


def draw(
    by_contestant: dict[str, list[Result]],
    differences: dict[str, dict[str, tuple[float, float, float]]],
    note: str,
    path: Path,
) -> None:
    """Each case's scores, lines joining the same case; below, the first minus each peer, and what its bar is.

    Contestants are numbered, and named underneath: names with overrides are longer than any axis has room for.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {title: score for title, score in SCORES.items() if title != "FP per case"}
    names = list(by_contestant)
    numbers = [str(i + 1) for i in range(len(names))]
    height = (2.8 + 0.2 * len(names) if differences else 0) + 3.0 + 0.15 * len(names)
    figure = Figure(figsize=(2.3 * len(shown), height), layout="constrained")
    FigureCanvasAgg(figure)
    heights = [2, 1] if differences else [1]
    axes = figure.subplots(len(heights), len(shown), squeeze=False, height_ratios=heights)
    for column, (title, score) in enumerate(shown.items()):
        top = axes[0, column]
        values = np.array([mean_without_nan(case_table(own, score), axis=0) for own in by_contestant.values()])
        top.plot(range(len(names)), values, color="0.8", linewidth=0.8, zorder=1)
        for x, (own, cases) in enumerate(zip(by_contestant.values(), values, strict=True)):
            colour = "C0" if x == 0 else "0.45"
            top.scatter(np.full(len(cases), x), cases, s=12, color=colour, zorder=2)
            top.hlines(mean_of(own, score), x - 0.3, x + 0.3, color=colour, linewidth=2.5, zorder=3)
        top.set(title=title, ylim=(-0.03, 1.03), xlim=(-0.5, len(names) - 0.5))
        top.set_xticks(range(len(names)), numbers, fontsize=8)
        top.tick_params(labelleft=column == 0)
        top.grid(axis="y", color="0.92")
        if not differences:
            continue
        bottom = axes[1, column]
        for y, scores in enumerate(differences.values()):
            mean, low, high = scores[title]
            if not math.isnan(mean):
                bottom.plot(mean, y, "o", color="C0")
                bottom.plot([low, high], [y, y], color="C0")
        bottom.axvline(0, color="0.6", linewidth=0.8)
        bottom.set(ylim=(len(differences) - 0.5, -0.5), xlabel="1 − peer")
        bottom.set_yticks(range(len(differences)), numbers[1:] if column == 0 else [""] * len(differences), fontsize=8)
        reach = max([0.05, *(abs(end) for scores in differences.values() for end in scores[title] if end == end)])
        bottom.set_xlim(-1.1 * reach, 1.1 * reach)
    legend = [f"{i}  {name}" for i, name in zip(numbers, names, strict=True)]
    if differences:
        legend.append(f"1 − peer: {names[0]} minus the peer, {note}")
    figure.supxlabel("\n".join(legend), fontsize=8, x=0.01, ha="left")
    figure.savefig(path, dpi=130)
