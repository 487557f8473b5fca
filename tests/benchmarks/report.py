"""The reporting half of the benchmark: stored results, one table, one figure."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.measure import Goal, Result

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
        table.add_row(*line, end_section=False)
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(table)
    return console.export_text()


def _figure(results: Sequence[Result], path: Path) -> None:
    """How many times better than each contender ours is, and the goals, on one logarithmic axis."""
