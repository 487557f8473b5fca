"""Intensities that no scanner makes: images without contrast, and single voxels that take the range of all others."""

from dataclasses import replace

import numpy as np
from jaxtyping import Shaped

from brats_lightning.data.nifti import Volume

_REACH = 20  # of the range between the percentiles, to either side: what lies further away is no tissue
_PERCENTILES = (1, 99)
_SAMPLE = 200_000  # voxels from which they are taken


def plausible(volume: Volume) -> Volume:
    """An image whose outliers leave the other voxels most of the cache's 16 bits, with a remark if it had any.

    Whole numbers that span less than 65,535 are kept exactly and stay as they are. Of all others, whatever lies further
    from the 1st … 99th percentile of the brain than 20 times their distance is moved to that limit.

    Args:
        volume: with finite values.
    """
    values = volume.values
    if remark := _without_contrast(values):
        return replace(volume, remark=_joined(volume, remark))
    if _kept_exactly(values):
        return volume
    brain = values[values != 0].astype(np.float64)
    first, last = np.percentile(brain[:: max(1, brain.size // _SAMPLE)], _PERCENTILES)
    lowest, highest = first - _REACH * (last - first), last + _REACH * (last - first)
    outliers = brain[(brain < lowest) | (brain > highest)]
    if first == last or not outliers.size:
        return volume
    worst = outliers[np.abs(outliers - first).argmax()]
    found = f"{outliers.size} voxel{'s' * (outliers.size != 1)} far from all others, such as {worst:.4g}"
    remark = f"{found}, taken as {np.clip(worst, lowest, highest):.4g}"
    kept = np.where(values != 0, np.clip(values, lowest, highest), 0).astype(values.dtype)
    return replace(volume, values=kept, remark=_joined(volume, remark))


def _kept_exactly(values: Shaped[np.ndarray, "z y x"]) -> bool:
    """Whether `quantise` rounds nothing."""
    low, high = float(values.min()), float(values.max())
    fits = (low >= 0 and high <= 65535) or high - low <= 65534
    return fits and (values.dtype.kind in "iu" or bool(np.array_equal(np.rint(values), values)))


def _without_contrast(values: Shaped[np.ndarray, "z y x"]) -> str:
    """What is wrong with an image that has one intensity only; "" if it has several."""
    if not values.size:
        return "all voxels are 0"
    for part in (values[::4, ::4, ::4], values):  # most images show in a small part that they have contrast
        brain = part[part != 0]
        if brain.size and brain.min() != brain.max():
            return ""
    return f"all voxels of the brain are {values.flat[np.flatnonzero(values)[0]]:.4g}"


def _joined(volume: Volume, remark: str) -> str:
    return "; ".join(filter(None, (volume.remark, remark)))
