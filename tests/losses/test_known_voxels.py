"""Partly labelled masks: no loss costs anything where the class is unknown, at any resolution."""

import math

import pytest
import torch
from hydra.utils import instantiate
from torch.nn import functional

from brats_lightning.config.resolvers import config_dir
from brats_lightning.core.labels import BRATS_METS, IGNORE
from brats_lightning.core.targets import ClassTarget, RegionTarget
from brats_lightning.losses import (
    BlobLoss,
    CategoricalFocalLoss,
    ComponentDiceLoss,
    DeepSupervision,
    KnownVoxels,
    LesionFocalLoss,
    WeightedDiceLoss,
)
from brats_lightning.losses.deep_supervision import downsample_target

LOSSES = sorted(file.stem for file in (config_dir() / "loss").glob("*.yaml"))
TARGETS = {"classes": ClassTarget(BRATS_METS), "regions": RegionTarget(BRATS_METS, partly_labelled=True)}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)
EVERY_TARGET = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def total(result):
    return result["loss"] if isinstance(result, dict) else result


def partly(loss, target):
    return DeepSupervision(KnownVoxels(loss, target.background))


@pytest.fixture
def loss_of(composed):
    def make(name, target):
        if name.startswith("monai"):
            pytest.importorskip("monai")
        kind = next(kind for kind, other in TARGETS.items() if other is target)
        return instantiate(composed(f"loss={name}", f"target={kind}").loss)

    return make


@pytest.fixture
def batch():
    """Logits of classes and a mask: a sample with all classes, one without a lesion in its first half."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 4, (2, 8, 8, 8), generator=generator, dtype=torch.uint8)
    mask[1, :4] = 0
    return generator, mask


def levels_of(target, generator, dtype=torch.float32):
    sizes = (8, 4, 2)
    return [
        torch.randn(2, target.channels, n, n, n, generator=generator).mul(3).to(dtype).requires_grad_() for n in sizes
    ]


@EVERY_TARGET
@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_exactly_zero(loss_of, batch, name, target, dtype):
    generator, mask = batch
    mask[0, :3, :, :5] = IGNORE
    mask[1, 5, 6, 7] = IGNORE
    loss, encoded = partly(loss_of(name, target), target), target.encode(mask)
    levels = levels_of(target, generator, dtype)
    for _ in range(2):  # from the second time on the lesions are found before the logits are there
        result = total(loss(levels, encoded, loss.find_lesions(encoded)))
    result.backward()
    assert result.isfinite()
    for level, block in zip(levels, (1, 2, 4), strict=True):
        unknown = functional.max_pool3d((mask == IGNORE).float(), block) > 0
        by_voxel = level.grad.movedim(1, -1)
        assert not by_voxel[unknown].any()
        assert by_voxel[~unknown].any()
        assert unknown.any()


@EVERY_TARGET
@EVERY_LOSS
def test_a_wholly_labelled_mask_costs_what_it_costs_without(loss_of, batch, name, target):
    generator, mask = batch
    encoded, levels = target.encode(mask), levels_of(target, generator)
    results = []
    for loss in (DeepSupervision(loss_of(name, target)), partly(loss_of(name, target), target)):
        value = total(loss(levels, encoded, loss.find_lesions(encoded)))
        results.append((value, torch.autograd.grad(value, levels)))
    (value, gradients), (other, others) = results
    assert torch.equal(value, other)
    assert all(map(torch.equal, gradients, others))


@EVERY_TARGET
@EVERY_LOSS
def test_a_mask_without_any_label_costs_nothing(loss_of, batch, name, target):
    generator, mask = batch
    encoded = target.encode(torch.full_like(mask, IGNORE))
    loss, levels = partly(loss_of(name, target), target), levels_of(target, generator)
    value = total(loss(levels, encoded, loss.find_lesions(encoded)))
    value.backward()
    if not name.startswith("monai"):  # to which the Dice of an absent class costs 1
        assert value.item() == pytest.approx(0, abs=1e-6)
    assert not any(level.grad.any() for level in levels)


def test_known_voxels_weigh_as_in_a_patch_whose_others_are_right():
    # p of the reference class is 3/4 and 1/2 in the known voxels; the mean is over all four.
    logits = torch.tensor([[0.0, 0.0, 5.0, -5.0], [math.log(3), 0.0, -7.0, 7.0]]).reshape(1, 2, 1, 1, 4)
    target = torch.tensor([1, 0, IGNORE, IGNORE], dtype=torch.uint8).reshape(1, 1, 1, 4)
    loss = KnownVoxels(CategoricalFocalLoss(0, 1), (0.0, -1000.0))
    assert loss(logits, target).item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2)) / 4)


@pytest.mark.parametrize(
    ("loss", "scale"),
    [
        (WeightedDiceLoss(), 1),
        (BlobLoss(), 1),
        (ComponentDiceLoss(), 1),
        (LesionFocalLoss(), 1),
        (CategoricalFocalLoss(), 6 / 10),  # a mean over all voxels, of which 6 of 10 planes are known
    ],
    ids=lambda value: type(value).__name__,
)
@EVERY_TARGET
def test_a_loss_is_that_of_the_cut_patch(loss, scale, target):
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(2, 10, 7, 8, dtype=torch.uint8)
    for part in ((slice(1, 3), 1), (slice(4, 8), slice(4, 6)), (5, 0)):  # the second and third reach the border
        mask[:, part[0], part[1], 2:5] = 1
        mask[:, part[0], part[1], 4:6] = 3
    mask[:, 3, 5, 0:2] = 2
    logits = torch.randn(2, target.channels, 10, 7, 8, generator=generator)
    unknown = mask.clone()
    unknown[:, 6:] = IGNORE
    expected = loss(logits[:, :, :6], target.encode(mask[:, :6]))
    value = KnownVoxels(loss, target.background)(logits, target.encode(unknown))
    torch.testing.assert_close(value, scale * expected)


def test_a_block_with_any_unknown_voxel_is_unknown():
    mask = torch.zeros(1, 6, 2, 2, dtype=torch.uint8)
    mask[0, 0, 0, 0], mask[0, 1, 1, 1], mask[0, 2, 0, 0] = 3, IGNORE, 3
    classes, regions = (
        downsample_target(target.encode(mask), (3, 1, 1), 4, partly_labelled=True) for target in TARGETS.values()
    )
    assert classes.flatten().tolist() == [IGNORE, 3, 0]
    assert regions[0].flatten(1).tolist() == [[IGNORE, 1, 0]] * 3


def test_the_background_is_no_weight():
    assert not partly(CategoricalFocalLoss(), TARGETS["classes"]).state_dict()
