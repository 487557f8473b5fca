"""Losses and weights that are no numbers end a run, and nothing of them is saved."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch

from brats_lightning.data.batches import PatchBatch
from brats_lightning.train import train
from brats_lightning.training.callbacks.finite import FiniteLoss, NotFinite

NAN, INF = float("nan"), float("inf")


def steps(callback, losses, every=3, scaler=None, another=False):
    trainer = MagicMock(spec=pl.Trainer, log_every_n_steps=every, precision_plugin=SimpleNamespace(scaler=scaler))
    trainer.strategy.reduce_boolean_decision = lambda decision, all: decision or another
    for step, loss in enumerate(losses, 1):
        trainer.global_step = step
        batch = MagicMock(spec=PatchBatch, cases=[f"case {step}", "another"])
        callback.on_train_batch_end(trainer, pl.LightningModule(), {"loss": torch.tensor(loss)}, batch, 0)
    return trainer


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_the_first_bad_step_and_its_cases_are_named_at_the_next_look(bad):
    steps(FiniteLoss(), [1.0, bad])  # nobody has looked yet
    with pytest.raises(NotFinite, match=f"the loss is {bad} at step 2, whose patches are of case 2, another; earlier"):
        steps(FiniteLoss(), [1.0, bad, bad])


@pytest.mark.parametrize(("every", "kept"), [(3, 1), (0, 7)])
def test_numbers_pass_and_are_forgotten(every, kept):
    callback = FiniteLoss()
    steps(callback, [1.0] * 7, every)
    assert len(callback._recent) == kept


def test_a_loss_scaler_may_skip_steps_but_not_all():
    scaler = object()
    steps(FiniteLoss(), [NAN, 1.0, INF, 1.0, NAN, NAN], scaler=scaler)
    with pytest.raises(NotFinite, match="step 4"):
        steps(FiniteLoss(), [1.0, 1.0, 1.0, NAN, NAN, NAN], scaler=scaler)


def test_a_process_ends_with_another_whose_loss_is_bad():
    with pytest.raises(NotFinite, match="the loss of another process is no longer finite at step 3; earlier"):
        steps(FiniteLoss(), [1.0, 1.0, 1.0], another=True)


def test_it_is_looked_at_before_saving_weights_too():
    module = pl.LightningModule()
    module.weight = torch.nn.Parameter(torch.ones(1, 2))
    callback = FiniteLoss()
    trainer = steps(callback, [1.0, NAN])
    with pytest.raises(NotFinite, match="step 2"):
        callback.on_save_checkpoint(trainer, module, {})
    callback.on_save_checkpoint(trainer, module, {})
    module.weight.data[0, 1] = NAN
    with pytest.raises(NotFinite, match="weights are NaN or infinite at step 2"):
        callback.on_save_checkpoint(trainer, module, {})


def test_no_step_waits_for_the_device(monkeypatch):
    callback, read = FiniteLoss(), []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: read.append(len(self)) or [0.0] * len(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a step waited"))
    steps(callback, [1.0] * 7)
    assert read == [3, 3]


def test_a_run_ends_and_keeps_its_last_good_checkpoint(composed, tmp_path):
    options = ["trainer.val_check_interval=2", "trainer.max_steps=8", "logger=none", "trainer.log_every_n_steps=1"]
    with pytest.MonkeyPatch.context() as patch:
        from brats_lightning.training.module import Segmentation

        original = Segmentation.training_step

        def breaks(self, batch, index):
            return original(self, batch, index) * (NAN if self.global_step == 4 else 1.0)

        patch.setattr(Segmentation, "training_step", breaks)
        with pytest.raises(NotFinite, match="at step 5"):
            train(composed(*options))
    for name in ("best", "last"):
        saved = torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True)
        assert saved["global_step"] <= 4
        assert all(value.isfinite().all() for value in saved["state_dict"].values())
