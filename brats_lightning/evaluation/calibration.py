"""Calibration: whether what a network calls 70 % likely is so in 70 % of voxels."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from brats_lightning.core.geometry import Grid
from brats_lightning.core.labels import IGNORE, LabelScheme, in_classes
from brats_lightning.data.nifti import UnreadableFile, read_header, read_volume

BINS = 10  # of probability, equally wide

# For each bin: voxels, the sum of their probabilities, and how many have the region.
Counts = list[tuple[int, float, int]]


def check_probabilities(path: Path, scheme: LabelScheme, grid: Grid, tolerance: float) -> UnreadableFile | None:
    """What is wrong with a file of class probabilities, background first, for a reference on ``grid``."""
    try:
        header = read_header(path, scheme.num_classes - 1)
    except UnreadableFile as error:
        return error
    difference = header.grid.mismatch(grid, tolerance, "its reference")
    return UnreadableFile(*difference, "remove it, or predict again") if difference else None


def reliability(path: Path, reference: UInt8[np.ndarray, "x y z"], scheme: LabelScheme) -> dict[str, Counts]:
    """Region → counts of the voxels of known class that have any probability of it.

    Args:
        path: of class probabilities, see `check_probabilities`.
        reference: class indices, `IGNORE` where it is not labelled.
        scheme: the classes.
    """
    classes = {index: read_volume(path, index).whole() for index in range(1, scheme.num_classes)}
    return {
        region: _counts(np.sum([classes[index] for index in members], axis=0), reference, members)
        for region, members in scheme.regions.items()
    }


def _counts(
    probability: Float32[np.ndarray, "x y z"], reference: UInt8[np.ndarray, "x y z"], members: tuple[int, ...]
) -> Counts:
    counted = (probability > 0) & (reference != IGNORE)
    probability, true = probability[counted], in_classes(reference[counted], members)
    place = np.minimum(probability * BINS, BINS - 1).astype(int)
    voxels, there = (np.bincount(place[which], minlength=BINS).tolist() for which in (slice(None), true))
    sums = np.bincount(place, probability, minlength=BINS).tolist()
    return list(zip(voxels, sums, there, strict=True))
