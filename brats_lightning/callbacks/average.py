"""Averaged weights, evaluated and saved in place of the last step's."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights; validation, tests and checkpoints are of the average.

    After n updates the average moves by ``1 - d`` towards the weights, with ``d = min(decay, (1 + n) / (10 + n))``: a
    fixed decay near 1 would keep the first, random weights in the average of a short run.

    Costs a second copy of the weights in memory and in each checkpoint, and a few milliseconds a step.

    Args:
        decay: share of the average that a step keeps, in the long run; 1 / (1 - decay) steps are its memory.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.average.decay must be at least 0 and below 1, got {decay}")

        def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
            if not averaged[0].is_floating_point():  # counters, such as batch norm's
                torch._foreach_copy_(averaged, current)
                return
            # In tensors throughout, since reading the count would make a GPU wait.
            done = torch.as_tensor(updates)
            moves = 1 - torch.clamp((1 + done) / (10 + done), max=decay)
            difference = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(difference, moves)
            torch._foreach_add_(averaged, difference)

        super().__init__(multi_avg_fn=average)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the last step's weights when training is resumed; a test is of the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
