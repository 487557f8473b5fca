"""The challenge's evaluators behind one function: scores of a case by the protocol's own column names.

The four protocols give different numbers for the same masks; a score is never compared across them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import numpy as np
from jaxtyping import Integer

from brats_lightning.core.geometry import Triple, bounding_box
from brats_lightning.core.labels import LabelScheme, in_classes, known_part
from brats_lightning.metrics import brats2023_to_2025, brats2026

PROTOCOLS = (*brats2023_to_2025.RULES, "brats2026")
DEFAULT_PROTOCOL = "brats2024"

# The columns logged in training, by their names there.
_LESION_2023 = {"lesion_dice": "LesionWise_Score_Dice", "lesion_hd95": "LesionWise_Score_HD95"}
HEADLINES = {
    "brats2023": _LESION_2023,
    "brats2024": _LESION_2023,
    "brats2025": _LESION_2023 | {"lesion_nsd": "LesionWise_Score_NSD @ 1.0"},
    "brats2026": {
        "lesion_dsc": "lesionwise_dsc_mean",
        "lesion_nsd": "lesionwise_nsd_mean",
        "lesion_hd95": "lesionwise_hd95_mean",
        "small_f1": "small_instance_f1",
        "large_f1": "large_instance_f1",
    },
}


class ScoreError(ValueError):
    """Masks or settings that cannot be scored."""


def score_case(
    reference: Integer[np.ndarray, "..."],
    prediction: Integer[np.ndarray, "..."] | None,
    spacing: Sequence[SupportsFloat],
    scheme: LabelScheme,
    protocol: str = DEFAULT_PROTOCOL,
    thresholds: str = "default",
    spacing_mode: str = "official",
) -> dict[str, dict[str, float]]:
    """Scores of one case as the challenge's program prints them: region → column → value.

    Args:
        reference: class indices ``(x, y, z)``, in nibabel's axis order; where it is `IGNORE`, both masks count as
            background.
        prediction: likewise, on the same grid. None is a missing one: brats2026 gives 0 in every column and an HD95 of
            373; the older protocols have no rule for it and score it as an empty mask, which is right where the region
            is absent from the reference too.
        spacing: of x, y and z in mm, as the NIfTI header holds it.
        scheme: the classes; its regions are scored.
        protocol: ``brats2023``, ``brats2024``, ``brats2025`` or ``brats2026``.
        thresholds: of brats2026: ``default`` (the package's: large from 20 mm³, detected from Dice 0.1) or
            ``challenge`` (27 mm³ and 0.2).
        spacing_mode: of brats2026: the official program swaps the spacings of x and z. ``official`` does so too, the
            challenge's number; ``correct`` does not. Equal where the two spacings are.

    Raises:
        ScoreError: masks that are not 3D or differ in shape, a spacing that is not positive, an unknown setting.
    """
    x, y, z = _double(spacing)
    _check(reference, prediction, protocol, thresholds, spacing_mode)
    if prediction is None:
        if protocol == "brats2026":
            return {region: brats2026.missing_scores() for region in scheme.regions}
        prediction = np.zeros_like(reference)
    reference, prediction = known_part(reference, prediction)
    shape = reference.shape
    box = bounding_box(reference, prediction, margin=1)
    reference, prediction = reference[box], prediction[box]

    if protocol in brats2023_to_2025.RULES:
        masks = np.ascontiguousarray(reference), np.ascontiguousarray(prediction)
        return brats2023_to_2025.score_regions(*masks, (x, y, z), scheme, shape, brats2023_to_2025.RULES[protocol])
    axis_spacing = (x, y, z) if spacing_mode == "official" else (z, y, x)
    a, b = np.ascontiguousarray(reference.T), np.ascontiguousarray(prediction.T)
    limits = brats2026.THRESHOLDS[thresholds]
    return {
        region: brats2026.score_region(in_classes(a, classes), in_classes(b, classes), axis_spacing, limits)
        for region, classes in scheme.regions.items()
    }


def headline_columns(protocol: str) -> tuple[str, ...]:
    """A protocol's main columns, its lesion-wise Dice first."""
    return tuple(HEADLINES[protocol].values())


def headline_names(scheme: LabelScheme, protocol: str) -> list[str]:
    """The names that `headline_scores` gives.

    Raises:
        ScoreError: an unknown protocol.
    """
    if protocol not in HEADLINES:
        raise ScoreError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return [f"{protocol}/{short}_{region}" for short in HEADLINES[protocol] for region in (*scheme.regions, "mean")]


def headline_scores(scores: Mapping[str, Mapping[str, float]], scheme: LabelScheme, protocol: str) -> dict[str, float]:
    """The scores logged in training: ``brats2024/lesion_dice_et`` … and their mean over regions, ``…_mean``.

    Args:
        scores: region → column → value, as `score_case` gives them.
        scheme: the classes.
        protocol: of the scores.
    """
    found: dict[str, float] = {}
    for short, column in HEADLINES[protocol].items():
        values = {region: scores[region][column] for region in scheme.regions}
        values["mean"] = mean_without_nan([values[region] for region in scheme.headline_regions])
        found |= {f"{protocol}/{short}_{region}": value for region, value in values.items()}
    return found


def mean_without_nan(values: Sequence[float]) -> float:
    """Mean of the values that are defined; NaN if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _double(spacing: Sequence[SupportsFloat]) -> Triple:
    """As float64: products of a header's float32 would round."""
    values = tuple(float(value) for value in spacing)
    if len(values) != 3 or not all(math.isfinite(value) and value > 0 for value in values):
        raise ScoreError(f"the spacing must be three positive numbers in mm, got {values}")
    return values


def _check(
    reference: np.ndarray, prediction: np.ndarray | None, protocol: str, thresholds: str, spacing_mode: str
) -> None:
    if reference.ndim != 3:
        raise ScoreError(f"the reference must be a 3D mask, got shape {reference.shape}")
    if prediction is not None and prediction.shape != reference.shape:
        raise ScoreError(
            f"the prediction's shape {prediction.shape} differs from the reference's {reference.shape}; "
            "write predictions on the grid of their input"
        )
    for name, value, known in (
        ("protocol", protocol, PROTOCOLS),
        ("thresholds", thresholds, tuple(brats2026.THRESHOLDS)),
        ("spacing_mode", spacing_mode, ("official", "correct")),
    ):
        if value not in known:
            raise ScoreError(f"{name} must be one of {', '.join(known)}, got {value!r}")
