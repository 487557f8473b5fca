"""A look at the voxels of a cached case: its lesions, and what betrays a mistake in its files.

What it finds is small enough to be kept for thousands of cases. Of the images only eight slices and at most `LOOKED_AT`
labelled voxels are read, of the mask everything.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, Int, UInt16

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import nonzero_box
from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.runtime.console import each_shown

SLICES = 8  # of each image
COARSE, FINE = 16, 64  # cells along y and x of these slices
LOOKED_AT = 2000  # labelled voxels at which images are read
MIRRORS = ("upside down", "front to back", "left to right")  # by axis
# Where lesions are brighter than healthy tissue: in FLAIR all that belongs to a tumour, in T1c what enhances.
_BRIGHT = {"t2f": ("netc", "snfh", "et"), "t1c": ("et",)}
_ENOUGH = 20  # voxels for a mean
_PROFILE = (0.01, 0.05, 0.25, 0.75, 0.95, 0.99)
_SHARES = (0.02, 0.1, 0.5, 0.9, 0.98)  # between the groups of voxels of which a mean rank is taken

Contrasts = dict[tuple[str, str], np.ndarray]  # see `contrasts`


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    case: CachedCase
    volumes: dict[str, list[float]]  # region → volumes in mm³ of its lesions (26-connected components)
    coarse: Float32[np.ndarray, "c z y x"]  # mean of each sequence in the cells of the brain's box, NaN outside
    contrasts: Contrasts
    outside: float  # fraction of the labelled voxels where every sequence is 0
    mirrored: dict[str, float]  # of `MIRRORS`, see `brightness_lost`; without those that cannot be judged


def inspect_cases(cases: Sequence[CachedCase], scheme: LabelScheme, workers: int = 1) -> list[Inspection]:
    """An `Inspection` of each case, in their order, by several threads."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(each_shown("looking", pool.map(partial(inspect_case, scheme=scheme), cases), len(cases)))


def inspect_case(case: CachedCase, scheme: LabelScheme) -> Inspection:
    """Look at one case."""
    image = case.image()
    positions = case.positions()
    positions = positions[:: max(1, -(-len(positions) // LOOKED_AT))]
    outside = float((image[:, *positions[:, 2:].T] == 0).all(axis=0).mean()) if len(positions) else 0.0
    slices = some_slices(image)
    return Inspection(
        case,
        region_volumes(case, scheme),
        cell_means(slices, COARSE),
        contrasts(cell_means(slices, FINE), case.modalities),
        outside,
        brightness_lost(case, image, positions, scheme),
    )


def region_volumes(case: CachedCase, scheme: LabelScheme) -> dict[str, list[float]]:
    """Region → volumes in mm³ of its 26-connected components; empty without a mask."""
    if not case.has_mask:
        return {}
    mask = case.mask()
    part = np.ascontiguousarray(mask[nonzero_box(mask)])
    voxel = math.prod(case.spacing)
    volumes = {}
    for region, classes in scheme.regions.items():
        labels, n = label_components(in_classes(part, classes))
        volumes[region] = (np.bincount(labels.reshape(-1), minlength=n + 1)[1:] * voxel).tolist()
    return volumes


def some_slices(image: UInt16[np.ndarray, "c z y x"]) -> Float32[np.ndarray, "c 8 y x"]:
    """The middle slice of each eighth of the volume."""
    return image[:, ((np.arange(SLICES) + 0.5) * image.shape[1] / SLICES).astype(int)].astype(np.float32)


def cell_means(slices: Float32[np.ndarray, "c s y x"], count: int) -> Float32[np.ndarray, "c s h w"]:
    """Mean of each cell of the slices; NaN where more than half of it is 0, outside the brain.

    There are ``count`` cells along y and x, or as many as there are voxels.
    """
    rows, columns = (_belonging(min(count, length), length) for length in slices.shape[2:])
    sums = rows @ slices @ columns.T
    inside = rows @ (slices > 0).astype(np.float32) @ columns.T
    size = rows.sum(axis=1)[:, None] * columns.sum(axis=1)
    return np.where(inside >= 0.5 * size, sums / np.maximum(inside, 1), np.float32(np.nan))


def _belonging(cells: int, length: int) -> Float32[np.ndarray, "cells length"]:
    """1 where a voxel belongs to a cell."""
    return (np.arange(length) * cells // length == np.arange(cells)[:, None]).astype(np.float32)


def contrasts(cells: Float32[np.ndarray, "c s h w"], sequences: Sequence[str]) -> Contrasts:
    """What the contrast of each sequence is like, whatever its scale.

    ``(one, one)`` is the shape of its histogram: percentiles relative to the median and the middle 80 %. ``(one,
    other)`` are the mean ranks, 0 … 1, that another sequence has where this one is darkest … brightest: fluid, for
    example, is bright in T2w and dark in T1 and FLAIR.

    Args:
        cells: means by sequence, NaN outside the brain.
        sequences: of the channels.
    """
    brain = cells[:, ~np.isnan(cells).any(axis=0)]
    n = brain.shape[1]
    if n < _ENOUGH:
        return {}
    order = dict(zip(sequences, np.argsort(brain, axis=1), strict=True))
    ranks = {name: np.empty(n) for name in sequences}
    for name, places in order.items():
        ranks[name][places] = (np.arange(n) + 0.5) / n
    bounds = [0, *(int(share * n) for share in _SHARES), n]
    table: Contrasts = {}
    for one, values in zip(sequences, brain, strict=True):
        low, middle, high, *levels = (
            float(values[order[one][round(level * (n - 1))]]) for level in (0.1, 0.5, 0.9, *_PROFILE)
        )
        table[one, one] = (np.array(levels) - middle) / max(high - low, 1e-9)
        for other in sequences:
            if other != one:
                sums = np.append(0, np.cumsum(ranks[other][order[one]]))[bounds]
                table[one, other] = np.diff(sums) / np.maximum(np.diff(bounds), 1)
    return table


def brightness_lost(
    case: CachedCase, image: UInt16[np.ndarray, "c z y x"], positions: Int[np.ndarray, "n 5"], scheme: LabelScheme
) -> dict[str, float]:
    """How much brighter the lesions are than their mirror images, in standard deviations of the brain, by `MIRRORS`.

    Brains are nearly alike on both sides, so a mask in the wrong half lies on healthy tissue, and its mirror image on
    the lesion. Mean over FLAIR and T1c of the mean over those labelled voxels whose mirror image lies in the brain.
    """
    means: dict[str, list[float]] = {}
    for sequence, names in _BRIGHT.items():
        if sequence not in case.modalities:
            continue
        channel = image[case.modalities.index(sequence)]
        statistics = case.intensities[sequence]
        bright = np.isin(positions[:, 1], [scheme.index(name) for name in names if name in scheme.names])
        here = positions[bright, 2:].astype(int)
        values = channel[*here.T].astype(np.float64)
        for axis, name in enumerate(MIRRORS):
            there = here.copy()
            there[:, axis] = channel.shape[axis] - 1 - here[:, axis]
            mirror = channel[*there.T].astype(np.float64)
            judged = (values > 0) & (mirror > 0)
            if judged.sum() >= _ENOUGH and statistics.std > 0:
                lost = (values - mirror)[judged].mean() * statistics.scale / statistics.std
                means.setdefault(name, []).append(float(lost))
    return {name: float(np.mean(lost)) for name, lost in means.items()}
