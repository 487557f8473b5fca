"""A baseline without a network: the best that one global T1c threshold can do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brats_lightning.core.labels import LabelScheme
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.normalisation import normalisation_parameters

# Standard deviations above the brain's mean; the last bin is open.
_THRESHOLDS = np.arange(-1.0, 12.0, 0.05)


@dataclass(frozen=True)
class Threshold:
    """A threshold in standard deviations above the brain's mean T1c, and its Dice as ``dice_mean`` is defined."""

    value: float
    dice_mean: float


def best_threshold(cases: Sequence[CachedCase], scheme: LabelScheme) -> Threshold | None:
    """The T1c threshold whose mask, used for ET, TC and WT alike, has the highest mean Dice over these cases.

    It is chosen on the cases it is scored on, so it bounds every threshold from above; a task that it solves needs no
    network. Scored on the working grid, which is the original one unless cases are resampled.

    Returns:
        None without cases, without T1c or without one of the regions.
    """
    regions = [scheme.regions[name] for name in ("et", "tc", "wt") if name in scheme.regions]
    if not cases or len(regions) < 3 or any("t1c" not in case.modalities for case in cases):
        return None
    per_case = []
    for case in cases:
        image, mask = case.image()[case.modalities.index("t1c")], case.mask()
        scale, offset, *_ = normalisation_parameters(case.intensities["t1c"], "zscore")
        inside = image > 0
        bins = np.searchsorted(_THRESHOLDS, image[inside] * scale + offset, side="right")
        pairs = np.bincount(bins * 256 + mask[inside].astype(np.int64), minlength=(len(_THRESHOLDS) + 1) * 256)
        # above[t, c]: voxels of class c at or above threshold t
        above = pairs.reshape(-1, 256)[::-1].cumsum(0)[::-1][1:]
        total = np.bincount(mask.ravel(), minlength=256)
        dice = []
        for region in regions:
            classes = list(region)
            sizes = above.sum(1) + total[classes].sum()
            overlap = above[:, classes].sum(1)
            dice.append(np.where(sizes > 0, 2 * overlap / np.maximum(sizes, 1), np.nan))
        per_case.append(_nanmean(np.array(dice)))
    means = _nanmean(np.array(per_case))
    if np.isnan(means).all():
        return None
    best = int(np.nanargmax(means))
    return Threshold(float(_THRESHOLDS[best]), float(means[best]))


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    counts = (~np.isnan(values)).sum(0)
    return np.where(counts, np.nansum(values, 0) / np.maximum(counts, 1), np.nan)
