"""Weighted Dice loss that is 0 for every perfect prediction, whatever classes a patch lacks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from brats_lightning.losses.sums import ClassSums, ClassSumsLoss, check_smoothing


class WeightedDiceLoss(ClassSumsLoss):
    """Soft Dice loss (Milletari et al. 2016, with unsquared sums as Drozdzal et al. 2016), weighted by class.

    With R voxels of a class in the reference, and false negatives and positives FN and FP as sums of softmax
    probabilities (Σ 1 - p inside, Σ p outside), a class costs what follows; of memberships a region, with sigmoids::

        present (R > 0):  (FN + FP) / (2R - FN + FP + smooth)   = 1 - 2 Σ p y / (Σ p + Σ y), up to smooth
        absent  (R = 0):  FP / (FP + absent_fraction · V)       V voxels in the sample

        loss = Σ_present w cost / Σ_present w  +  Σ_absent w cost        with Σ w = 1

    A class absent from the reference has no Dice. Left in the mean its cost is 1 for any false positive, however
    faint, and almost without gradient; so it leaves the mean, its weight goes to the others, and its false
    positives are charged separately: 0 without any, ½ where they fill ``absent_fraction`` of the volume, below 1. A
    fraction rather than a number of voxels gives the same charge at every patch size and resolution. The loss lies in
    [0, 2), is 0 for a perfect prediction and in the absence of lesions rises strictly with every false positive.

    Args:
        class_weights: one weight per class, background first (unused without ``include_background``), or per region;
            only ratios matter. None: all equal.
        include_background: whether the background is one of the classes; regions have none.
        batch: sums over the whole batch instead of each sample: steadier for tiny lesions, but large ones dominate.
            In distributed training the batch is that of all processes.
        smooth: added to the denominator only; in the numerator it would reward empty predictions.
        absent_fraction: fraction of the volume at which false positives of an absent class cost ½.

    Raises:
        ValueError: weights that are negative, all zero or of another number than the classes; settings out of range.
    """

    def __init__(
        self,
        class_weights: Sequence[float | int] | None = None,
        *,
        include_background: bool = False,
        batch: bool = False,
        smooth: float | int = 1e-5,
        absent_fraction: float | int = 1e-3,
    ) -> None:
        super().__init__(class_weights)
        check_smoothing(smooth, absent_fraction)
        self.include_background, self.batch = include_background, batch
        self.smooth, self.absent_fraction = smooth, absent_fraction
        self._only_background = self.class_weights is not None and self.class_weights[1:].sum().item() == 0

    def from_sums(self, sums: ClassSums) -> Float[Tensor, ""]:
        """The loss, from the class sums of a batch."""
        if self.batch:
            sums = sums.over_batch(all_processes=self.training)  # each process validates cases of its own
        first = 1 if sums.exclusive and not self.include_background else 0
        if first and self._only_background:
            raise ValueError("class_weights of the foreground are all 0; give one a weight or set include_background")
        weights = self.weights_of(sums)[first:]
        weights = weights / weights.sum()
        reference, negatives, positives = (part[:, first:] for part in sums[:3])
        present = reference > 0
        offset = torch.where(present, self.smooth, self.absent_fraction * sums.voxels)
        cost = weights * (negatives + positives) / (2 * reference - negatives + positives + offset)
        weight_present = (weights * present).sum(1).clamp_min(torch.finfo(cost.dtype).tiny)
        return ((cost * present).sum(1) / weight_present + (cost * ~present).sum(1)).mean()
