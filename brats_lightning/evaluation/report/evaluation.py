"""What people read of one method: the tables on the terminal and the HTML page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from brats_lightning.evaluation.report.figures import (
    COLUMN_TITLES,
    detection_figure,
    score_distribution,
    size_figure,
)
from brats_lightning.evaluation.report.page import counted, digits, number, render
from brats_lightning.evaluation.report.pictures import PREDICTION_COLOUR, REFERENCE_COLOUR, LesionPicture
from brats_lightning.evaluation.scoring import Evaluation, ScoredCase
from brats_lightning.metrics.official import headline_columns

POOR = 0.5  # Dice below which a lesion that was found is worth a word


def terminal_table(name: str, summary: Mapping[str, Any], protocol: str) -> Table:
    """The headline scores of one protocol, mean over cases and 95 % interval."""
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


def evaluation_page(evaluation: Evaluation, summary: Mapping[str, Any], pictures: Sequence[LesionPicture]) -> str:
    """The report of one method, as HTML."""
    scoring = evaluation.scoring
    leading, region = scoring.protocols[0], scoring.lesion_region
    official = [case.official[leading] for case in evaluation.cases]
    return render(
        "evaluation.html",
        title=f"Segmentation scores: {evaluation.name}",
        scoring=scoring,
        summary=summary,
        predictions=[summary["settings"]["predictions"]],
        left_out=evaluation.left_out,
        cases=[(case, what_went_wrong(case, region)) for case in worst_first(evaluation.cases, leading, region)],
        figures={
            "scores": score_distribution(official, summary["scores"][leading], leading),
            "sizes": size_figure(summary["lesions"]),
            "detection": detection_figure(summary["lesions"], region),
        },
        pictures=pictures,
        colours=(REFERENCE_COLOUR, PREDICTION_COLOUR),
    )


def what_went_wrong(case: ScoredCase, region: str) -> str:
    """One line on the lesions of a region: what was missed, invented, or found badly."""
    if case.missing:
        return "no prediction"
    lesions = [row for row in case.lesions[region] if not row.false_positive]
    missed = [row.volume for row in lesions if row.missed]
    invented = [row.volume for row in case.lesions[region] if row.false_positive]
    found = [row for row in lesions if row.detected]
    parts = []
    if missed:
        parts.append(f"missed {len(missed)} of {len(lesions)} (largest {number(max(missed), 0)} mm³)")
    if invented:
        parts.append(f"{counted(len(invented), 'false positive')} (largest {number(max(invented), 0)} mm³)")
    worst = min(found, key=lambda row: row.dice, default=None)
    if worst is not None and worst.dice < POOR:
        parts.append(f"a lesion of {number(worst.volume, 0)} mm³ found with Dice {number(worst.dice, 2)}")
    if not parts:
        return "all lesions found" if lesions else "nothing to find, nothing found"
    return "; ".join(parts)


def worst_first(cases: Sequence[ScoredCase], protocol: str, region: str) -> list[ScoredCase]:
    """Missing predictions, then by the mean of the main score over regions, then by lesions missed and invented."""

    def badness(case: ScoredCase) -> tuple[bool, float, int, str]:
        official = [columns[headline_columns(protocol)[0]] for columns in case.official[protocol].values()]
        # Without a lesion to score, the voxels tell a false alarm from a clean case.
        for values in (official, [case.voxelwise[name]["dice"] for name in case.official[protocol]]):
            defined = [value for value in values if not math.isnan(value)]
            if defined:
                break
        lost = sum(not row.detected for row in case.lesions[region])
        return not case.missing, float(np.mean(defined)) if defined else 1.0, -lost, case.case

    return sorted(cases, key=badness)
