"""The lesion-wise BraTS-METS evaluators of 2023, 2024 and 2025, which differ in a few rules.

Sources: https://github.com/rachitsaluja/BraTS-2023-Metrics (BraTS-MET) and
https://github.com/rachitsaluja/BraTS-2024-Metrics (metrics_MET.py; its revision of 2025 adds RC and NSD).

Reference components that one dilation joins are one lesion. Every predicted lesion that touches the once-dilated lesion
is matched to it, whole, and may be matched to several. Arrays are in (x, y, z) order.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Integer

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import Ints, Triple
from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.metrics import surfaces
from brats_lightning.metrics.lesions import lesion_sizes, merged_components, overlaps, touching
from brats_lightning.metrics.surfaces import surface_dice, surface_distances, weighted_hd95

SMALLEST_LESION = 2.0  # mm³; reference lesions must be larger to count
SMALLEST_PREDICTION = 2  # voxels; merged predictions must be larger to stay
_EPSILON = 1e-8  # in the denominator of brats2025's NSD


@dataclass(frozen=True)
class Rules:
    """What distinguishes the three years.

    Attributes:
        merge_predictions: predictions are merged by dilation like the reference and tiny ones deleted; ET lesions
            around one NETC lesion are one.
        hd95_penalty: HD95 of a missed lesion or a false positive; None is the diagonal of the array in voxels.
        nsd_tolerances: in mm; a normalised surface Dice at each.
    """

    merge_predictions: bool
    hd95_penalty: float | None
    nsd_tolerances: tuple[float, ...]


RULES = {
    "brats2023": Rules(False, 374.0, ()),
    "brats2024": Rules(True, 374.0, ()),
    "brats2025": Rules(True, None, (0.5, 1.0)),
}


@dataclass(frozen=True)
class _Side:
    """The reference's or the prediction's region: its mask and its lesions, numbered 1 … n."""

    mask: Bool[np.ndarray, "x y z"]
    labels: Int32[np.ndarray, "x y z"]
    n: int


def score_regions(
    reference: Integer[np.ndarray, "x y z"],
    prediction: Integer[np.ndarray, "x y z"],
    spacing: Triple,
    scheme: LabelScheme,
    shape: Ints,
    rules: Rules,
) -> dict[str, dict[str, float]]:
    """Every column of every region.

    Args:
        reference: class indices in a box that holds the foreground of both masks and a voxel around it, as far as the
            volume goes (the dilated lesions are numbered from their first voxel).
        prediction: likewise.
        spacing: of the axes in mm.
        scheme: the classes.
        shape: of the whole volume; true negatives and brats2025's penalty depend on it.
        rules: the year's.
    """
    predicted_lesions = _merged_without_tiny if rules.merge_predictions else label_components
    scores = {}
    for region, classes in scheme.regions.items():
        a, b = in_classes(reference, classes), in_classes(prediction, classes)
        lesions, predicted = merged_components(a), predicted_lesions(b)
        if rules.merge_predictions and region == "et" and "netc" in scheme.names:
            netc = (scheme.index("netc"),)
            lesions = _joined_by_cores(*lesions, merged_components(in_classes(reference, netc))[0])
            predicted = _joined_by_cores(*predicted, predicted_lesions(in_classes(prediction, netc))[0])
        scores[region] = _score_region(_Side(a, *lesions), _Side(b, *predicted), spacing, shape, rules)
    return scores


def _merged_without_tiny(mask: Bool[np.ndarray, "x y z"]) -> tuple[Int32[np.ndarray, "x y z"], int]:
    """Merged components of more than two voxels; their numbers stay in order."""
    labels, n = merged_components(mask)
    keep = lesion_sizes(labels, n) > SMALLEST_PREDICTION
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels], int(keep.sum())


def _joined_by_cores(
    labels: Int32[np.ndarray, "x y z"], n: int, cores: Int32[np.ndarray, "x y z"]
) -> tuple[Int32[np.ndarray, "x y z"], int]:
    """ET lesions that touch the same NETC lesion become one; each goes to the lowest-numbered NETC it touches."""
    lesions, touched = touching(labels, cores)
    lesions, lowest = np.unique(lesions, return_index=True)  # the pairs are sorted
    target = np.arange(n + 1)
    target[lesions] = n + touched[lowest]
    numbers = np.unique(target, return_inverse=True)[1].astype(np.int32)
    return numbers[labels], int(numbers.max())


def _score_region(reference: _Side, prediction: _Side, spacing: Triple, shape: Ints, rules: Rules) -> dict[str, float]:
    penalty = rules.hd95_penalty or float(np.linalg.norm(shape))
    n_reference, n_prediction = int(reference.mask.sum()), int(prediction.mask.sum())
    neither, both = not (n_reference or n_prediction), bool(n_reference and n_prediction)
    reference_cells = surfaces.cell_surface(reference.mask, reference.labels, reference.n, spacing)
    predicted_cells = surfaces.cell_surface(prediction.mask, prediction.labels, prediction.n, spacing)
    reference_voxels = surfaces.voxel_surface(reference.mask, reference.labels, reference.n)
    predicted_voxels = surfaces.voxel_surface(prediction.mask, prediction.labels, prediction.n)

    sizes, predicted_sizes = lesion_sizes(reference.labels, reference.n), lesion_sizes(prediction.labels, prediction.n)
    counted = np.flatnonzero(sizes * spacing[0] * spacing[1] * spacing[2] > SMALLEST_LESION)
    lesion, partner = touching(reference.labels, prediction.labels)
    overlapping, _, voxels = overlaps(reference.labels, prediction.labels)  # what overlaps also touches
    found = np.intersect1d(counted, lesion)
    false_positives = prediction.n - len(np.unique(partner))
    lost = len(counted) - len(found) + false_positives

    dice, hd95 = [], []
    nsd: dict[float, list[float]] = {tolerance: [] for tolerance in rules.nsd_tolerances}
    for label in found.tolist():
        partners = partner[lesion == label].tolist()
        common = int(voxels[overlapping == label].sum())
        dice.append(2 * common / int(sizes[label] + predicted_sizes[partners].sum()))
        a, b = reference_cells.lesion([label]), predicted_cells.lesion(partners)
        hd95.append(weighted_hd95(a, b, *surface_distances(a, b, spacing)))
        if nsd:
            pair = surface_distances(reference_voxels.lesion([label]), predicted_voxels.lesion(partners), spacing)
            for tolerance, values in nsd.items():
                values.append(surface_dice(*pair, tolerance, _EPSILON))

    def lesion_wise(values: list[float], lost_score: float, of_nothing: float) -> float:
        """Mean over lesions and false positives; a lost one is a missed lesion or a false positive."""
        n = len(values) + lost
        return float((sum(values) + lost * lost_score) / n) if n else of_nothing

    tp = int((reference.mask & prediction.mask).sum())
    fp, fn = n_prediction - tp, n_reference - tp
    tn = math.prod(shape) - tp - fp - fn
    scores = {
        "LesionWise_Score_Dice": lesion_wise(dice, 0.0, 1.0),
        "LesionWise_Score_HD95": lesion_wise(hd95, penalty, 0.0),
        "Num_TP": float(len(found)),
        "Num_FP": float(false_positives),
        "Num_FN": float(len(counted) - len(found)),
        "Legacy_Dice": 1.0 if neither else 2 * tp / (n_reference + n_prediction),
        "Legacy_HD95": 0.0 if neither else penalty,
        "Sensitivity": 1.0 if neither else tp / max(n_reference, 1),
        "Specificity": tn / max(tn + fp, 1),
        "GT_Complete_Volume": n_reference * spacing[0] * spacing[1] * spacing[2],
    }
    if both:
        distances = surface_distances(reference_cells, predicted_cells, spacing)
        scores["Legacy_HD95"] = weighted_hd95(reference_cells, predicted_cells, *distances)
    if nsd:
        pair = surface_distances(reference_voxels, predicted_voxels, spacing)
        for tolerance, values in nsd.items():
            scores[f"LesionWise_Score_NSD @ {tolerance}"] = lesion_wise(values, 0.0, 1.0)
            whole = surface_dice(*pair, tolerance, _EPSILON) if both else float(neither)
            scores[f"Legacy NSD @ {tolerance}"] = whole
    return scores
