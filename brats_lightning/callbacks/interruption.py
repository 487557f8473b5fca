"""A training that is stopped from outside can be gone on with."""

import logging
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)


class Interruption(pl.Callback):
    """Save ``last.ckpt`` on Ctrl-C and SIGTERM, and say how to go on.

    In the midst of a validation the earlier ``last.ckpt`` stays. So it does on Ctrl-C with several processes: they have
    to save together, but are not interrupted at the same step.

    Args:
        dirpath: folder of ``last.ckpt``.
    """

    def __init__(self, dirpath: str) -> None:
        self.last = Path(dirpath) / "last.ckpt"
        # It logs inside the handler of a signal, which is an error where the signal arrives amid another line.
        logging.getLogger("pytorch_lightning.trainer.connectors.signal_connector").setLevel(logging.WARNING)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Save if this is an interruption; an error leaves no state worth going on from."""
        if not isinstance(exception, KeyboardInterrupt | SIGTERMException) or trainer.state.fn != "fit":
            return
        together = trainer.world_size == 1 or isinstance(exception, SIGTERMException)
        if trainer.training and together and trainer.global_step > 0:
            trainer.save_checkpoint(self.last)
        if trainer.is_global_zero:
            known = f"go on with ckpt_path={self.last}" if self.last.is_file() else "nothing was saved yet"
            log.warning("stopped at step %d; %s", trainer.global_step, known)
