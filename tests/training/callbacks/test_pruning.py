"""Runs of a sweep that end early."""

import pytest
import torch

from brats_lightning.config import trials
from brats_lightning.train import train
from brats_lightning.training.callbacks.pruning import Pruned, Pruning

STEPS = ["hparams_search=optuna", "trainer.max_steps=8", "trainer.val_check_interval=2", "logger=none", "test_on=null"]


@pytest.fixture
def reported(monkeypatch):
    """Train with this answer to the report of each validation; returns what was reported."""
    seen = []

    def begin(prunes):
        def report(step, score):
            seen.append((step, score))
            return prunes(step)

        monkeypatch.setattr(trials, "pruning", lambda objective, trial: Pruning(objective, report))
        return seen

    return begin


def test_a_run_ends_after_a_validation_and_keeps_its_checkpoints(composed, tmp_path, reported):
    seen = reported(lambda step: step >= 4)
    with pytest.raises(Pruned, match=r"^pruned at step 4 with val/dice_mean 0\.\d{4}$") as ended:
        train(composed(*STEPS))
    assert [step for step, _ in seen] == [2, 4]
    assert ended.value.scores["val/dice_mean"] == seen[1][1]
    saved = {
        name: torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True)["global_step"]
        for name in ("best", "last")
    }
    assert saved["last"] == 4
    assert saved["best"] in (2, 4)


def test_the_last_validation_is_only_reported(composed, reported):
    seen = reported(lambda step: step >= 4)
    results = train(composed(*STEPS, "trainer.max_steps=4"))
    assert [step for step, _ in seen] == [2, 4]
    assert results["val/dice_mean"] == seen[-1][1]
