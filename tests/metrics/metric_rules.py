"""The challenge's rules once more, slowly and literally: whole volumes, one lesion at a time, all pairs of points."""

import math
from functools import lru_cache
from itertools import permutations, product

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

CUBE = np.ones((3, 3, 3), bool)
EIGHTEEN = ndimage.generate_binary_structure(3, 2)
CROSS = ndimage.generate_binary_structure(3, 1)
REGIONS = {"et": (3,), "tc": (1, 3), "wt": (1, 2, 3)}

# Area vectors × 8 of the triangles of DeepMind's table for one code of each class; symmetry gives the other codes.
# Keys list the foreground corners.
AREA_VECTORS = {
    ("000",): [(1, 1, 1)],
    ("000", "001"): [(2, 2, 0), (2, 2, 0)],
    ("000", "011"): [(1, 1, 1)] * 2,
    ("000", "111"): [(1, 1, 1)] * 2,
    ("000", "001", "010"): [(4, 0, 0), (2, 2, 2), (1, 1, 1)],
    ("000", "001", "110"): [(2, 2, 0), (2, 2, 0), (1, 1, 1)],
    ("011", "101", "110"): [(1, 1, 1)] * 3,
    ("000", "001", "010", "011"): [(4, 0, 0), (4, 0, 0)],
    ("000", "001", "010", "100"): [(1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1)],
    ("000", "001", "010", "101"): [(1, 1, 1), (3, 3, 3), (2, 0, 2), (0, 2, 2)],
    ("000", "001", "010", "111"): [(4, 0, 0), (2, 2, 2), (1, 1, 1), (1, 1, 1)],
    ("000", "001", "110", "111"): [(2, 2, 0)] * 4,
    ("000", "011", "101", "110"): [(1, 1, 1)] * 4,
}


@lru_cache
def area_table(spacing):
    """Areas by neighbour code: bit 4i + 2j + k is corner (i, j, k)."""
    areas = np.full(256, np.nan)
    areas[[0, 255]] = 0
    for corners, vectors in AREA_VECTORS.items():
        for axes in permutations(range(3)):
            for flips in product((0, 1), repeat=3):
                code = 0
                for corner in corners:
                    i, j, k = (int(corner[axis]) ^ flip for axis, flip in zip(axes, flips, strict=True))
                    code |= 1 << (4 * i + 2 * j + k)
                area = 0.0
                for vector in vectors:
                    x, y, z = (vector[axis] / 8 for axis in axes)
                    grown = (x * spacing[1] * spacing[2], y * spacing[0] * spacing[2], z * spacing[0] * spacing[1])
                    area += np.linalg.norm(grown)
                for same in (code, 255 - code):
                    assert np.isnan(areas[same]) or abs(areas[same] - area) < 1e-12
                    areas[same] = area
    return areas


def surface_voxels(mask):
    return np.argwhere(mask ^ ndimage.binary_erosion(mask, CROSS))


def surface_cells(mask, spacing):
    """Positions and areas of the cells that are neither empty nor full."""
    blocks = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2)).reshape(*np.add(mask.shape, 1), 8)
    cells = np.argwhere(blocks.any(axis=3) & ~blocks.all(axis=3))
    return cells, area_table(spacing)[blocks[tuple(cells.T)] @ (1 << np.arange(8))]


def distances(a, b, spacing):
    return cdist(a * np.array(spacing), b * np.array(spacing)).min(axis=1)


def deepmind_hd95(a, b, spacing):
    if not a.any() or not b.any():
        return math.inf
    (a_cells, a_areas), (b_cells, b_areas) = surface_cells(a, spacing), surface_cells(b, spacing)
    found = []
    for values, areas in (
        (distances(a_cells, b_cells, spacing), a_areas),
        (distances(b_cells, a_cells, spacing), b_areas),
    ):
        order = np.lexsort((areas, values))
        reached = np.cumsum(areas[order]) / np.sum(areas[order])  # compared exactly: the boundary does occur
        found.append(next(value for value, share in zip(values[order], reached, strict=True) if share >= 0.95))
    return max(found)


def nsd(a, b, spacing, tolerance, epsilon):
    a_points, b_points = surface_voxels(a), surface_voxels(b)
    ab, ba = distances(a_points, b_points, spacing), distances(b_points, a_points, spacing)
    within = [np.sum(d <= tolerance + 1e-9) / len(d) for d in (ab, ba)]
    beyond = [np.sum(d > tolerance + 1e-9) / len(d) for d in (ab, ba)]
    return sum(within) / (sum(within) + sum(beyond) + epsilon)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# -- brats2026 --------------------------------------------------------------------------------------------------------


def brats2026(reference, prediction, spacing, volume=20.0, overlap=0.1):
    """Masks (x, y, z); the spacing goes to the (z, y, x) arrays as it is, as in the official program."""
    reference, prediction = reference.T, prediction.T
    return {
        name: _region_2026(reference, prediction, classes, spacing, volume, overlap)
        for name, classes in REGIONS.items()
    }


def _region_2026(reference, prediction, classes, spacing, volume, overlap):
    a, b = np.isin(reference, classes), np.isin(prediction, classes)
    (la, na), (lb, nb) = ndimage.label(a, CUBE), ndimage.label(b, CUBE)
    cost = np.full((na, nb), 1.000001)
    for i, j in product(range(na), range(nb)):
        score = dice(la == i + 1, lb == j + 1)
        if score >= 1e-6:
            cost[i, j] = 1 - score
    pairs = [(i + 1, j + 1) for i, j in zip(*linear_sum_assignment(cost), strict=True) if cost[i, j] < 1]
    tp, fp, fn = len(pairs), nb - len(pairs), na - len(pairs)
    out = {"all_instance_tp": tp, "all_instance_fp": fp, "all_instance_fn": fn}
    out["all_instance_prec"] = tp / (tp + fp) if tp + fp else math.nan
    out["all_instance_rec"] = tp / (tp + fn) if tp + fn else math.nan
    out["all_instance_f1"] = tp / (tp + 0.5 * fp + 0.5 * fn) if tp + fp + fn else math.nan
    partner = dict(pairs)
    rows = []
    counts = {"large": [0, 0], "small": [0, 0]}  # detected, not detected
    for i in range(1, na + 1):
        lesion = la == i
        group = "large" if lesion.sum() * np.prod(spacing) >= volume else "small"
        score = dice(lesion, lb == partner[i]) if i in partner else 0.0
        counts[group][0 if i in partner and score >= overlap else 1] += 1
        if group == "large" and i in partner:
            match = lb == partner[i]
            p, q = surface_voxels(lesion), surface_voxels(match)
            pooled = np.concatenate([distances(p, q, spacing), distances(q, p, spacing)])
            rows.append((score, nsd(lesion, match, spacing, min(spacing), 0), np.percentile(pooled, 95)))
        elif group == "large":
            rows.append((0, 0, 373))
    for group, (detected, rest) in counts.items():
        some = detected + rest > 0
        values = {
            "tp": detected,
            "fp": fp,
            "fn": rest,
            "prec": detected / (detected + fp) if detected + fp else 0,
            "rec": detected / (detected + rest) if some else 0,
            "f1": 2 * detected / (2 * detected + fp + rest) if some else 0,
        }
        out.update({f"{group}_instance_{key}": value if some else math.nan for key, value in values.items()})
    for column, name in enumerate(("dsc", "nsd", "hd95")):
        values = [row[column] for row in rows] + [373 if name == "hd95" else 0] * fp
        out[f"lesionwise_{name}_mean"] = np.mean(values) if sum(counts["large"]) else math.nan
        out[f"lesionwise_{name}_std"] = np.std(values) if sum(counts["large"]) else math.nan
    if not a.any() and not b.any():
        whole = (math.nan,) * 3
    elif not (a & b).any():
        whole = (0, 0, 373)
    else:
        p, q = surface_voxels(a), surface_voxels(b)
        pooled = np.concatenate([distances(p, q, (1, 1, 1)), distances(q, p, (1, 1, 1))])
        whole = (dice(a, b), nsd(a, b, (1, 1, 1), 0.5, 0), np.percentile(pooled, 95))
    out.update(zip(("global_dsc", "global_nsd", "global_hd95"), whole, strict=True))
    return out


# -- brats2023 to brats2025 -------------------------------------------------------------------------------------------


def lesion_wise(reference, prediction, spacing, protocol):
    out = {}
    for name, classes in REGIONS.items():
        a, b = np.isin(reference, classes), np.isin(prediction, classes)
        la, lb = (
            _lesions(reference, classes, name, protocol, False),
            _lesions(prediction, classes, name, protocol, True),
        )
        out[name] = _region_2023(a, b, la, lb, spacing, protocol)
    return out


def _lesions(mask, classes, region, protocol, predicted):
    labels = _merged(np.isin(mask, classes), protocol, predicted)
    if region != "et" or protocol == "brats2023":
        return labels
    cores = _merged(mask == 1, protocol, predicted)
    pairs = []
    for lesion in np.unique(labels[labels > 0]):
        near = ndimage.binary_dilation(labels == lesion, EIGHTEEN)
        pairs += [(lesion, core) for core in np.unique(cores[cores > 0]) if (near & (cores == core)).any()]
    if len(pairs) <= 1:
        return labels
    joined, top = labels.copy(), labels.max()
    for lesion in {lesion for lesion, _ in pairs}:
        joined[labels == lesion] = top + min(core for other, core in pairs if other == lesion)
    return joined


def _merged(mask, protocol, predicted):
    if predicted and protocol == "brats2023":
        return ndimage.label(mask, CUBE)[0]
    labels = ndimage.label(ndimage.binary_dilation(mask, EIGHTEEN), CUBE)[0] * mask
    if predicted:
        for label in np.unique(labels[labels > 0]):
            if (labels == label).sum() <= 2:
                labels[labels == label] = 0
    return labels


def _region_2023(a, b, la, lb, spacing, protocol):
    penalty = math.sqrt(sum(n**2 for n in a.shape)) if protocol == "brats2025" else 374
    tolerances = (0.5, 1.0) if protocol == "brats2025" else ()
    touched, rows, tp, fn = set(), [], 0, 0
    for lesion in np.unique(la[la > 0]):
        mask = la == lesion
        partners = set(np.unique(lb[ndimage.binary_dilation(mask, EIGHTEEN)]).tolist()) - {0}
        touched |= partners
        if mask.sum() * math.prod(spacing) <= 2:
            continue
        union = np.isin(lb, list(partners))
        hd95 = deepmind_hd95(mask, union, spacing)
        surface = [nsd(mask, union, spacing, t, 1e-8) if partners else 0.0 for t in tolerances]
        rows.append((dice(mask, union), penalty if hd95 == math.inf else hd95, *surface))
        tp, fn = tp + bool(partners), fn + (not partners)
    fp = len(set(np.unique(lb).tolist()) - {0} - touched)
    n = len(rows) + fp
    both_empty = not a.any() and not b.any()
    out = {
        "Num_TP": tp,
        "Num_FP": fp,
        "Num_FN": fn,
        "LesionWise_Score_Dice": sum(row[0] for row in rows) / n if n else 1,
        "LesionWise_Score_HD95": (sum(row[1] for row in rows) + penalty * fp) / n if n else 0,
        "GT_Complete_Volume": a.sum() * math.prod(spacing),
        "Legacy_Dice": 1 if both_empty else dice(a, b),
        "Legacy_HD95": 0 if both_empty else penalty,
        "Sensitivity": 1 if both_empty else (a & b).sum() / a.sum() if a.any() else 0,
        "Specificity": (~a & ~b).sum() / (~a).sum() if (~a).any() else 0,
    }
    if a.any() and b.any():
        out["Legacy_HD95"] = deepmind_hd95(a, b, spacing)
    for column, tolerance in enumerate(tolerances, 2):
        out[f"LesionWise_Score_NSD @ {tolerance}"] = sum(row[column] for row in rows) / n if n else 1
        whole = nsd(a, b, spacing, tolerance, 1e-8) if a.any() and b.any() else float(both_empty)
        out[f"Legacy NSD @ {tolerance}"] = whole
    return out
