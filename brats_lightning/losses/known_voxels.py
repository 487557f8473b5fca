"""Losses of partly labelled masks: voxels of unknown class cost nothing."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brats_lightning.core.labels import IGNORE
from brats_lightning.losses.sums import Logits, Reference


class KnownVoxels(nn.Module):
    """Any loss, to which voxels of unknown class cost nothing.

    Their logits are replaced by constants, their reference by the background that these predict with certainty. Every
    loss takes them for a perfect prediction, and the gradient of the logits there is exactly 0.

    They still count among the voxels of a patch. In a mean over voxels a known voxel so weighs the same in every patch,
    however little of it is labelled, and a patch weighs by what is.

    Args:
        loss: as of `DeepSupervision`.
        background: logits of a certain background, one for each channel.
    """

    background: Tensor

    def __init__(self, loss: Callable[..., Any], background: Sequence[float]) -> None:
        super().__init__()
        self.loss = loss
        # Not in the state dict: it is no weight.
        self.register_buffer("background", torch.tensor(background).view(1, -1, 1, 1, 1), persistent=False)

    def find_lesions(self, target: Reference) -> Any:
        """What the loss finds of a target without its unknown voxels; None if it needs no lesions."""
        if not hasattr(self.loss, "find_lesions"):
            return None
        return self.loss.find_lesions(target.masked_fill(target == IGNORE, 0))

    def forward(self, logits: Logits, target: Reference, lesions: Any = None) -> Any:
        """What the loss returns of logits and a target that is `IGNORE` where the class is unknown, in all channels."""
        unknown = target == IGNORE
        replaced = unknown if target.ndim == logits.ndim else unknown.unsqueeze(1)
        logits = torch.where(replaced, self.background.to(logits.dtype), logits)
        return self.loss(logits, target.masked_fill(unknown, 0), *(() if lesions is None else (lesions,)))
