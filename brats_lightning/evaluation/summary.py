"""Statistics over cases: means with intervals, detection by lesion size, detection against false positives."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.calibration import Counts
from brats_lightning.evaluation.scoring import SIZE_FILTERS, Evaluation, ScoredCase
from brats_lightning.metrics.brats2026 import THRESHOLDS

# Lesion volumes in mm³: 27 and 275 are the usual limits of tiny and large metastases, 64 is a cube of 4³ voxels.
SIZE_BOUNDS = (27, 64, 275, 1000)

Table = dict[str, dict[str, float]]  # region → column → value
# (region, column) → a row per case, a column per method
Scores = dict[tuple[str, str], Float[np.ndarray, "cases methods"]]


def lower_is_better(column: str) -> bool:
    """Whether a column is a distance; all others are fractions."""
    return "hd95" in column.lower()


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; NaN for n = 0."""
    if n == 0:
        return math.nan, math.nan
    z = 1.959963984540054
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def summarise(
    tables: Sequence[Table], patients: Sequence[str], bootstrap: Bootstrap
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Region → column → ``mean``, ``std`` (ddof 1), ``median``, ``n``, ``low`` and ``high`` of the mean's interval.

    NaN is skipped; ``n`` is the number of cases with a value. ``tables`` and ``patients`` are those of each case.
    """
    keys = list(dict.fromkeys((region, column) for table in tables for region in table for column in table[region]))
    values = np.array([[table[region].get(column, np.nan) for region, column in keys] for table in tables])
    has = ~np.isnan(values)
    low, high = bootstrap.interval(np.where(has, values, 0.0), has.astype(np.float64), patients)
    summary: dict[str, dict[str, dict[str, float | int]]] = {}
    for i, (region, column) in enumerate(keys):
        own = values[has[:, i], i]
        summary.setdefault(region, {})[column] = {
            "mean": float(np.mean(own)) if len(own) else math.nan,
            "std": float(np.std(own, ddof=1)) if len(own) > 1 else math.nan,
            "median": float(np.median(own)) if len(own) else math.nan,
            "n": len(own),
            "low": float(low[i]),
            "high": float(high[i]),
        }
    return summary


def size_bands(cases: Sequence[ScoredCase], region: str, bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Detection and Dice of the reference's lesions by their volume.

    Each band reaches from ``from_mm3`` to below ``to_mm3`` (None: no limit) and has ``lesions``, ``detected``,
    ``sensitivity`` with Wilson's interval, and the mean ``dice``, with 0 for lesions without a match, with a bootstrap
    interval.
    """
    rows = []
    for lower, upper in pairwise((0, *SIZE_BOUNDS, math.inf)):
        members = [
            [row for row in case.lesions[region] if not row.false_positive and lower <= row.volume < upper]
            for case in cases
        ]
        n, detected = sum(map(len, members)), sum(row.detected for own in members for row in own)
        sums = np.array([[math.fsum(row.dice for row in own)] for own in members])
        counts = np.array([[float(len(own))] for own in members])
        low, high = bootstrap.interval(sums, counts, [case.patient for case in cases])
        sensitivity, interval = detected / n if n else math.nan, wilson_interval(detected, n)
        row = {"from_mm3": lower, "to_mm3": None if math.isinf(upper) else upper, "lesions": n, "detected": detected}
        row |= {"sensitivity": sensitivity, "sensitivity_low": interval[0], "sensitivity_high": interval[1]}
        dice = float(sums.sum() / n) if n else math.nan
        row |= {"dice": dice, "dice_low": float(low[0]), "dice_high": float(high[0])}
        rows.append(row)
    return rows


def detection_curve(cases: Sequence[ScoredCase], region: str) -> list[dict[str, float]]:
    """Sensitivity and false positives per case without the predicted lesions below each of `SIZE_FILTERS`."""
    lesions = sum(not row.false_positive for case in cases for row in case.lesions[region])
    curve = []
    for i, smallest in enumerate(SIZE_FILTERS):
        detected, false_positives = np.sum([case.operating[region][i] for case in cases], axis=0).tolist()
        point = {"smallest_mm3": float(smallest), "sensitivity": detected / lesions if lesions else math.nan}
        curve.append(point | {"false_positives_per_case": false_positives / len(cases)})
    return curve


def reliability_curve(counts: Sequence[Counts], patients: Sequence[str], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """For each bin the ``voxels``, mean ``probability`` and ``fraction`` with the region, with an interval.

    ``counts`` are those of one region, and like ``patients`` of each case. Bins without voxels are left out.
    """
    if not counts:
        return []
    voxels, sums, there = np.moveaxis(np.array(counts, dtype=np.float64), 2, 0)
    low, high = bootstrap.interval(there, voxels, patients)
    return [
        {
            "voxels": int(voxels[:, i].sum()),
            "probability": float(sums[:, i].sum() / voxels[:, i].sum()),
            "fraction": float(there[:, i].sum() / voxels[:, i].sum()),
            "low": float(low[i]),
            "high": float(high[i]),
        }
        for i in np.flatnonzero(voxels.sum(axis=0)).tolist()
    ]


def summary(evaluation: Evaluation, bootstrap: Bootstrap) -> dict[str, Any]:
    """The content of ``summary.json``: settings, cases, scores and lesions."""
    scoring, cases = evaluation.scoring, evaluation.cases
    patients = [case.patient for case in cases]
    calibrated = [case for case in cases if case.reliability]
    lesions = {}
    for region in scoring.scheme.regions:
        rows = [row for case in cases for row in case.lesions[region]]
        lesions[region] = {
            "lesions": sum(not row.false_positive for row in rows),
            "detected": sum(row.detected for row in rows),
            "false_positives": sum(row.false_positive for row in rows),
            "size_bands": size_bands(cases, region, bootstrap),
            "detection_curve": detection_curve(cases, region),
            "reliability": reliability_curve(
                [case.reliability[region] for case in calibrated], [case.patient for case in calibrated], bootstrap
            ),
        }
    return {
        "settings": {
            "predictions": str(evaluation.predictions),
            "references": str(evaluation.references),
            "protocols": list(scoring.protocols),
            "labels": list(scoring.scheme.names),
            "label_map": scoring.label_map,
            "prediction_label_map": scoring.prediction_label_map,
            "thresholds": {"name": scoring.thresholds, **asdict(THRESHOLDS[scoring.thresholds])},
            "spacing": scoring.spacing,
            "affine_tolerance": scoring.tolerance,
            "bootstrap": asdict(bootstrap),
        },
        "cases": {
            "scored": len(cases),
            "patients": len(set(patients)),
            "missing": len(evaluation.missing),
            "missing_predictions": evaluation.missing,
            "left_out": list(map(asdict, evaluation.left_out)),
        },
        "scores": {
            protocol: summarise([case.official[protocol] for case in cases], patients, bootstrap)
            for protocol in scoring.protocols
        },
        "voxel_scores": summarise([case.voxelwise for case in cases], patients, bootstrap),
        "lesions": lesions,
    }
