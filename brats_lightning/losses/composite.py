"""Sums of losses, and losses from elsewhere."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brats_lightning.losses.instances import InstanceDiceLoss
from brats_lightning.losses.lesions import LesionLoss, LesionMap
from brats_lightning.losses.sums import ClassSums, ClassSumsLoss, Logits, Reference, class_sums


class CompositeLoss(nn.Module):
    """Weighted sum of named losses, ``loss = Σ weight · part``.

    Dice, focal and instance-aware Dice losses share one pass over the voxels for each γ, and all that need the lesions
    one map of them.

    Args:
        parts: losses by name, each ``(logits, target) -> scalar``, or a `LesionLoss`.
        weights: their factors by the same names, in the order they are summed in; None: all 1.

    Raises:
        ValueError: no parts, a part called ``loss``, weights of other names than the parts, or parts of other labels.
    """

    def __init__(self, parts: Mapping[str, nn.Module], weights: Mapping[str, float | int] | None = None) -> None:
        super().__init__()
        if not parts or "loss" in parts:
            raise ValueError(f"parts must name at least one loss, none of them 'loss' (the total), got {list(parts)}")
        weights = dict.fromkeys(parts, 1.0) if weights is None else weights
        if set(weights) != set(parts):
            raise ValueError(f"weights must name the same losses as parts: got {list(weights)} for {list(parts)}")
        labels = {part.scheme.names for part in parts.values() if isinstance(part, LesionLoss)}
        if len(labels) > 1:
            raise ValueError(f"parts must have the same labels, got {' and '.join(map(str, labels))}")
        self.parts = nn.ModuleDict({name: parts[name] for name in weights})
        self.weights = {name: float(weight) for name, weight in weights.items()}
        # A part that reads no focal sum takes the sums of one that does.
        gammas = (part.gamma for part in self.parts.values() if isinstance(part, ClassSumsLoss))
        self._gamma = next((gamma for gamma in gammas if gamma is not None), None)

    def find_lesions(self, target: Tensor) -> LesionMap | None:
        """Start finding the lesions of a target for all parts; None where no part needs them."""
        parts = [part for part in self.parts.values() if isinstance(part, LesionLoss)]
        return max(parts, key=lambda part: part.nearest).find_lesions(target) if parts else None

    def forward(
        self, logits: Logits, target: Reference, lesions: LesionMap | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """The total under ``loss``, and under its name each part without its weight, detached: for the log."""
        lesions = lesions or self.find_lesions(target)
        summed = lesions if any(isinstance(part, InstanceDiceLoss) for part in self.parts.values()) else None
        shared: dict[float | None, ClassSums] = {}
        values: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if isinstance(part, ClassSumsLoss):
                gamma = self._gamma if part.gamma is None else part.gamma
                if gamma not in shared:
                    shared[gamma] = class_sums(logits, target, gamma, summed if gamma == self._gamma else None)
                values[name] = part.from_sums(shared[gamma])
            else:
                values[name] = part(logits, target, lesions) if isinstance(part, LesionLoss) else part(logits, target)
        total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return {"loss": total} | {name: value.detach() for name, value in values.items()}


class ChannelTarget(nn.Module):
    """A loss that wants its target with a channel dimension, such as MONAI's, as one of ours.

    Args:
        loss: ``(logits, target) -> scalar``; gets float32 logits (b, k, z, y, x), and int64 class indices (b, 1, z, y,
            x) (``to_onehot_y`` of MONAI's) or float32 memberships of regions (b, k, z, y, x).
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Logits, target: Reference) -> Float[Tensor, ""]:
        """The wrapped loss."""
        exclusive = target.ndim < logits.ndim
        return self.loss(logits.float(), target.long().unsqueeze(1) if exclusive else target.float())
