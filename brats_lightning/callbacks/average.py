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

    def __init__(self, decay: int | float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.average.decay must be at least 0 and below 1, got {decay}")

        def average(averaged: list[Tensor], current: list[Tensor], _: Tensor | int) -> None:
            if not averaged[0].is_floating_point():  # counters, such as batch norm's
                torch._foreach_copy_(averaged, current)
                return
            assert self._average_model is not None  # made in setup
            done = int(self._average_model.n_averaged)  # on the CPU, unlike the argument
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + done) / (10 + done)))

        super().__init__(multi_avg_fn=average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the average."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._average_model is not None:
            # The count decides what happens in each step: on a GPU, reading it would make the device wait.
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the last step's weights in the module: a checkpoint made from now on can still be resumed from."""

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with the last step's weights when training is resumed; a test is of the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
