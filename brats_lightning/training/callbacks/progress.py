"""Training progress: a bar on a terminal, log lines elsewhere."""

import logging
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar, Timer
from rich.console import Console

log = logging.getLogger(__name__)


class Progress(RichProgressBar):
    """Lightning's bar with the current loss instead of a version number.

    Args:
        refresh_rate: batches between updates; an update costs a few milliseconds.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate if Console().is_terminal else 0)  # elsewhere it is disabled

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning's text is "Epoch 0/-2" if steps, not epochs, limit the training.
        if self.trainer.max_epochs in (None, -1):
            return f"Epoch {current_epoch} (to step {self.trainer.max_steps})"
        return super()._get_train_description(current_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the bar if it is time. Lightning would read the loss at each step and so wait for the GPU."""
        if self.is_enabled and (trainer.is_last_batch or (batch_idx + 1) % self.refresh_rate == 0):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The values to the right of the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class ProgressLog(pl.Callback):
    """Without a terminal, log the first step, then one step per interval, and each validation.

    Args:
        interval: seconds between two lines.
        objective: the score to log after a validation.
    """

    def __init__(self, interval: float | int, objective: str) -> None:
        self.interval, self.objective = interval, objective
        self.silent = Console().is_terminal

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the clock."""
        self.silent = self.silent or not trainer.is_global_zero
        self._start, self._next, self._first = time.monotonic(), 0.0, trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Write a line if it is time."""
        seconds = time.monotonic() - self._start
        if self.silent or seconds < self._next:
            return
        self._next = seconds + self.interval
        steps = trainer.global_step
        parts = [f"step {steps}" + (f" of {trainer.max_steps}" if trainer.max_steps > 0 else "")]
        if "train/loss" in trainer.callback_metrics:
            parts.append(f"loss {float(trainer.callback_metrics['train/loss']):.3f}")
        if steps > self._first + 1:  # the first step is slower than the others
            pace = seconds / (steps - self._first)
            parts.append(f"{pace:.2f} s a step")
            if (left := self._left(trainer, pace)) is not None:
                parts.append(f"{timedelta(seconds=round(left))} left")
        log.info(" · ".join(parts))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Log the objective."""
        if not self.silent and self.objective in trainer.callback_metrics:
            log.info("step %d · %s %.4f", trainer.global_step, self.objective, trainer.callback_metrics[self.objective])

    @staticmethod
    def _left(trainer: pl.Trainer, pace: float) -> float | None:
        """Seconds until the steps or the time are used up; None if neither is limited."""
        ends = [(trainer.max_steps - trainer.global_step) * pace] if trainer.max_steps > 0 else []
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        ends += [left for timer in timers if (left := timer.time_remaining()) is not None]
        return max(0.0, min(ends)) if ends else None
