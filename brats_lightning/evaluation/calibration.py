"""Calibration: whether what a network calls 70 % likely is so in 70 % of voxels."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from brats_lightning.core.geometry import Grid
from brats_lightning.core.labels import IGNORE, LabelScheme, in_classes
from brats_lightning.data.nifti import UnreadableFile
from brats_lightning.data.probabilities import read_probabilities, read_record

BINS = 10  # of probability, equally wide

# For each bin: voxels, the sum of their probabilities, and how many have the region.
Counts = list[tuple[int, float, int]]


def check_probabilities(path: Path, scheme: LabelScheme, grid: Grid, tolerance: float) -> UnreadableFile | None:
    """What is wrong with a file of class probabilities for a reference on ``grid``."""
    try:
        record = read_record(path)
    except UnreadableFile as error:
        return error
    difference = record.header.grid.mismatch(grid, tolerance, "its reference")
    if record.scheme != scheme:
        difference = f"the classes {', '.join(record.labels)}", f"{', '.join(scheme.names)}, as data.labels"
    return UnreadableFile(*difference, "remove it, or predict again") if difference else None


def reliability(path: Path, reference: UInt8[np.ndarray, "x y z"], scheme: LabelScheme) -> dict[str, Counts]:
    """Region → counts of the voxels of known class that have any probability of it.

    Args:
        path: of class probabilities, see `check_probabilities`.
        reference: class indices, `IGNORE` where it is not labelled.
        scheme: the classes.
    """
    found, _ = read_probabilities(path)
    inside = found.transform.apply(reference)  # outside the box no region is probable
    return {
        region: _counts(found.values[list(members)].sum(axis=0), inside, members)
        for region, members in scheme.regions.items()
    }


def _counts(
    probability: Float32[np.ndarray, "z y x"], reference: UInt8[np.ndarray, "z y x"], members: tuple[int, ...]
) -> Counts:
    counted = (probability > 0) & (reference != IGNORE)
    probability, true = probability[counted], in_classes(reference[counted], members)
    place = np.minimum(probability * BINS, BINS - 1).astype(int)
    voxels, there = (np.bincount(place[which], minlength=BINS).tolist() for which in (slice(None), true))
    sums = np.bincount(place, probability, minlength=BINS).tolist()
    return list(zip(voxels, sums, there, strict=True))
