"""Ending a training whose loss is no longer finite; earlier checkpoints stay."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from brats_lightning.data.batches import PatchBatch

_ADVICE = (
    "earlier checkpoints stay. Lower optimizer.lr or raise scheduler.warmup and start again, or look at these cases; "
    "debug=anomaly names the operation"
)


class NotFinite(ValueError):
    """The loss or the weights became NaN or infinite."""


class FiniteLoss(pl.Callback):
    """Check the losses every ``log_every_n_steps`` steps, and before each save the weights as well.

    Until then the losses stay on the device, so that no step waits for them. A loss scaler (``16-mixed``) skips a step
    that overflows and retries with a smaller scale, so with one only a check with no finite loss at all ends the run.

    Several processes end together, also if only one of them has such a loss.

    Raises:
        NotFinite: nothing is saved, and the last good checkpoints stay.
    """

    def __init__(self) -> None:
        self._recent: list[tuple[int, list[str], Tensor]] = []  # step, its cases, its loss

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: PatchBatch, *_: Any) -> None:  # noqa: ARG002
        """Keep the loss, and check if it is time."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._recent.append((trainer.global_step, batch.cases, loss.detach()))
        if trainer.global_step % (trainer.log_every_n_steps or 50) == 0:  # type: ignore[attr-defined]
            self._check(trainer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Check before the checkpoint is written."""
        self._check(trainer)
        norms = torch._foreach_norm([parameter.detach() for parameter in pl_module.parameters()])
        if norms and not bool(torch.stack([norm.float() for norm in norms]).isfinite().all()):
            raise NotFinite(f"weights are NaN or infinite at step {trainer.global_step}; {_ADVICE}")

    def _check(self, trainer: pl.Trainer) -> None:
        recent, self._recent = self._recent, []
        if not recent:
            return
        losses = torch.stack([loss for _, _, loss in recent]).tolist()
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        ends = bool(bad) and not (scaled and len(bad) < len(recent))
        if not trainer.strategy.reduce_boolean_decision(ends, all=False):
            return
        if not bad:
            raise NotFinite(f"the loss of another process is no longer finite at step {trainer.global_step}; {_ADVICE}")
        (step, cases, _), loss = recent[bad[0]], losses[bad[0]]
        raise NotFinite(f"the loss is {loss} at step {step}, whose patches are of {', '.join(cases)}; {_ADVICE}")
