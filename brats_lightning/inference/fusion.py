"""One mask from several predictions of a case: of their probabilities, or by a vote of their masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from brats_lightning.core.geometry import GridTransform
from brats_lightning.core.labels import LabelScheme
from brats_lightning.data.probabilities import Probabilities
from brats_lightning.inference.postprocessing import Postprocessing

FUSIONS = ("mean", "weighted", "majority", "staple")


class FusionError(ValueError):
    """Settings of a fusion that cannot be applied."""


@dataclass(frozen=True)
class Fusion:
    """How the predictions of a case become one mask.

    ``mean`` and ``weighted`` average probabilities, which then are post-processed. ``majority`` and ``staple`` fuse
    masks, each post-processed by itself: a voxel gets the class with most votes, of equals the most probable one on
    average; or by STAPLE (Warfield et al. 2004, of SimpleITK), which estimates how reliable each mask is.

    Args:
        method: one of `FUSIONS`.
        weights: of the predictions, for ``weighted``; only their ratio counts.

    Raises:
        FusionError: an unknown method, or invalid weights.
    """

    method: str = "mean"
    weights: Sequence[int | float] | None = None

    def __post_init__(self) -> None:
        if self.method not in FUSIONS:
            raise FusionError(f"fusion must be one of {', '.join(FUSIONS)}, got {self.method!r}")
        if (self.method == "weighted") != (self.weights is not None):
            raise FusionError(f"weights belong to fusion=weighted, got fusion={self.method} weights={self.weights}")
        if self.weights is not None and (min(self.weights, default=0) < 0 or not sum(self.weights) > 0):
            raise FusionError(f"weights must be 0 or more, and some of them above 0, got {list(self.weights)}")

    def check(self, predictions: int) -> None:
        """Raise a FusionError unless this many predictions can be fused."""
        if self.weights is not None and len(self.weights) != predictions:
            raise FusionError(f"weights={list(self.weights)} must have one for each of {predictions} predictions")
        if self.method == "staple":
            _simpleitk()

    def __call__(
        self, found: Sequence[Probabilities], rules: Sequence[Postprocessing], scheme: LabelScheme
    ) -> tuple[UInt8[np.ndarray, "z y x"], Probabilities]:
        """The mask on the box around all predictions, and the mean of the probabilities there.

        A single prediction is post-processed as it is.

        Args:
            found: the predictions, on boxes of one grid.
            rules: of post-processing, with the decoding of each prediction; a mean takes the first one's.
            scheme: the classes.
        """
        if len(found) == 1:
            return rules[0](found[0].values, found[0].transform.spacing, scheme), found[0]
        mean = average(found, self.weights)
        box = mean.transform
        if self.method in ("mean", "weighted"):
            return rules[0](mean.values, box.spacing, scheme), mean
        masks = [
            _placed(own(one.values, box.spacing, scheme), one.transform, box)
            for one, own in zip(found, rules, strict=True)
        ]
        labels = _majority(masks, mean.values)
        return (_staple(masks, labels, scheme.num_classes) if self.method == "staple" else labels), mean


def average(found: Sequence[Probabilities], weights: Sequence[int | float] | None = None) -> Probabilities:
    """The weighted mean of several predictions on the box around them; a single one as it is."""
    if len(found) == 1:
        return found[0]
    box = common_box([one.transform for one in found])
    shares = np.array(weights or [1] * len(found), np.float64)
    mean = np.zeros((len(found[0].values), *box.shape), np.float32)
    for one, share in zip(found, shares / shares.sum(), strict=True):
        values = one.on(box).values
        values *= np.float32(share)
        mean += values
    return Probabilities(mean, box)


def common_box(boxes: Sequence[GridTransform]) -> GridTransform:
    """The smallest box that holds several exact ones of the same grid."""
    first = boxes[0]
    low = [int(min(origins)) for origins in zip(*(box.origin for box in boxes), strict=True)]
    ends = [[int(o) + n for o, n in zip(box.origin, box.shape, strict=True)] for box in boxes]
    high = [max(axis) for axis in zip(*ends, strict=True)]
    z, y, x = (stop - start for start, stop in zip(low, high, strict=True))
    a, b, c = (float(start) for start in low)
    return replace(first, origin=(a, b, c), shape=(z, y, x))


def _placed(
    labels: UInt8[np.ndarray, "z y x"], transform: GridTransform, box: GridTransform
) -> UInt8[np.ndarray, "a b c"]:
    """Labels of a box within a larger one."""
    placed = np.zeros(box.shape, np.uint8)
    start = [int(here - there) for here, there in zip(transform.origin, box.origin, strict=True)]
    placed[tuple(slice(s, s + n) for s, n in zip(start, labels.shape, strict=True))] = labels
    return placed


def _majority(
    masks: Sequence[UInt8[np.ndarray, "z y x"]], mean: Float32[np.ndarray, "k z y x"]
) -> UInt8[np.ndarray, "z y x"]:
    labels, most = np.zeros(mean.shape[1:], np.uint8), np.full(mean.shape[1:], -1, np.float32)
    for index, p in enumerate(mean):  # one by one, since the votes of all classes would need much memory
        votes = p / 2  # half a vote at most, which decides between equals
        for mask in masks:
            votes += mask == index
        labels[votes > most] = index
        np.maximum(most, votes, out=most)
    return labels


def _staple(
    masks: Sequence[UInt8[np.ndarray, "z y x"]], otherwise: UInt8[np.ndarray, "z y x"], classes: int
) -> UInt8[np.ndarray, "z y x"]:
    """STAPLE of all classes; voxels that it leaves undecided are as ``otherwise`` has them."""
    if all(np.array_equal(mask, masks[0]) for mask in masks[1:]):
        return masks[0]  # also where none has a lesion, of which nothing can be estimated
    sitk = _simpleitk()
    staple = sitk.MultiLabelSTAPLEImageFilter()
    staple.SetLabelForUndecidedPixels(classes)
    found = sitk.GetArrayFromImage(staple.Execute([sitk.GetImageFromArray(mask) for mask in masks]))
    return np.where(found == classes, otherwise, found).astype(np.uint8)


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise FusionError(
            'fusion=staple needs SimpleITK: pip install "brats-lightning[fusion]", or use fusion=majority'
        ) from None
    return SimpleITK
