"""Focal loss of classes and of regions."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from brats_lightning.losses.sums import ClassSums, ClassSumsLoss
from brats_lightning.runtime.collective import mean_over_processes


class CategoricalFocalLoss(ClassSumsLoss):
    """Focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002).

    With p the softmax probability of a voxel's reference class y, over all voxels of the batch, in distributed training
    that of all processes::

        loss = α Σ w_y (1 - p)^γ (-log p) / Σ w_y

    γ = 0 and α = 1 is the cross-entropy, with weights as ``torch.nn.functional.cross_entropy`` weighs. Of memberships
    the sums run over all pairs of a voxel and a region, w being the region's and p the sigmoid's probability of
    the right answer, inside or outside; γ = 0 and α = 1 is then the mean binary cross-entropy.

    Args:
        gamma: how strongly well-classified voxels are discounted, 0 or more.
        alpha: factor of the whole loss; useful in a sum with others.
        class_weights: one weight per class, background first, or per region; only ratios matter. None: all equal.

    Raises:
        ValueError: weights that are negative, all zero or of another number than the classes; settings out of range.
    """

    gamma: float

    def __init__(
        self, gamma: float | int = 2.0, alpha: float | int = 0.25, class_weights: Sequence[float | int] | None = None
    ) -> None:
        super().__init__(class_weights)
        if gamma < 0 or alpha <= 0:
            raise ValueError(f"gamma must be 0 or more and alpha positive, got gamma {gamma} and alpha {alpha}")
        self.gamma, self.alpha = float(gamma), float(alpha)

    def from_sums(self, sums: ClassSums) -> Float[Tensor, ""]:
        """The loss, from the class sums of a batch."""
        weights = self.weights_of(sums)
        voxels = (weights * (sums.reference if sums.exclusive else sums.voxels)).sum()
        if self.training and sums.exclusive and self.class_weights is not None:  # else equal in all processes
            voxels = mean_over_processes(voxels)  # as their gradients, and so their losses, are averaged
        return self.alpha * (weights * sums.focal).sum() / voxels.clamp_min(torch.finfo(weights.dtype).tiny)
