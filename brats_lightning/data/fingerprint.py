"""The fingerprint of a data set: what its cases are like, in numbers that a person or a planner can use."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from brats_lightning.core.labels import LabelScheme
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.inspection import Inspection
from brats_lightning.data.preprocessing import QUANTILE_LEVELS, Intensities

VOLUME_BOUNDS = (27, 275)  # mm³; smaller lesions are tiny, larger ones large
LEVELS = (1, 50, 99)  # per cent of the brain's intensities
BINS = np.linspace(-3, 5, 65)  # of z-scored intensities


def fingerprint(inspections: Sequence[Inspection], sequences: Sequence[str], scheme: LabelScheme) -> dict[str, Any]:
    """Numbers of a data set, JSON-able but for NaN where nothing could be counted.

    Spacings and shapes are (z, y, x), those of the scans: in LPS order, cropped to the brain, not resampled.

    Args:
        inspections: of its accepted cases, at least one.
        sequences: that are used.
        scheme: the classes of its masks.
    """
    cases = [inspection.case for inspection in inspections]
    labelled = [inspection for inspection in inspections if inspection.case.has_mask]
    voxels = np.sum([each.case.class_voxels[: scheme.num_classes] for each in labelled], axis=0, dtype=np.float64)
    spacings = [tuple(round(value, 3) for value in case.brain.spacing) for case in cases]
    return {
        "cases": len(cases),
        "patients": len({case.patient for case in cases}),
        "labelled": len(labelled),
        "empty": sum(not case.case.lesions for case in labelled),
        "spacing": _spread(spacings),
        "spacings": [[list(spacing), count] for spacing, count in Counter(spacings).most_common()],
        "shape": _spread([case.brain.shape for case in cases]),
        "sequences": {name: _intensities(cases, name) for name in sequences},
        "class_fractions": dict(zip(scheme.class_names, (voxels / voxels.sum()).tolist(), strict=True))
        if labelled
        else {},
        "lesions": {region: _lesions([each.volumes[region] for each in labelled]) for region in scheme.regions},
    }


def band_counts(volumes: Sequence[int | float]) -> list[int]:
    """How many volumes lie in each band from 0 by `VOLUME_BOUNDS` to infinity; a bound belongs to the upper one."""
    return np.bincount(np.searchsorted(VOLUME_BOUNDS, volumes, side="right"), minlength=len(VOLUME_BOUNDS) + 1).tolist()


def bands() -> list[dict[str, int | None]]:
    """The bands of `band_counts`, as ``from_mm3`` and ``to_mm3``."""
    lower, upper = (0, *VOLUME_BOUNDS), (*VOLUME_BOUNDS, None)
    return [{"from_mm3": low, "to_mm3": high} for low, high in zip(lower, upper, strict=True)]


def histogram(intensities: Intensities) -> Float64[np.ndarray, " bins"]:
    """Density of the z-scored intensities of the brain between `BINS`, from the stored quantiles."""
    if not intensities.std:
        return np.zeros(len(BINS) - 1)
    values, first = np.unique((np.array(intensities.quantiles) - intensities.mean) / intensities.std, return_index=True)
    last = np.append(first[1:], len(QUANTILE_LEVELS)) - 1  # of equal quantiles the highest level: a step up
    below = np.interp(BINS, values, np.array(QUANTILE_LEVELS)[last] / 100, left=0, right=1)
    return np.diff(below) / np.diff(BINS)


def _spread(triples: Sequence[Sequence[int | float]]) -> dict[str, list[float]]:
    """Least, median and most along each axis."""
    values = np.array(triples, dtype=float)
    return {
        name: f(values, axis=0).tolist() for name, f in (("least", np.min), ("median", np.median), ("most", np.max))
    }


def _intensities(cases: Sequence[CachedCase], sequence: str) -> dict[str, Any]:
    """Of one sequence: how many cases have it, and the median over them of its values at `LEVELS` with their range."""
    own = [case.intensities[sequence] for case in cases if sequence in case.intensities]
    values = {str(level): [each.quantile(level) for each in own] for level in LEVELS}
    levels: Mapping[str, Any] = {
        level: {"least": min(all_), "median": float(np.median(all_)), "most": max(all_)}
        for level, all_ in values.items()
        if all_
    }
    return {"cases": len(own), "missing": len(cases) - len(own), "percentiles": levels}


def _lesions(by_case: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Of one region: its lesions (26-connected components) in the labelled cases."""
    counts = [len(volumes) for volumes in by_case]
    volumes = np.array([volume for case in by_case for volume in case])
    return {
        "cases": sum(count > 0 for count in counts),
        "count": len(volumes),
        "per_case": {"median": float(np.median(counts)) if counts else math.nan, "most": max(counts, default=0)},
        "median_mm3": float(np.median(volumes)) if len(volumes) else math.nan,
        "mean_mm3": float(np.mean(volumes)) if len(volumes) else math.nan,
        "bands": [band | {"lesions": n} for band, n in zip(bands(), band_counts(volumes.tolist()), strict=True)],
    }
