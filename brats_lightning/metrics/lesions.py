"""Lesions of a region: components, which of them overlap or touch, and a table for reports."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Int, Int32, Integer
from scipy.optimize import linear_sum_assignment

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import Ints, Triple, bounding_box
from brats_lightning.core.labels import in_classes
from brats_lightning.metrics.surfaces import surface_points

# Pairs with less Dice than this do not match; a pair without overlap costs a little more than no Dice at all.
_SMALLEST_DICE = 1e-6


def dilate(mask: Bool[np.ndarray, "a b c"]) -> Bool[np.ndarray, "a b c"]:
    """One dilation by the 18-neighbourhood: the union of 3×3 squares in the three planes."""
    x, y = _widen(mask, 0), _widen(mask, 1)
    return _widen(x, 1) | _widen(x, 2) | _widen(y, 2)


def _widen(mask: np.ndarray, axis: int) -> np.ndarray:
    wide = mask.copy()
    target, source = np.moveaxis(wide, axis, 0), np.moveaxis(mask, axis, 0)
    target[1:] |= source[:-1]
    target[:-1] |= source[1:]
    return wide


def merged_components(mask: Bool[np.ndarray, "a b c"]) -> tuple[Int32[np.ndarray, "a b c"], int]:
    """Lesions as BraTS 2023–2025 count them: components that one dilation joins are one (a gap of up to two voxels)."""
    labels, n = label_components(dilate(mask))
    labels[~mask] = 0
    return labels, n


def lesion_sizes(labels: Int32[np.ndarray, "a b c"], n: int) -> Int[np.ndarray, " {n}+1"]:
    """Voxels of each label; entry 0 is 0."""
    return np.bincount(labels[labels > 0], minlength=n + 1)


def overlaps(
    reference: Int32[np.ndarray, "a b c"], prediction: Int32[np.ndarray, "a b c"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Pairs of labels that share voxels, and how many: reference label, predicted label, voxels."""
    both = np.flatnonzero((reference > 0) & (prediction > 0))
    a, b = reference.reshape(-1)[both], prediction.reshape(-1)[both]
    base = int(b.max(initial=0)) + 1
    pairs, counts = np.unique(a.astype(np.int64) * base + b, return_counts=True)
    return *np.divmod(pairs, base), counts


def touching(
    a: Int32[np.ndarray, "a b c"], b: Int32[np.ndarray, "a b c"]
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Pairs of labels, sorted, of which the second has a voxel in one dilation (18-neighbourhood) of the first.

    No two labels of ``a`` may be face neighbours, so that a lesion's surface is the mask's.
    """
    points, padded = surface_points(a > 0), np.pad(b, 1)
    lesions = a[tuple(points.T)]
    found = [np.stack(overlaps(a, b)[:2])]
    for offset in product((-1, 0, 1), repeat=3):
        if 1 <= np.abs(offset).sum() <= 2:
            neighbours = padded[tuple((points + 1 + offset).T)]
            found.append(np.stack([lesions, neighbours])[:, neighbours > 0])
    pairs = np.unique(np.concatenate(found, axis=1), axis=1)
    return pairs[0], pairs[1]


def match_one_to_one(
    reference: Int32[np.ndarray, "a b c"], n_reference: int, prediction: Int32[np.ndarray, "a b c"], n_prediction: int
) -> dict[int, tuple[int, float]]:
    """The one-to-one matching of overlapping lesions with the greatest sum of Dice: reference → (predicted, Dice).

    The rule of brats2026 (panoptica's maximum bipartite matching). Equal sums are decided by the numbering.
    """
    a, b, common = overlaps(reference, prediction)
    dice = 2.0 * common / (lesion_sizes(reference, n_reference)[a] + lesion_sizes(prediction, n_prediction)[b])
    cost = np.full((n_reference, n_prediction), 1 + _SMALLEST_DICE)
    enough = dice >= _SMALLEST_DICE
    cost[a[enough] - 1, b[enough] - 1] = 1 - dice[enough]
    scores = dict(zip(zip(a.tolist(), b.tolist(), strict=True), dice.tolist(), strict=True))
    rows, columns = linear_sum_assignment(cost)
    return {
        int(i) + 1: (int(j) + 1, scores[int(i) + 1, int(j) + 1])
        for i, j in zip(rows, columns, strict=True)
        if cost[i, j] < 1
    }


@dataclass(frozen=True)
class LesionRow:
    """One reference lesion, or one predicted lesion that matches none.

    Attributes:
        lesion: its number among the reference's (or the false positives), from 1.
        false_positive: whether it is in the prediction only.
        volume: mm³.
        detected: matched with at least the required Dice; False for a false positive.
        dice: with its match; 0 without one.
        centre: voxel ``(x, y, z)`` nearest to the centre of mass.
    """

    lesion: int
    false_positive: bool
    volume: float
    detected: bool
    dice: float
    centre: Ints


def lesion_table(
    reference: Integer[np.ndarray, "x y z"],
    prediction: Integer[np.ndarray, "x y z"],
    spacing: Triple,
    classes: tuple[int, ...],
    overlap: float = 0.1,
) -> list[LesionRow]:
    """The lesions of one region: the reference's, then the false positives.

    Lesions are 26-connected components, matched one to one as in brats2026; they are numbered in C order.

    Args:
        reference: class indices.
        prediction: likewise, on the same grid.
        spacing: of the axes in mm, in their order.
        classes: of the region.
        overlap: the Dice from which a matched lesion counts as detected.
    """
    box = bounding_box(reference, prediction)
    labels, n = label_components(in_classes(reference[box], classes))
    predicted, n_predicted = label_components(in_classes(prediction[box], classes))
    matches = match_one_to_one(labels, n, predicted, n_predicted)
    corner = np.array([part.start for part in box])
    voxel = float(np.prod(spacing))
    rows = []
    for number, (size, centre) in enumerate(_sizes_and_centres(labels, n, corner), 1):
        partner, dice = matches.get(number, (0, 0.0))
        rows.append(LesionRow(number, False, size * voxel, partner > 0 and dice >= overlap, dice, centre))
    matched = {partner for partner, _ in matches.values()}
    for number, (size, centre) in enumerate(_sizes_and_centres(predicted, n_predicted, corner), 1):
        if number not in matched:
            rows.append(LesionRow(len(rows) - n + 1, True, size * voxel, False, 0.0, centre))
    return rows


def _sizes_and_centres(labels: np.ndarray, n: int, corner: np.ndarray) -> list[tuple[int, Ints]]:
    voxels = np.flatnonzero(labels)
    of_voxel = labels.reshape(-1)[voxels]
    sizes = np.bincount(of_voxel, minlength=n + 1)[1:]
    axes = np.unravel_index(voxels, labels.shape)
    sums = [np.bincount(of_voxel, weights=positions, minlength=n + 1)[1:] for positions in axes]
    centres = np.rint(np.stack(sums, axis=1) / sizes[:, None] + corner).astype(int)
    return [(size, (x, y, z)) for size, (x, y, z) in zip(sizes.tolist(), centres.tolist(), strict=True)]
