"""TensorBoard without curves that say nothing, and with the columns that tell runs apart."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, without its curve of the epoch and with an own table of hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def log_outcome(self, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Add the row of this run to the HParams tab.

        Args:
            settings: column → value.
            scores: name → value of scalars that have been logged: Lightning would log each a second time.
        """
        for summary in hparams(dict(settings), dict(scores)):
            self.experiment._get_file_writer().add_summary(summary)
