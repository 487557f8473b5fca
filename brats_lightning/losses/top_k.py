"""Cross-entropy of the hardest voxels."""

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from brats_lightning.losses.lesions import check_shapes
from brats_lightning.losses.sums import Logits, Reference, computing_dtype


class TopKCrossEntropy(nn.Module):
    """Mean cross-entropy of the hardest voxels of a batch (Wu et al. 2016, https://arxiv.org/abs/1605.06885).

    With class indices the cross-entropy of a voxel's softmax, with memberships the binary cross-entropy of each pair of
    a voxel and a region::

        loss = mean of the ⌈percent / 100 · n⌉ largest of the n values

    ``percent=100`` is the plain mean. Background voxels, most of a patch and most of them easy, no longer dilute the
    gradient. In distributed training the batch is that of one process.

    Args:
        percent: of the voxels, above 0 to 100.

    Raises:
        ValueError: a percentage out of range; in use, shapes that do not match.
    """

    def __init__(self, percent: float | int = 10.0) -> None:
        super().__init__()
        if not 0 < percent <= 100:
            raise ValueError(f"percent must be above 0 to 100, got {percent}")
        self.percent = percent

    def forward(self, logits: Logits, target: Reference) -> Float[Tensor, ""]:
        """The loss of a batch of logits and class indices, or memberships of regions."""
        check_shapes(logits, target.shape)
        x = logits.to(computing_dtype(logits))
        if target.ndim < logits.ndim:
            # Not torch's cross_entropy, which has no deterministic kernel for volumes on a GPU.
            costs = x.logsumexp(1) - x.gather(1, target.long().unsqueeze(1)).squeeze(1)
        else:
            costs = functional.binary_cross_entropy_with_logits(x, target.to(x.dtype), reduction="none")
        hardest = costs.flatten().topk(math.ceil(costs.numel() * self.percent / 100), sorted=False)
        return hardest.values.mean()
