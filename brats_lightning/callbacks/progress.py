"""The progress bar."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's bar with the current loss instead of a version number.

    Args:
        refresh_rate: batches between updates; drawing it costs a few milliseconds.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning's says "Epoch 0/-2" where steps, not epochs, end the training.
        if self.trainer.max_epochs in (None, -1):
            return f"Epoch {current_epoch} (to step {self.trainer.max_steps})"
        return super()._get_train_description(current_epoch)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands right of the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
