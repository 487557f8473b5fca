"""The step that dashboards show after resuming."""

from typing import Any

import pytorch_lightning as pl


class ResumedSteps(pl.Callback):
    """Keep the logged step equal to the optimiser's: Lightning's count drops by one when resuming within an epoch.

    Must come before every callback that logs.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Correct the count."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
