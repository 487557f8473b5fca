from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from brats_lightning.core.labels import IGNORE
from brats_lightning.training.callbacks import AveragedWeights, Overlay, ResumedSteps, ValidateLast
from brats_lightning.training.callbacks.overlay import CLASS_COLOURS, draw, outlines


def test_outline_is_the_inner_border_of_each_label():
    labels = np.zeros((5, 6), np.uint8)
    labels[1:4, 1:4] = 3
    labels[1:4, 4] = 2
    expected = np.zeros((5, 6), bool)
    expected[1:4, 1:5] = True
    expected[2, 2] = False  # the only voxel with four equal neighbours
    assert np.array_equal(outlines(labels), expected)


def test_outline_at_the_edge_of_the_slice():
    assert outlines(np.full((2, 3), 1, np.uint8)).all()
    assert not outlines(np.zeros((2, 3), np.uint8)).any()


def test_picture_is_bare_then_reference_then_prediction():
    image = np.linspace(1, 2, 64, dtype=np.float32).reshape(8, 8)
    reference, prediction = np.zeros((2, 8, 8), np.uint8)
    reference[3, 3], prediction[5, 5] = 3, 1
    picture = draw(image, reference, prediction)
    assert picture.shape == (8, 24, 3)
    assert (picture[:, :8].std(axis=-1) == 0).all()  # grey
    assert picture[3, 8 + 3].tolist() == CLASS_COLOURS[3].astype(int).tolist()
    assert picture[5, 16 + 5].tolist() == CLASS_COLOURS[1].astype(int).tolist()
    assert picture[0, 0, 0] == 0
    assert picture[7, 7, 0] == 255


def test_what_is_not_labelled_has_a_grey_outline():
    image, reference = np.ones((8, 8), np.float32), np.zeros((8, 8), np.uint8)
    reference[4:] = IGNORE
    picture = draw(image, reference, np.zeros_like(reference))
    assert picture[4, 8 + 3].tolist() == [128, 128, 128]
    assert picture[5, 8 + 3].tolist() == picture[5, 3].tolist()


def test_the_slice_with_the_most_tumour_is_drawn():
    mask = torch.zeros(4, 8, 8, dtype=torch.uint8)
    mask[1, 2:4, 2], mask[2, 5, 5], mask[3] = 3, 3, IGNORE
    image = (torch.arange(1, 5).view(4, 1, 1) * torch.linspace(1, 2, 8)).expand(4, 8, 8)
    logger = MagicMock(spec=TensorBoardLogger)
    batch = SimpleNamespace(mask=mask, image=image[None], case=SimpleNamespace(id="a"))
    trainer = MagicMock(spec=pl.Trainer, logger=logger, global_step=1)
    Overlay().on_validation_batch_end(trainer, MagicMock(spec=pl.LightningModule), {"labels": mask}, batch, 0)
    ((_, picture, _), _) = logger.experiment.add_image.call_args
    assert picture[2, 8 + 2].tolist() == CLASS_COLOURS[3].astype(int).tolist()


def test_picture_of_an_empty_slice_is_black():
    nothing = np.zeros((4, 4), np.float32)
    assert not draw(nothing, nothing.astype(np.uint8), nothing.astype(np.uint8)).any()


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


def test_without_tensorboard_nothing_is_drawn():
    module, batch = MagicMock(spec=pl.LightningModule), MagicMock()
    Overlay().on_validation_batch_end(MagicMock(spec=pl.Trainer, logger=None), module, {"labels": None}, batch, 0)
    assert not batch.method_calls


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
