"""The BraTS-METS evaluator of 2026 (package ``brats-evaluation`` 0.0.10 over ``panoptica`` 2.1.7, configuration mets).

Lesions are 26-connected components, matched one to one by the greatest sum of Dice. "Large" lesions are scored by Dice,
HD95 and normalised surface Dice, small ones by whether they were detected. Arrays are in (z, y, x) order: where the
matching has ties, the numbering of the components decides.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import Triple
from brats_lightning.metrics.lesions import lesion_sizes, match_one_to_one
from brats_lightning.metrics.surfaces import pooled_hd95, surface_dice, surface_distances, voxel_surface

MISSED_HD95 = 373.0  # the diagonal of the SRI24 grid in voxels, rounded: what a missed lesion costs


@dataclass(frozen=True)
class Thresholds:
    """A lesion of at least ``volume`` mm³ is large; a matched one of at least ``overlap`` Dice is detected."""

    volume: float
    overlap: float


# The package's own defaults, and what the challenge's infrastructure passes to it.
THRESHOLDS = {"default": Thresholds(20.0, 0.1), "challenge": Thresholds(27.0, 0.2)}

_GROUP_COLUMNS = ("tp", "fp", "fn", "prec", "rec", "f1")
COLUMNS = (
    *(f"{group}_instance_{column}" for group in ("all", "large", "small") for column in _GROUP_COLUMNS),
    *(f"lesionwise_{score}_{statistic}" for score in ("dsc", "nsd", "hd95") for statistic in ("mean", "std")),
    *(f"global_{score}" for score in ("dsc", "nsd", "hd95")),
)


def missing_scores() -> dict[str, float]:
    """Scores of a region whose prediction is missing: 0, and 373 for the HD95s (but not for their spread)."""
    return {column: MISSED_HD95 if "hd95" in column and "std" not in column else 0.0 for column in COLUMNS}


def score_region(
    reference: Bool[np.ndarray, "z y x"],
    prediction: Bool[np.ndarray, "z y x"],
    spacing: Triple,
    thresholds: Thresholds,
) -> dict[str, float]:
    """Every column of one region.

    Args:
        reference: mask of the region; outside it is background.
        prediction: likewise.
        spacing: of the arrays' axes in mm, as the evaluator is to believe it.
        thresholds: of size and detection.
    """
    reference_labels, n_reference = label_components(reference)
    predicted_labels, n_prediction = label_components(prediction)
    reference_surface = voxel_surface(reference, reference_labels, n_reference)
    predicted_surface = voxel_surface(prediction, predicted_labels, n_prediction)
    matches = match_one_to_one(reference_labels, n_reference, predicted_labels, n_prediction)

    false_positives = n_prediction - len(matches)
    volumes = lesion_sizes(reference_labels, n_reference)[1:] * np.prod(spacing)
    large = volumes >= thresholds.volume
    detected = np.zeros(n_reference, bool)
    lesion_scores = [(0.0, 0.0, MISSED_HD95)] * false_positives  # a false positive of any size counts
    for lesion in range(1, n_reference + 1):
        partner, dice = matches.get(lesion, (0, 0.0))
        detected[lesion - 1] = dice >= thresholds.overlap and partner > 0
        if not large[lesion - 1]:
            continue
        if partner == 0:
            lesion_scores.append((0.0, 0.0, MISSED_HD95))
            continue
        pair = surface_distances(reference_surface.lesion([lesion]), predicted_surface.lesion([partner]), spacing)
        lesion_scores.append((dice, surface_dice(*pair, min(spacing)), pooled_hd95(*pair)))

    scores = dict.fromkeys(COLUMNS, np.nan)
    scores.update(_counts("all", len(matches), false_positives, n_reference - len(matches), np.nan))
    for group, members in (("large", large), ("small", ~large)):
        if members.any():  # against all false positives of the region, large and small
            tp, n = int(detected[members].sum()), int(members.sum())
            scores.update(_counts(group, tp, false_positives, n - tp, 0.0))
    if large.any():
        for name, values in zip(("dsc", "nsd", "hd95"), np.transpose(lesion_scores), strict=True):
            scores[f"lesionwise_{name}_mean"] = float(np.mean(values))
            scores[f"lesionwise_{name}_std"] = float(np.std(values))

    common = int(np.count_nonzero(reference & prediction))
    if common:
        pair = surface_distances(reference_surface, predicted_surface, (1.0, 1.0, 1.0))  # the spacing is not passed on
        scores["global_dsc"] = 2 * common / int(np.count_nonzero(reference) + np.count_nonzero(prediction))
        scores["global_nsd"] = surface_dice(*pair, 0.5)
        scores["global_hd95"] = pooled_hd95(*pair)
    elif n_reference or n_prediction:
        scores.update(global_dsc=0.0, global_nsd=0.0, global_hd95=MISSED_HD95)
    return scores


def _counts(group: str, tp: int, fp: int, fn: int, of_nothing: float) -> dict[str, float]:
    """Counts of a group of lesions and their ratios; ``of_nothing`` is the ratio of nothing to nothing."""
    ratios = {"prec": (tp, tp + fp), "rec": (tp, tp + fn), "f1": (2 * tp, 2 * tp + fp + fn)}
    values = {"tp": float(tp), "fp": float(fp), "fn": float(fn)}
    values |= {name: a / b if b else of_nothing for name, (a, b) in ratios.items()}
    return {f"{group}_instance_{name}": value for name, value in values.items()}
