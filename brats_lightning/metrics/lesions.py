"""Lesions of a region: components, which of them meet, and a table of them for reports."""

from itertools import product

import numpy as np
from jaxtyping import Bool, Int, Int32, Integer
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from brats_lightning.metrics.surfaces import surface_mask

# Pairs with less Dice than this are no match; a pair without overlap costs a little more than one with none at all.
_SMALLEST_DICE = 1e-6


def region_mask(mask: Integer[np.ndarray, "a b c"], classes: tuple[int, ...]) -> Bool[np.ndarray, "a b c"]:
    """Voxels of the given classes; a few comparisons are quicker than a look-up on a whole volume."""
    region = mask == classes[0]
    for value in classes[1:]:
        region |= mask == value
    return region


def label_runs(mask: Bool[np.ndarray, "a b c"]) -> tuple[Int32[np.ndarray, "a b c"], int]:
    """26-connected components numbered 1 … n in C order, and n: the same as ``components.label_components``.

    It joins runs of foreground along the last axis, so its cost is that of the foreground, not of the volume; a brain
    with metastases is 98 % background.
    """
    labels = np.zeros(mask.shape, np.int32)
    voxels = np.flatnonzero(mask)
    if len(voxels) == 0:
        return labels, 0
    row, column = np.divmod(voxels, mask.shape[2])
    first = np.ones(len(voxels), bool)
    first[1:] = (np.diff(voxels) > 1) | (np.diff(row) > 0)
    last = np.append(first[1:], True)

    # Positions in a volume padded by one voxel, where no row follows directly on another.
    plane, line = np.divmod(row[first], mask.shape[1])
    height, width = mask.shape[1] + 2, mask.shape[2] + 2
    offset = ((plane + 1) * height + line + 1) * width + 1
    begin, end = offset + column[first], offset + column[last]

    joined = []
    for lines in (-1, -height - 1, -height, -height + 1):  # the four neighbouring rows before this one
        low = np.searchsorted(end, begin + lines * width - 1)
        high = np.searchsorted(begin, end + lines * width + 1, side="right")
        count = np.maximum(high - low, 0)
        run = np.repeat(np.arange(len(begin)), count)
        other = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
        joined.append((run, other))
    run, other = np.concatenate(joined, axis=1)
    graph = coo_array((np.ones(len(run), bool), (run, other)), shape=(len(begin), len(begin)))
    n, component = connected_components(graph, directed=False)
    numbers = np.empty(n, np.int32)
    numbers[component[np.sort(np.unique(component, return_index=True)[1])]] = np.arange(1, n + 1)
    labels.reshape(-1)[voxels] = np.repeat(numbers[component], np.diff(np.append(np.flatnonzero(first), len(voxels))))
    return labels, int(n)


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
    labels, n = label_runs(dilate(mask))
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
    padded = np.pad(b, 1)
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    surface = np.flatnonzero(surface_mask(a > 0))
    positions = (np.stack(np.unravel_index(surface, a.shape), axis=1) + 1) @ strides
    first, second, _ = overlaps(a, b)
    found = [first * (1 << 32) + second]
    for offset in product((-1, 0, 1), repeat=3):
        if 1 <= np.abs(offset).sum() <= 2:
            neighbour = padded.reshape(-1)[positions + strides @ offset]
            hit = neighbour > 0
            found.append(np.unique(a.reshape(-1)[surface[hit]] * np.int64(1 << 32) + neighbour[hit]))
    pairs = np.unique(np.concatenate(found))
    return np.divmod(pairs, 1 << 32)


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
