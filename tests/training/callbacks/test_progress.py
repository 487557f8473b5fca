"""What is said of a run while it runs; whole runs are in tests/test_train.py."""

import io
import logging
import re
import sys
import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from rich.console import Console

from brats_lightning.training.callbacks import Progress, progress

OBJECTIVE = "val/dice_mean"


class Clock:
    """Time that passes when told to."""

    now = 1000.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def made(**changed):
    """A trainer: ten steps of two batches each, a validation of two cases at the end, four test cases."""
    counts = SimpleNamespace(total=SimpleNamespace(ready=0))
    settings = {
        "fit_loop": SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=counts)),
        "datamodule": SimpleNamespace(scored_cases=lambda stage: [stage] * 4),
        "state": SimpleNamespace(fn="fit"),
        "callback_metrics": {},
        "callbacks": [],
        "is_global_zero": True,
        "sanity_checking": False,
        "world_size": 1,
        "global_step": 0,
        "max_steps": 10,
        "max_epochs": -1,
        "accumulate_grad_batches": 2,
        "num_training_batches": 5,
        "val_check_batch": 100,
        "check_val_every_n_epoch": None,
        "num_val_batches": [2],
        "num_test_batches": [4],
        "limit_test_batches": 1.0,
    }
    return MagicMock(spec=pl.Trainer, **(settings | changed))


MODULE = MagicMock(spec=pl.LightningModule)


def train(callback, trainer, clock, batches, seconds=3.0):
    """Batches of four patches."""
    for _ in range(batches):
        clock.now += seconds
        count = trainer.fit_loop.epoch_loop.batch_progress.total
        count.ready += 1
        trainer.global_step = count.ready // trainer.accumulate_grad_batches
        batch = SimpleNamespace(mask=torch.zeros(4, 2, 2, 2))
        callback.on_train_batch_end(trainer, MODULE, {"loss": torch.tensor(1 / count.ready)}, batch, 0)


def evaluate(callback, trainer, clock, stage, cases, seconds=10.0):
    getattr(callback, f"on_{stage}_start")(trainer, MODULE)
    for _ in range(cases):
        clock.now += seconds
        getattr(callback, f"on_{stage}_batch_end")(trainer, MODULE, None, None, 0)


def test_lines_of_a_run(clock, caplog):
    caplog.set_level(logging.INFO)
    callback, run = Progress(30, OBJECTIVE, "test"), made()
    callback.on_train_start(run, MODULE)
    train(callback, run, clock, 1, seconds=40)  # the first is slow, and not counted
    train(callback, run, clock, 19)
    run.callback_metrics[OBJECTIVE] = torch.tensor(0.25)
    evaluate(callback, run, clock, "validation", 2)
    callback.on_validation_end(run, MODULE)
    run.state.fn = "test"
    evaluate(callback, run, clock, "test", 4, seconds=20)
    assert caplog.messages == [
        "step 0 of 10 · loss 1.000",
        # 70 s later; 9 batches of 3 s are left, and nothing is known of the cases
        "step 5 of 10 · 0.167 steps/s · 1.33 patches/s · loss 0.091 · 72% done · at least 0:00:27 left",
        # 27 s and a case of 10 s later; a case of validation is left and four of the test
        "validation: 1 of 2 cases · step 10 of 10 · loss 0.050 · 68% done · 0:00:50 left",
        "step 10 of 10 · 0.167 steps/s · 1.33 patches/s · loss 0.050 · val/dice_mean 0.2500 · 75% done · 0:00:40 left",
        # two cases of 10 s and two of 20 s make 15 s a case
        "test: 2 of 4 cases · step 10 of 10 · loss 0.050 · val/dice_mean 0.2500 · 84% done · 0:00:30 left",
        "test: 4 of 4 cases · step 10 of 10 · loss 0.050 · val/dice_mean 0.2500 · 100% done · 0:00:00 left",
    ]


def test_a_resumed_run_has_its_share_done(clock, caplog):
    caplog.set_level(logging.INFO)
    callback, run = Progress(1, OBJECTIVE, None), made(num_val_batches=[])
    run.fit_loop.epoch_loop.batch_progress.total.ready = 10
    callback.on_train_start(run, MODULE)
    train(callback, run, clock, 2)
    assert caplog.messages == [
        "step 5 of 10 · loss 0.091",
        "step 6 of 10 · 0.167 steps/s · 1.33 patches/s · loss 0.083 · 60% done · 0:00:24 left",
    ]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_steps": -1, "max_epochs": 3}, "step 1 of 8 · .* 0:00:39 left"),  # 15 batches
        ({"max_steps": 5, "max_epochs": 3}, "step 1 of 5 · .* 0:00:24 left"),
        ({"max_steps": 600}, r"step 1 of 600 · .* 0:59:54 left, until \d\d:\d\d"),
        ({"max_steps": 60000}, r"step 1 of 60000 · .* 4 days, 3:59:54 left, until [A-Z][a-z]+ \d\d:\d\d"),
        ({"max_steps": -1}, r"step 1 · \S+ steps/s · \S+ patches/s · loss 0.500"),
    ],
)
def test_limits(clock, caplog, limits, said):
    caplog.set_level(logging.INFO)
    callback, run = Progress(1, OBJECTIVE, None), made(num_val_batches=[], **limits)
    callback.on_train_start(run, MODULE)
    train(callback, run, clock, 2)
    assert re.fullmatch(said, caplog.messages[-1])


def test_a_time_limit(clock, caplog):
    caplog.set_level(logging.INFO)
    timer = Timer("00:00:01:40")
    callback, run = Progress(1, OBJECTIVE, "test"), made(max_steps=-1, callbacks=[timer], num_val_batches=[])
    timer.on_train_start(run, MODULE)
    callback.on_train_start(run, MODULE)
    train(callback, run, clock, 2)
    assert caplog.messages[-1].endswith("steps/s · 1.33 patches/s · loss 0.500 · 6% done · at least 0:01:34 left")


def test_the_bar_moves_while_a_case_takes_long(clock, monkeypatch):
    monkeypatch.setattr(progress, "Live", MagicMock())  # whose thread would draw at its own times
    callback, run = Progress(60, OBJECTIVE, "test"), made()
    screen = Console(file=io.StringIO(), force_terminal=True, width=140, color_system=None)
    callback.console = screen
    callback.on_train_start(run, MODULE)
    train(callback, run, clock, 2)
    evaluate(callback, run, clock, "validation", 1)
    lines = []
    for _ in range(2):
        clock.now += 5
        with screen.capture() as capture:
            screen.print(callback._bar())
        lines.append(capture.get().strip("━╸╺ \n"))
    # 18 batches of 3 s, a case of this validation, another validation, four test cases: 124 s, less 5 and 10
    assert lines == [
        "15% 0:01:59 left · validation: 1 of 2 cases · step 1 of 10 · loss 0.500",
        "19% 0:01:54 left · validation: 1 of 2 cases · step 1 of 10 · loss 0.500",
    ]
    callback.teardown(run, MODULE, "fit")
    assert callback._live is None


def test_lines_of_the_log_appear_above_the_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    handler = logging.StreamHandler(screen)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    callback, run = Progress(60, OBJECTIVE, None), made()
    callback.console = Console(file=screen, force_terminal=True, width=80)
    callback.on_train_start(run, MODULE)
    logging.getLogger("anything").warning("a line of the log")
    callback.on_exception(run, MODULE, ValueError())
    assert "\x1b[2K" in screen.getvalue().partition("a line of the log")[0]  # the bar was erased before
    assert handler.stream is screen
