"""A baseline without a network: the best single threshold on T1c."""

from collections.abc import Sequence

import numpy as np

from brats_lightning.core.labels import IGNORE, LabelScheme
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.normalisation import normalisation_parameters

# In standard deviations above the brain's mean; the last bin is open.
_THRESHOLDS = np.arange(-1.0, 12.0, 0.05)


def best_threshold_dice(cases: Sequence[CachedCase], scheme: LabelScheme) -> float | None:
    """The highest ``dice_mean`` (see `voxel_scores`) of a T1c threshold's mask, taken for each of ET, TC and WT.

    The threshold is chosen on the cases on which it is scored, so none can do better. A task that it solves needs no
    network. Scored on the working grid, which is the original one unless cases are resampled.

    Returns:
        None without cases, without T1c or without one of the three regions.
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
        # above[t, c]: number of voxels of class c at or above threshold t
        above = pairs.reshape(-1, 256)[::-1].cumsum(0)[::-1][1:]
        total = np.bincount(mask.ravel(), minlength=256)
        dice = []
        for region in regions:
            classes = list(region)
            sizes = above[:, :IGNORE].sum(1) + total[classes].sum()
            overlap = above[:, classes].sum(1)
            dice.append(np.where(sizes > 0, 2 * overlap / np.maximum(sizes, 1), np.nan))
        per_case.append(np.ma.masked_invalid(dice).mean(axis=0).filled(np.nan))
    means = np.ma.masked_invalid(per_case).mean(axis=0).filled(np.nan)
    return None if np.isnan(means).all() else float(np.nanmax(means))
