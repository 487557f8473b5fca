"""Stopping a training from outside so that it can be resumed without losing a step."""

import logging
import shlex
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from brats_lightning.data.loading import LoaderError
from brats_lightning.runtime import signals
from brats_lightning.training import processes

log = logging.getLogger(__name__)


class Interruption(pl.Callback):
    """On Ctrl-C and SIGTERM, finish the current step, save ``last.ckpt`` and say how to resume.

    The training must run within `brats_lightning.runtime.signals.listening`, as in `brats_lightning.train.train`.

    ``last.ckpt`` is also saved before each validation, so that even ``kill -9`` during one loses no step. Several
    processes stop together when the first of them gets the signal.

    Args:
        dirpath: folder of ``last.ckpt``.
    """

    def __init__(self, dirpath: str) -> None:
        self.last = Path(dirpath) / "last.ckpt"
        self._saved = -1  # the step of last.ckpt
        self._whole = False  # the last step is complete and the next one has not begun
        self._before_validation = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Take the signals back from Lightning, whose handlers communicate with other processes at any point."""
        signals.listen()
        if trainer.num_nodes > 1:
            processes.notice_lost_machines()

    on_test_start = on_train_start

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:  # noqa: ARG002
        """A step begins."""
        self._whole = False
        signals.hold(True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """A step ends, unless more batches belong to it."""
        self._whole = not trainer.fit_loop._should_accumulate()
        # One of several processes must not end alone: the others would wait for it in the next step.
        signals.hold(not self._whole or trainer.world_size > 1)
        if self._whole and signals.received() and trainer.is_global_zero and not trainer.should_stop:
            trainer._signal_connector.received_sigterm = True  # which Lightning checks between two steps

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Save the training so far."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and trainer.global_step > 0:
            self._before_validation = True
            self._save(trainer)
            self._before_validation = self._whole = False
            signals.hold(False)
            signals.check()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """The step is complete again."""
        self._whole = trainer.state.fn == "fit"

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Correct Lightning's counters: a validation that follows has begun, batches of an unfinished step have not.

        A resumed run then does that validation, and reads those batches, whose gradients are not saved, again.
        """
        loops, name = checkpoint["loops"]["fit_loop"], "epoch_loop.batch_progress"
        if trainer.fit_loop._should_accumulate():
            begun = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches
            counts = {part: {k: n - begun for k, n in loops[name][part].items()} for part in ("total", "current")}
            loops[name] = loops[name] | counts
        if self._before_validation:
            name = "epoch_loop.val_loop.batch_progress"
            done = loops[name]["total"]["completed"]
            total = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
            loops[name] = loops[name] | {"total": total}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Save after an interruption or a failed loader; after other errors the state is not worth resuming."""
        expected = KeyboardInterrupt | SIGTERMException | signals.Interrupted | LoaderError
        if trainer.state.fn != "fit" or not isinstance(exception, expected):
            return
        together = isinstance(exception, SIGTERMException)
        if together and trainer.world_size > 1 and signals.received() and trainer.is_global_zero:
            # The others ask for this at the beginning of each step and then wait.
            torch.distributed.broadcast(torch.ones(1, dtype=torch.int64, device=trainer.strategy.root_device), src=0)
            torch.distributed.barrier()
        if self._whole and (together or trainer.world_size == 1) and trainer.global_step > 0:
            self._save(trainer)
        if trainer.is_global_zero:
            resume = f"resume with: python -m brats_lightning.train {shlex.quote(f'resume={self.last.parent.parent}')}"
            saved = f"step {self._saved} is saved" if self._saved >= 0 else "an earlier step is saved"
            state = f"{saved}; {resume}" if self.last.is_file() else "nothing was saved yet"
            log.warning("stopped at step %d; %s", trainer.global_step, state)

    def _save(self, trainer: pl.Trainer) -> None:
        if self._saved != trainer.global_step:
            trainer.save_checkpoint(self.last, weights_only=False)
            self._saved = trainer.global_step
