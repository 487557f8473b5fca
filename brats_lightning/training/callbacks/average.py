"""An exponential moving average of the weights, evaluated and saved in place of the current weights."""

from itertools import chain, compress
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights; validation, tests and checkpoints use the average.

    After n updates the average moves by ``1 - d`` towards the weights, with ``d = min(decay, (1 + n) / (10 + n))``: a
    fixed decay near 1 would keep the first, random weights in the average of a short run.

    Costs a second copy of the weights on the training device and in each checkpoint, and a few milliseconds per step.

    Args:
        decay: fraction of the average that each step keeps in a long run, an average over about 1 / (1 - decay) steps.
    """

    def __init__(self, decay: int | float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.average.decay must be at least 0 and below 1, got {decay}")
        super().__init__()
        self.decay = decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the average on the training device."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._average_model is not None:
            # The count is read at each step; if it were on a GPU, the host would wait.
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Move the average towards the weights, once per optimiser step."""
        if trainer.global_step > self._latest_update_step:
            self._latest_update_step = trainer.global_step
            self._update(pl_module)

    @torch.no_grad()
    def _update(self, pl_module: pl.LightningModule) -> None:
        # Lightning's update copies the count to the device at each step, which makes the host wait for a GPU.
        average = self._average_model
        assert average is not None  # made in setup
        done = int(average.n_averaged)
        keep = min(self.decay, (1 + done) / (10 + done)) if done else 0.0
        averaged, current = (list(chain(m.parameters(), m.buffers())) for m in (average.module, pl_module))
        numbers = [tensor.is_floating_point() for tensor in averaged]
        torch._foreach_lerp_(list(compress(averaged, numbers)), list(compress(current, numbers)), 1 - keep)
        for one, other, number in zip(averaged, current, numbers, strict=True):
            if not number:  # a counter, such as batch norm's
                one.copy_(other)
        average.n_averaged += 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the current weights in the module, so that checkpoints saved from now on can still be resumed."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Leave the device together with the module, as testing needs the memory."""
        if self._average_model is not None:
            self._average_model.module.to(pl_module.device)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the current weights when training resumes; testing uses the average."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
