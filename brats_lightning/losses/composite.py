"""Sums of losses, and losses from elsewhere."""

from collections.abc import Callable, Mapping
from itertools import islice

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from brats_lightning.losses.instances import InstanceDiceLoss, InstanceLoss
from brats_lightning.losses.sums import ClassSums, ClassSumsLoss, class_sums


class CompositeLoss(nn.Module):
    """Weighted sum of named losses, ``loss = Σ weight · part``.

    Dice, focal and instance-aware Dice losses share one pass over the voxels for each γ.

    Args:
        parts: losses by name, each ``(logits, target) -> scalar``.
        weights: their factors by the same names; None: all 1.

    Raises:
        ValueError: no parts, a part called ``loss``, or weights of other names than the parts.
    """

    def __init__(self, parts: Mapping[str, nn.Module], weights: Mapping[str, float | int] | None = None) -> None:
        super().__init__()
        if not parts or "loss" in parts:
            raise ValueError(f"parts must name at least one loss, none of them 'loss' (the total), got {list(parts)}")
        if weights is not None and set(weights) != set(parts):
            raise ValueError(f"weights must name the same losses as parts: got {list(weights)} for {list(parts)}")
        self.parts = nn.ModuleDict(parts)
        self.weights = {name: 1.0 if weights is None else float(weights[name]) for name in parts}
        # A part that reads no focal sum takes the sums of one that does.
        gammas = (part.gamma for part in self.parts.values() if isinstance(part, ClassSumsLoss))
        self._gamma = next((gamma for gamma in gammas if gamma is not None), None)

    def prepare(self, *targets: Tensor) -> None:
        """Let those parts begin that can do some of their work before the logits are there."""
        for part in self.parts.values():
            if isinstance(part, InstanceLoss):
                part.prepare(*targets)

    def forward(
        self,
        logits: Float[Tensor, "b k z y x"],
        target: Integer[Tensor, "b z y x"] | Integer[Tensor, "b k z y x"],
    ) -> dict[str, Float[Tensor, ""]]:
        """The total under ``loss``, and under its name each part without its weight, detached: for the log."""
        asked = {
            name: part.ask(logits, target) for name, part in self.parts.items() if isinstance(part, InstanceDiceLoss)
        }
        partitions = [partition for one in asked.values() for partition in one.partitions]
        shared: dict[float | None, ClassSums] = {}

        def sums(gamma: float | None) -> ClassSums:
            if gamma not in shared:
                shared[gamma] = class_sums(logits, target, gamma, partitions if gamma == self._gamma else ())
            return shared[gamma]

        values: dict[str, Tensor] = {}
        errors = iter(sums(self._gamma).errors if asked else ())  # of the partitions, in their order
        for name, part in self.parts.items():
            if isinstance(part, ClassSumsLoss):
                values[name] = part.from_sums(sums(self._gamma if part.gamma is None else part.gamma))
            elif name in asked:
                values[name] = asked[name].loss(list(islice(errors, len(asked[name].partitions))))
            else:
                values[name] = part(logits, target)
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

    def forward(
        self,
        logits: Float[Tensor, "b k z y x"],
        target: Integer[Tensor, "b z y x"] | Integer[Tensor, "b k z y x"],
    ) -> Float[Tensor, ""]:
        """The wrapped loss."""
        exclusive = target.ndim < logits.ndim
        return self.loss(logits.float(), target.long().unsqueeze(1) if exclusive else target.float())
