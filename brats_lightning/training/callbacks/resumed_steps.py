"""The dashboards' step after a resumption."""

from typing import Any

import pytorch_lightning as pl


class ResumedSteps(pl.Callback):
    """Keep the logged step equal to the optimiser's; Lightning's own count falls back by one on resuming in mid-epoch.

    To stand before every callback that logs.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Correct the count."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
