"""How a report prints numbers and names, and what it says about a case; the table on the terminal."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from brats_lightning.evaluation.report.figures import COLUMN_TITLES
from brats_lightning.evaluation.report.selection import POOR
from brats_lightning.evaluation.scoring import ScoredCase
from brats_lightning.evaluation.summary import lower_is_better
from brats_lightning.metrics.official import headline_columns
from brats_lightning.runtime.console import table_of

_REGION_TITLES = {"et": "enhancing tumour", "tc": "tumour core", "wt": "whole tumour", "rc": "resection cavity"}
_SEQUENCE_TITLES = {"t1n": "T1", "t1c": "T1c", "t2w": "T2w", "t2f": "FLAIR"}


def number(value: int | float, digits: int = 3) -> str:
    """A number with ``digits`` decimals; – for NaN."""
    return "–" if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def sort_key(value: int | float) -> str:
    """The text by which a cell is sorted: empty for NaN, which comes last."""
    return "" if math.isnan(value) else f"{value:.9g}"


def digits(column: str) -> int:
    """Decimals of a column: fewer for distances in mm."""
    return 1 if lower_is_better(column) else 3


def rounded(value: str) -> str:
    """A setting as it is typed, a long number with four digits."""
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d*\.\d{5,}(e-?\d+)?|-?\d\.\d+e-?\d+", value) else value


def counted(n: int, word: str) -> str:
    """``1 lesion``, ``2 lesions``."""
    return f"{n:,} {word}{'s' * (n != 1)}"


def p_value(p: float) -> str:
    """A p-value as in papers."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def region_title(region: str) -> str:
    """``ET · enhancing tumour``."""
    title = _REGION_TITLES.get(region)
    return f"{region.upper()} · {title}" if title else region.upper()


def sequence_title(sequence: str) -> str:
    """``t2f`` → ``FLAIR``."""
    return _SEQUENCE_TITLES.get(sequence, sequence)


def dimensions(values: Sequence[int | float], digits: int) -> str:
    """Three lengths as ``142 × 215 × 206``, with at most so many decimals."""
    return " × ".join(f"{value:,.{digits}f}".rstrip("0").rstrip(".") if digits else f"{value:,.0f}" for value in values)


def what_went_wrong(case: ScoredCase, region: str) -> str:
    """One line about the lesions of a region: missed, falsely detected, or poorly segmented."""
    if case.missing:
        return "no prediction"
    lesions = [row for row in case.lesions[region] if not row.false_positive]
    missed = [row.volume for row in lesions if not row.detected]
    invented = [row.volume for row in case.lesions[region] if row.false_positive]
    parts = []
    if missed:
        parts.append(f"missed {len(missed)} of {len(lesions)} (largest {number(max(missed), 0)} mm³)")
    if invented:
        parts.append(f"{counted(len(invented), 'false positive')} (largest {number(max(invented), 0)} mm³)")
    worst = min((row for row in lesions if row.detected), key=lambda row: row.dice, default=None)
    if worst is not None and worst.dice < POOR:
        parts.append(f"a lesion of {number(worst.volume, 0)} mm³ found with Dice {number(worst.dice, 2)}")
    if not parts:
        return "all lesions found" if lesions else "nothing to find, nothing found"
    return "; ".join(parts)


def case_facts(case: ScoredCase, protocol: str, region: str) -> str:
    """The main score of each region, and what went wrong."""
    main = headline_columns(protocol)[0]
    scores = " · ".join(f"{name.upper()} {number(row[main])}" for name, row in case.official[protocol].items())
    return f"{COLUMN_TITLES[main]}: {scores}. {region.upper()}: {what_went_wrong(case, region)}."


def terminal_table(name: str, summary: Mapping[str, Any], protocol: str) -> Table:
    """The headline scores of one protocol: means over cases with 95 % intervals."""
    shown = Table(title=escape(f"{name} · {protocol} · {counted(summary['cases']['scored'], 'case')}"))
    shown.add_column("region")
    for column in headline_columns(protocol):
        shown.add_column(COLUMN_TITLES[column], justify="right")
    for region, columns in summary["scores"][protocol].items():
        cells = []
        for column in headline_columns(protocol):
            row, n = columns[column], digits(column)
            between = "" if math.isnan(row["low"]) else f"\n[{number(row['low'], n)}, {number(row['high'], n)}]"
            cells.append(escape(number(row["mean"], n) + between))
        shown.add_row(region.upper(), *cells)
    return shown


def terminal_ranks(ranks: Mapping[str, Any], protocol: str) -> Table:
    """The ranking by one protocol, and the p-values that a method is better than the ones further down."""
    rows = ranks["methods"]
    others = [row["method"] for row in rows[1:]]
    cells = (
        [
            f"{row['rank']} [{row['rank_low']}, {row['rank_high']}]",
            row["method"],
            number(row["mean_rank"], 2),
            *(p_value(row["p"][other]) if other in row["p"] else "" for other in others),
        ]
        for row in rows
    )
    title = f"ranks · {protocol} · {counted(ranks['cases'], 'case')}; on the right the p-value: better than"
    return table_of(["rank", "method", "mean rank", *others], cells, title)
