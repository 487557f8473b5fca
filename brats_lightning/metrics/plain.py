"""Surface and volume scores of whole masks, per class and region, that belong to no challenge protocol."""

import numpy as np
from jaxtyping import Bool, Integer

from brats_lightning.core.labels import LabelScheme
from brats_lightning.metrics.lesions import bounding_box, region_mask
from brats_lightning.metrics.surfaces import Spacing, directed_distances, pooled_hd95, surface_dice, surface_points
from brats_lightning.metrics.voxel import score_names


def plain_scores(
    reference: Integer[np.ndarray, "x y z"],
    prediction: Integer[np.ndarray, "x y z"],
    spacing: Spacing,
    scheme: LabelScheme,
    tolerance: float = 1.0,
) -> dict[str, dict[str, float]]:
    """HD95, normalised surface Dice and volume error of every class and region, by the names of the voxel scores.

    ======================  ==========================  ===========  ===============
    case                    ``hd95`` in mm              ``nsd``      ``volume_error``
    ======================  ==========================  ===========  ===============
    both masks present      pooled 95th percentile      0 … 1        predicted − reference, in ml
    both empty              NaN: nothing to measure     NaN          0
    one empty               the volume's diagonal       0            as above
    ======================  ==========================  ===========  ===============

    Args:
        reference: class indices ``(x, y, z)``.
        prediction: likewise, on the same grid.
        spacing: of the axes in mm, in their order.
        scheme: the classes.
        tolerance: of the surface Dice in mm.
    """
    diagonal = float(np.linalg.norm(np.multiply(reference.shape, spacing)))
    box = bounding_box(reference, prediction)
    return {
        name: _scores(
            region_mask(reference[box], classes), region_mask(prediction[box], classes), spacing, tolerance, diagonal
        )
        for name, classes in score_names(scheme).items()
    }


def _scores(
    reference: Bool[np.ndarray, "x y z"],
    prediction: Bool[np.ndarray, "x y z"],
    spacing: Spacing,
    tolerance: float,
    diagonal: float,
) -> dict[str, float]:
    difference = int(np.count_nonzero(prediction)) - int(np.count_nonzero(reference))
    scores = {"hd95": np.nan, "nsd": np.nan, "volume_error": difference * float(np.prod(spacing)) / 1000}
    if reference.any() and prediction.any():
        a, b = surface_points(reference), surface_points(prediction)
        pair = directed_distances(a, b, spacing), directed_distances(b, a, spacing)
        scores.update(hd95=pooled_hd95(*pair), nsd=surface_dice(*pair, tolerance))
    elif reference.any() or prediction.any():
        scores.update(hd95=diagonal, nsd=0.0)
    return scores
