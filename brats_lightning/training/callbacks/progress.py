"""Progress of a whole run, by one clock: a bar on a terminal, log lines elsewhere."""

import logging
import math
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import Tensor

from brats_lightning.runtime.device import begin_on_host
from brats_lightning.training.clock import Pace, Remaining

log = logging.getLogger(__name__)

_REFRESH = 0.5  # seconds between two updates of the bar
_SOON = 600  # seconds before the end in which nobody needs the time of day


class Progress(pl.Callback):
    """The share of the run that is done, its pace, the latest loss and score, and the time left to the very end.

    The time left includes the validations and the test to come, at the pace of those seen; before any was seen it is
    a lower bound. Between two lines, no step waits for a GPU.

    Args:
        interval: seconds between two lines where there is no terminal; a line also follows each validation.
        objective: the score to show.
        test_on: the split that is scored after training; None: none.
    """

    def __init__(self, interval: float | int, objective: str, test_on: str | None) -> None:
        self.interval, self.objective, self.test_on = interval, objective, test_on
        self.console = Console()
        self._pace = Pace()
        self._stage, self._cases, self._of = "", 0, 0  # of an evaluation: its name, cases done, cases in all
        self._first: int | None = None  # batches before this process began
        self._start = time.monotonic()
        self._next = 0.0  # time of the next update
        self._patches = 0  # of a batch, in all processes
        self._steps, self._loss, self._score = "", "", ""
        self._latest: Tensor | None = None  # loss
        self._copy: Callable[[], np.ndarray] | None = None  # of a loss, on its way from the device
        self._words: list[str] = []
        self._end: float | None = None  # when the run ends, by `time.monotonic`
        self._bound = ""  # "at least " if it ends later
        self._live: Live | None = None
        self._handlers: list[Any] = []

    # ---- what happens

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the clock."""
        self._first, self._start, self._next = _batches(trainer), time.monotonic(), 0.0
        self._pace.skip()
        self._begin(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:  # noqa: ARG002
        """A batch is done."""
        if _batches(trainer) > (self._first or 0) + 1:
            self._pace.count("batch")
        else:
            self._pace.skip()  # the first is slower than the others
        self._patches = len(batch.mask) * trainer.world_size
        self._latest = outputs["loss"] if isinstance(outputs, dict) else outputs
        if self._due(trainer):
            if self._live is None:
                self._loss = f"loss {float(self._latest):.3f}"
            else:  # that of the update before, whose copy has arrived
                self._loss = f"loss {self._copy().item():.3f}" if self._copy else ""
                self._copy = begin_on_host(self._latest)
            self._update(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """A validation begins."""
        if not trainer.sanity_checking:
            self._evaluate(trainer, "validation", trainer.num_val_batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """The test begins."""
        self._evaluate(trainer, "test", trainer.num_test_batches)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """A case is done."""
        if self._stage:
            self._cases += 1
            self._pace.count("case")
            if self._due(trainer):
                self._update(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """A case is done."""
        self.on_validation_batch_end(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Show the score."""
        if self._stage:
            self._stage = ""
            self._pace.skip()
            if self.objective in trainer.callback_metrics:
                self._score = f"{self.objective} {float(trainer.callback_metrics[self.objective]):.4f}"
            if trainer.is_global_zero:
                self._update(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Remove the bar."""
        if self._live is not None:
            self._live.stop()
            for handler in self._handlers:
                handler.setStream(sys.stdout)
        self._live = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Remove the bar before a message is printed."""
        self.teardown(trainer, pl_module, "")

    # ---- what is shown

    def _begin(self, trainer: pl.Trainer) -> None:
        """Show the bar if this is a terminal; what is logged meanwhile appears above it."""
        if self._live is None and self.console.is_terminal and trainer.is_global_zero:
            root = logging.getLogger()
            self._handlers = [h for h in root.handlers if getattr(h, "stream", None) is sys.stdout]
            self._live = Live(
                console=self.console, get_renderable=self._bar, refresh_per_second=1 / _REFRESH, transient=True
            )
            self._live.start(refresh=True)
            for handler in self._handlers:
                handler.setStream(sys.stdout)  # which the bar has replaced

    def _evaluate(self, trainer: pl.Trainer, stage: str, batches: Any) -> None:
        self._stage, self._cases, self._of = stage, 0, sum(map(int, batches))
        if self._latest is not None:
            self._loss = f"loss {float(self._latest):.3f}"
        self._pace.skip()
        self._begin(trainer)
        if self._live is not None:
            self._update(trainer)

    def _due(self, trainer: pl.Trainer) -> bool:
        return trainer.is_global_zero and time.monotonic() >= self._next

    def _update(self, trainer: pl.Trainer) -> None:
        """Estimate anew, and write a line where there is no bar."""
        now = time.monotonic()
        self._next = now + (self.interval if self._live is None else _REFRESH)
        rest = self._remaining(trainer)
        batch, case = self._pace.of("batch"), self._pace.of("case")
        known = batch is not None or trainer.state.fn != "fit"
        left = rest.seconds(batch or 0.0, case or 0.0) if known else None
        self._end = None if left is None else now + left
        self._bound = "at least " if case is None and (rest.val_cases or rest.test_cases or rest.pending) else ""
        if trainer.state.fn == "fit":
            whole = f" of {rest.end / trainer.accumulate_grad_batches:.0f}" if rest.end is not None else ""
            self._steps = f"step {trainer.global_step}{whole}"
        where = f"{self._stage}: {self._cases} of {self._of} cases" if self._stage else ""
        pace = []
        if batch and not self._stage:
            steps = 1 / batch / trainer.accumulate_grad_batches
            pace = [f"{steps:.3g} steps/s", f"{self._patches / batch:.3g} patches/s"]
        self._words = [word for word in (where, self._steps, *pace, self._loss, self._score) if word]
        if self._live is None:
            share, time_left = self._clock()
            log.info(" · ".join([*self._words, *([f"{share:.0%} done", time_left] if time_left else [])]))

    def _clock(self) -> tuple[float, str]:
        """The share of the run that is done, and the time left, or an empty text if that is not known."""
        if self._end is None:
            return 0.0, ""
        now = time.monotonic()
        left = max(0.0, self._end - now)
        before = (self._first or 0) * (self._pace.of("batch") or 0.0)
        done = before + now - self._start
        end = datetime.now() + timedelta(seconds=left)
        until = "" if left < _SOON else f", until {end:%H:%M}" if left < 86400 else f", until {end:%a %H:%M}"
        return done / max(done + left, 1e-9), f"{self._bound}{timedelta(seconds=round(left))} left{until}"

    def _bar(self) -> Table:
        share, left = self._clock()
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=1.0, completed=share, pulse=not left, width=24)
        grid.add_row(bar, f"{share:4.0%}", Text(" · ".join([left, *self._words] if left else self._words)))
        return grid

    def _remaining(self, trainer: pl.Trainer) -> Remaining:
        pending = self._of - self._cases if self._stage else 0
        if trainer.state.fn != "fit":
            testing = trainer.state.fn == "test"
            return Remaining(0, 0, None, math.inf, 0, pending, 0 if testing else self._test_cases(trainer))
        batches = trainer.num_training_batches
        ends: list[float] = [trainer.max_steps * trainer.accumulate_grad_batches] if trainer.max_steps > 0 else []
        if trainer.max_epochs not in (None, -1) and math.isfinite(batches):
            ends.append((trainer.max_epochs or 0) * batches)
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        times = [max(0.0, left) for timer in timers if (left := timer.time_remaining()) is not None]
        interval = (trainer.val_check_batch or math.inf) * (trainer.check_val_every_n_epoch or 1)
        return Remaining(
            done=_batches(trainer),
            end=min(ends, default=None),
            time=min(times, default=None),
            interval=interval,
            val_cases=sum(map(int, trainer.num_val_batches)),
            pending=pending,
            test_cases=self._test_cases(trainer),
        )

    def _test_cases(self, trainer: pl.Trainer) -> int:
        """Of this process."""
        if self.test_on is None:
            return 0
        cases = math.ceil(len(trainer.datamodule.scored_cases("test")) / trainer.world_size)  # type: ignore[attr-defined]
        limit = trainer.limit_test_batches
        return min(cases, limit) if isinstance(limit, int) else int(cases * limit)


def _batches(trainer: pl.Trainer) -> int:
    """Batches of training so far, also before a resumption."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready
