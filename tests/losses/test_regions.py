"""The losses of memberships of regions, with a sigmoid for each; what they share with classes is tested there."""

import math

import jaxtyping
import pytest
import torch
from torch.nn import functional

from brats_lightning.core.labels import BRATS_METS
from brats_lightning.core.targets import RegionTarget
from brats_lightning.losses import (
    CategoricalFocalLoss,
    ChannelTarget,
    CompositeLoss,
    DeepSupervision,
    WeightedDiceLoss,
    sums,
)
from brats_lightning.losses.deep_supervision import downsample_target
from brats_lightning.losses.sums import class_sums
from tests.losses import one_hot_losses

REGIONS = RegionTarget(BRATS_METS)  # ET, TC, WT
DICE_FOCAL = CompositeLoss({"dice": WeightedDiceLoss([1, 2, 3]), "focal": CategoricalFocalLoss()})


def batch(*size, dtype=torch.float64, absent=()):
    """Random logits (b, 3, z, y, x) and memberships; the classes of ``absent`` occur nowhere."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, 4, size, generator=generator, dtype=torch.uint8)
    for index in absent:
        mask[mask == index] = 0
    logits = torch.randn(size[0], 3, *size[1:], generator=generator, dtype=torch.float64).mul(3).to(dtype)
    return logits, REGIONS.encode(mask)


def certain(target, score=200.0):
    return (target.float() * 2 - 1) * score


def test_sums_by_hand():
    p = torch.tensor([0.75, 0.5, 0.125, 0.25])
    logits = (p / (1 - p)).log().reshape(1, 1, 1, 2, 2)
    target = torch.tensor([1, 1, 0, 0], dtype=torch.uint8).reshape(1, 1, 1, 2, 2)
    result = class_sums(logits, target, gamma=1.0)
    expected = {"reference": 2.0, "false_negatives": 0.25 + 0.5, "false_positives": 0.125 + 0.25, "voxels": 4.0}
    assert {name: getattr(result, name).item() for name in expected} == pytest.approx(expected)
    focal = -(0.25 * math.log(0.75) + 0.5 * math.log(0.5) + 0.125 * math.log(0.875) + 0.25 * math.log(0.75))
    assert result.focal.item() == pytest.approx(focal)
    assert not result.exclusive
    # FN + FP = 1.125 of 2 · 2 - 0.75 + 0.375
    assert WeightedDiceLoss(smooth=0)(logits, target).item() == pytest.approx(1.125 / 3.625)
    assert CategoricalFocalLoss(1, 0.5)(logits, target).item() == pytest.approx(0.5 * focal / 4)


@pytest.mark.parametrize("absent", [(), (3,), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize("samples_as_one", [False, True])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 4.0]])
def test_dice_equals_the_formula(weights, samples_as_one, absent):
    logits, target = batch(2, 3, 5, 4, absent=absent)
    target[1] = 0
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = WeightedDiceLoss(weights, batch=samples_as_one)(mine, target)
    expected = one_hot_losses.dice(theirs, target, weights, batch=samples_as_one)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_focal_equals_the_formula(gamma):
    logits, target = batch(2, 3, 5, 4)
    logits[0, 0, 0, 0] = torch.tensor([60.0, -60, 30, -30])
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = CategoricalFocalLoss(gamma, 0.25, [1, 2, 3])(mine, target)
    expected = one_hot_losses.region_focal(theirs, target, gamma, 0.25, [1, 2, 3])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)


def test_gamma_zero_alpha_one_is_the_mean_binary_cross_entropy():
    logits, target = batch(2, 3, 5, 4)
    expected = functional.binary_cross_entropy_with_logits(logits, target.double())
    torch.testing.assert_close(CategoricalFocalLoss(0, 1)(logits, target), expected)


def test_parity_with_monai():
    losses = pytest.importorskip("monai.losses")
    logits, target = batch(2, 6, 5, 7, dtype=torch.float32)
    dice = ChannelTarget(losses.DiceLoss(sigmoid=True, smooth_nr=0, smooth_dr=1e-5))
    torch.testing.assert_close(WeightedDiceLoss()(logits, target), dice(logits, target), rtol=1e-5, atol=1e-6)
    focal = ChannelTarget(losses.FocalLoss(gamma=2.0))
    torch.testing.assert_close(CategoricalFocalLoss(2, 1)(logits, target), focal(logits, target))


@pytest.mark.parametrize("gamma", [None, 0.0, 1.0, 2.0, 2.5])
def test_gradient_of_every_sum(gamma, monkeypatch):
    monkeypatch.setattr(sums, "chunk_size", lambda _: 12)
    logits, target = batch(2, 3, 4, 2)
    assert torch.autograd.gradcheck(lambda x: class_sums(x, target, gamma)[1:4], (logits.requires_grad_(),))


def test_gradient_of_the_loss():
    logits, target = batch(2, 3, 2, 3, absent=(3,))
    assert torch.autograd.gradcheck(lambda x: DICE_FOCAL(x, target)["loss"], (logits.requires_grad_(),))


def test_chunks_do_not_show(monkeypatch):
    logits, target = batch(2, 7, 5, 3)
    whole = class_sums(logits, target, 2.0)
    for voxels in (1, 30, 45):  # slabs of 1, 2 and 3 slices, the last one short
        monkeypatch.setattr(sums, "chunk_size", lambda _, voxels=voxels: voxels)
        torch.testing.assert_close(class_sums(logits, target, 2.0), whole)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_in_any_type_and_layout(dtype, layout):
    logits, target = batch(2, 9, 8, 7, dtype=dtype)
    logits = logits.contiguous(memory_format=layout).requires_grad_()
    target = target.contiguous(memory_format=layout)
    exact = logits.detach().double().requires_grad_()
    expected = one_hot_losses.dice(exact, target, [1, 2, 3]) + one_hot_losses.region_focal(exact, target)
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):  # which must not reach the sums
        loss = DICE_FOCAL(logits, target)["loss"]
        loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert logits.grad.dtype == dtype
    assert logits.grad.is_contiguous(memory_format=layout)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


def test_memory_is_that_of_a_chunk(monkeypatch):
    """Nothing that is made on the way is larger than a chunk, but for the gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.setattr(sums, "chunk_size", lambda _: 64)
    logits, target = batch(1, 16, 8, 8, dtype=torch.float32)
    logits.requires_grad_()
    given = {tensor.untyped_storage().data_ptr() for tensor in (logits, target)}
    large = []  # kept alive, so that no two share an address

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **kwargs or {})
            if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() > 3 * 64 * 4:
                large.append(result.untyped_storage())
            return result

    with Allocations():
        DICE_FOCAL(logits, target)["loss"].backward()
    made = {storage.data_ptr() for storage in large} - given
    assert made == {logits.grad.untyped_storage().data_ptr()}


@pytest.mark.parametrize("absent", [(), (3,), (1, 3), (1, 2, 3)])
@pytest.mark.parametrize("samples_as_one", [False, True])
def test_perfect_prediction_costs_nothing(absent, samples_as_one):
    _, target = batch(2, 3, 5, 4, absent=absent)
    parts = {"dice": WeightedDiceLoss(batch=samples_as_one), "focal": CategoricalFocalLoss()}
    assert CompositeLoss(parts)(certain(target), target)["loss"].item() == 0


def test_false_positives_of_absent_regions_cost_and_have_a_gradient():
    target = torch.zeros(1, 3, 4, 4, 4, dtype=torch.uint8)
    costs = []
    for score in (-30.0, -12.0, -6.0, 0.0, 6.0):
        logits = torch.full((1, 3, 4, 4, 4), -100.0)
        logits[:, 2, 1, 1, 1] = score
        logits.requires_grad_()
        cost = WeightedDiceLoss()(logits, target)
        cost.backward()
        costs.append(cost.item())
        assert logits.grad[0, 2, 1, 1, 1] > 0
    assert costs == sorted(set(costs))
    assert 0 < costs[0] < 1e-9
    assert costs[-1] < 1


def test_charge_is_a_half_at_the_fraction():
    target = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    logits = torch.full((1, 1, 8, 8, 8), 0.125, dtype=torch.float64).logit()
    assert WeightedDiceLoss(absent_fraction=0.125)(logits, target).item() == pytest.approx(0.5)


def test_the_first_region_counts_whatever_the_background_setting():
    logits, target = batch(2, 3, 5, 4)
    expected = one_hot_losses.dice(logits, target, [1, 0, 0])
    for include_background in (False, True):
        loss = WeightedDiceLoss([1, 0, 0], include_background=include_background)
        torch.testing.assert_close(loss(logits, target), expected)


def test_one_region_of_one_voxel():
    target = torch.ones(1, 1, 1, 1, 1, dtype=torch.uint8)
    assert WeightedDiceLoss(smooth=0)(torch.zeros(1, 1, 1, 1, 1), target).item() == pytest.approx(0.5 / 1.5)
    assert WeightedDiceLoss(smooth=0)(certain(1 - target), target).item() == pytest.approx(1)


def test_deep_supervision_is_the_weighted_mean_over_resolutions():
    _, target = batch(2, 8, 6, 5)
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 3, *size, generator=generator) for size in ((8, 6, 5), (4, 3, 3))]
    values = [DICE_FOCAL(x, downsample_target(target, x.shape[2:], 3))["loss"] for x in levels]
    torch.testing.assert_close(DeepSupervision(DICE_FOCAL)(levels, target)["loss"], (2 * values[0] + values[1]) / 3)


def test_every_voxel_of_a_region_survives_every_resolution():
    mask = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    mask[0, 13, 5, 7], mask[0, 2, 2, 2] = 3, 2
    target = REGIONS.encode(mask)
    for size in ((8, 8, 8), (4, 2, 4), (2, 2, 2)):
        coarse = downsample_target(target, size, 3)
        assert coarse.dtype == torch.uint8
        assert coarse.amax().item() == 1
        assert coarse.flatten(2).sum(2).tolist() == [[1, 1, 2]]  # ET, TC; WT has the other voxel, too
    assert (downsample_target(target, (5, 7, 3), 3).flatten(2).sum(2) > 0).all()
    assert downsample_target(target, (1, 1, 1), 3).flatten().tolist() == [1, 1, 1]
    assert downsample_target(torch.zeros_like(target), (4, 4, 4), 3).sum() == 0
    assert downsample_target(target, (16, 16, 16), 3) is target


@pytest.mark.parametrize("wrong", [2, 255])
def test_memberships_are_0_or_1(wrong):
    logits, target = batch(1, 2, 2, 2)
    target[0, 0, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match="memberships of regions are 0 or 1"):
        class_sums(logits, target)


def test_other_number_of_regions_than_channels(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    logits, target = batch(1, 2, 2, 2)
    with pytest.raises(ValueError, match="one channel a region"):
        class_sums(logits, target[:, :2])


def test_other_number_of_weights_than_regions():
    with pytest.raises(ValueError, match=r"4 entries.*3 channels.*one per region"):
        WeightedDiceLoss([1, 2, 3, 4])(*batch(1, 2, 2, 2))
