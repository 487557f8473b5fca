"""Deep supervision: a loss at several resolutions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional

from brats_lightning.core.labels import IGNORE
from brats_lightning.losses.known_voxels import KnownVoxels
from brats_lightning.losses.sums import Logits, Reference

References = Mapping[torch.Size, tuple[Any, ...]]  # by size (z, y, x), what the loss takes beside logits


class DeepSupervision(nn.Module):
    """Weighted mean of a loss over logits of decreasing resolution (Lee et al. 2015); of one tensor the loss itself.

    The i-th resolution weighs ``decay^i``, normalised to sum 1. The target is brought to each with
    ``downsample_target``.

    Args:
        loss: ``(logits, target)`` → a scalar, or a dict with the total under ``loss``. If it has a method
            ``find_lesions(target)``, it is called with what that returns as a third argument.
        decay: weight of a resolution relative to the next finer one, above 0.

    Raises:
        ValueError: a decay that is not positive.
    """

    def __init__(self, loss: Callable[..., Any], decay: float | int = 0.5) -> None:
        super().__init__()
        if decay <= 0:
            raise ValueError(f"decay must be positive (0.5 halves each coarser resolution's weight), got {decay}")
        self.loss, self.decay = loss, float(decay)
        self._sizes: dict[torch.Size, list[torch.Size]] = {}  # (k, z, y, x) of the last logits, by the target's shape

    def find_lesions(self, target: Reference) -> References:
        """Start finding the lesions of a target whose logits come later, if the loss needs them.

        From the second call on also at coarser resolutions, which are known only from logits.
        """
        if not hasattr(self.loss, "find_lesions"):
            return {}
        sizes = self._sizes.get(target.shape, [torch.Size((1, *target.shape[-3:]))])
        return {size[1:]: self._reference(target, size) for size in sizes}

    def forward(
        self,
        logits: Logits | Sequence[Float[Tensor, "b k _ _ _"]],
        target: Reference,
        lesions: References | None = None,
    ) -> Float[Tensor, ""] | dict[str, Float[Tensor, ""]]:
        """What the loss returns for the full resolution, its total replaced by the mean over all.

        ``lesions`` are what `find_lesions` made of the same target, if it was asked.
        """
        levels = [logits] if isinstance(logits, Tensor) else list(logits)
        sizes = self._sizes[target.shape] = [level.shape[1:] for level in levels]
        known = lesions or {}
        references = [known.get(size[1:]) or self._reference(target, size) for size in sizes]
        results = [self.loss(level, *reference) for level, reference in zip(levels, references, strict=True)]
        if len(results) == 1:
            return results[0]
        totals = [result["loss"] if isinstance(result, dict) else result for result in results]
        weights = [self.decay**i for i in range(len(totals))]
        total = sum(w * value for w, value in zip(weights, totals, strict=True)) / sum(weights)
        return results[0] | {"loss": total} if isinstance(results[0], dict) else total

    def _reference(self, target: Tensor, size: torch.Size) -> tuple[Any, ...]:
        """What the loss takes beside logits of a size (k, z, y, x)."""
        target = downsample_target(target, size[1:], size[0], isinstance(self.loss, KnownVoxels))
        return (target, self.loss.find_lesions(target)) if hasattr(self.loss, "find_lesions") else (target,)


def downsample_target(
    target: Integer[Tensor, "*b z y x"], size: Sequence[int], classes: int, partly_labelled: bool = False
) -> Integer[Tensor, "..."]:
    """The target on a coarser grid, without losing foreground: a block with any is a foreground voxel.

    With class indices it gets the most frequent foreground class of its block, of equals the lower one; with
    memberships every region that has a voxel in the block. Picking one voxel of a block would lose seven of eight
    single-voxel lesions at half the resolution. Blocks are those of adaptive pooling, which leave no voxel out. A block
    with any voxel of unknown class is unknown.

    Args:
        target: class indices (b, z, y, x), 0 being background, or memberships (b, k, z, y, x).
        size: (z, y, x) of the result.
        classes: channels of the logits; of class indices their number with the background.
        partly_labelled: whether the target may be `IGNORE` in places.
    """
    z, y, x = size
    if target.shape[-3:] == (z, y, x):
        return target

    def fraction(mask: Tensor) -> Tensor:  # of each block
        return functional.adaptive_avg_pool3d(mask.float(), (z, y, x))

    if target.ndim == 5:
        result = fraction(target).gt(0).to(target.dtype)
    else:
        result = target.new_zeros((len(target), z, y, x))
        most = torch.zeros(result.shape, device=target.device)
        for index in range(1, classes):
            part = fraction(target == index)
            result.masked_fill_(part > most, index)
            most = torch.maximum(most, part)
    return result.masked_fill_(fraction(target == IGNORE) > 0, IGNORE) if partly_labelled else result
