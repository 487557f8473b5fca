"""Every fit ends with a validation."""

from typing import Any

import pytorch_lightning as pl


class ValidateLast(pl.Callback):
    """Validate after the last training batch, so that the final weights are scored and may become the best.

    Lightning validates at fixed intervals, and again if a stop was requested during the last batch; this callback
    requests it.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Request a stop at the end."""
        last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
        last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        if last_step or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True
