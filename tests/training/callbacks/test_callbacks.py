from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch

from brats_lightning.training.callbacks import AveragedWeights, ResumedSteps, ValidateLast


@pytest.mark.parametrize(
    ("step", "epoch", "is_last", "limits", "stops"),
    [
        (10, 0, False, (10, -1), True),
        (9, 0, False, (10, -1), False),
        (9, 4, True, (-1, 5), True),
        (9, 4, False, (-1, 5), False),
        (9, 3, True, (-1, 5), False),
        (9, 3, True, (-1, None), False),
    ],
)
def test_the_last_batch_asks_for_a_validation(step, epoch, is_last, limits, stops):
    trainer = MagicMock(spec=pl.Trainer, global_step=step, current_epoch=epoch, is_last_batch=is_last)
    trainer.max_steps, trainer.max_epochs, trainer.should_stop = *limits, False
    ValidateLast().on_train_batch_end(trainer)
    assert trainer.should_stop is stops


def test_the_step_count_follows_the_optimiser():
    loop = SimpleNamespace(_batches_that_stepped=4)
    trainer = MagicMock(spec=pl.Trainer, global_step=5, fit_loop=SimpleNamespace(epoch_loop=loop))
    ResumedSteps().on_train_batch_start(trainer)
    assert loop._batches_that_stepped == 5


def test_average_follows_the_weights_with_a_growing_memory():
    callback = AveragedWeights(decay=0.5)
    module = pl.LightningModule()
    module.weight = torch.nn.Parameter(torch.tensor([0.0]))
    module.register_buffer("count", torch.tensor(0))
    callback.setup(MagicMock(spec=pl.Trainer), module, "fit")
    values = []
    for step, weight in enumerate([8.0, 0.0, 11.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1):
        module.weight.data.fill_(weight)
        module.count.fill_(step)
        callback.on_train_batch_end(MagicMock(spec=pl.Trainer, global_step=step), module, None, None, 0)
        values.append(callback._average_model.module.weight.item())
    assert values[0] == 8  # the first weights themselves
    assert values[1] == pytest.approx(8 * 2 / 11)  # keeps (1 + 1) / (10 + 1)
    assert values[2] == pytest.approx(16 / 11 * 3 / 12 + 11 * 9 / 12)
    assert values[9] == pytest.approx(values[8] * 0.5)  # from (1 + 8) / (10 + 8) on, the decay
    assert callback._average_model.module.count == 10


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_average_needs_a_share(decay):
    with pytest.raises(ValueError, match="decay"):
        AveragedWeights(decay)
