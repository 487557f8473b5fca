"""Which cases and lesions a report shows first."""

import math
from collections.abc import Sequence
from itertools import groupby

from brats_lightning.evaluation.scoring import ScoredCase
from brats_lightning.metrics.lesions import LesionRow
from brats_lightning.metrics.official import headline_columns, mean_without_nan

POOR = 0.5  # a detected lesion with a lower Dice is shown with the missed ones
LISTED = 50  # lesions of a kind in a list
_KINDS = ("missed", "false positive", "poor", "found")


def worst_first(cases: Sequence[ScoredCase], protocol: str, region: str) -> list[ScoredCase]:
    """Missing predictions first, then by the mean main score over regions, then by missed and false lesions."""
    main = headline_columns(protocol)[0]

    def badness(case: ScoredCase) -> tuple[bool, float, int, str]:
        official = mean_without_nan([columns[main] for columns in case.official[protocol].values()])
        # Without a lesion to score, the voxel scores distinguish a false alarm from a clean case.
        voxelwise = mean_without_nan([case.voxelwise[name]["dice"] for name in case.official[protocol]])
        mean = next((mean for mean in (official, voxelwise) if not math.isnan(mean)), 1.0)
        return not case.missing, mean, -sum(not row.detected for row in case.lesions[region]), case.case

    return sorted(cases, key=badness)


def cases_in_pictures(ordered: Sequence[ScoredCase], count: int | None) -> dict[str, list[ScoredCase]]:
    """The cases that the viewer shows, by group: half of them the worst, then those in the middle, then the best.

    Cases without a prediction are left out: their scores are no judgement of a picture.

    Args:
        ordered: all cases, worst first.
        count: how many at most; None shows all.
    """
    there = [case for case in ordered if not case.missing]
    if count is None or len(there) <= count:
        return {"All cases, worst first": there} if there else {}
    best = count // 4
    worst = count - 2 * best
    # Around the middle of all cases, as far as the best ones leave room.
    first = min(max(worst, len(there) // 2 - best // 2), len(there) - 2 * best)
    groups = {
        "Worst": there[:worst],
        "In the middle": there[first : first + best],
        "Best": there[len(there) - best :],
    }
    return {name: group for name, group in groups.items() if group}


def kind_of_lesion(row: LesionRow) -> str:
    """``missed``, ``false positive``, ``poor`` (detected, with a Dice below `POOR`) or ``found``."""
    if row.false_positive:
        return "false positive"
    return "missed" if not row.detected else "poor" if row.dice < POOR else "found"


def worst_lesions(cases: Sequence[ScoredCase], region: str, found: bool = False) -> list[tuple[str, LesionRow]]:
    """The largest missed, false positive and poor lesions with their cases, at most `LISTED` of each kind.

    Cases without a prediction are left out.

    Args:
        cases: to look in.
        region: whose lesions are meant.
        found: also list the found ones, those with the lowest Dice.
    """
    kinds = _KINDS if found else _KINDS[:-1]
    rows = [(case.case, row) for case in cases if not case.missing for row in case.lesions[region]]
    rows = [(case, row) for case, row in rows if kind_of_lesion(row) in kinds]

    def order(item: tuple[str, LesionRow]) -> tuple[int, float, str, int]:
        case, row = item
        kind = kind_of_lesion(row)
        return kinds.index(kind), row.dice if kind == "found" else -row.volume, case, row.lesion

    rows.sort(key=order)
    by_kind = groupby(rows, lambda item: kind_of_lesion(item[1]))
    return [item for _, group in by_kind for item in list(group)[:LISTED]]
