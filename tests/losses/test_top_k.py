import math

import pytest
import torch
from torch.nn import functional

from brats_lightning.core.labels import BRATS_METS, IGNORE
from brats_lightning.core.targets import make_target
from brats_lightning.losses import CompositeLoss, DeepSupervision, KnownVoxels, TopKCrossEntropy, WeightedDiceLoss


def batch(target="classes", dtype=torch.float32):
    torch.manual_seed(0)
    what = make_target(target, BRATS_METS)
    mask = torch.randint(0, 4, (2, 3, 5, 7)).byte()
    return torch.randn(2, what.channels, 3, 5, 7, dtype=dtype, requires_grad=True), what.encode(mask)


def test_four_voxels_by_hand():
    """Two classes with equal logits but for a difference d: the cost of a wrong voxel is log(1 + exp(d))."""
    differences = torch.tensor([0.0, 1.0, 2.0, -3.0])  # of class 1 to class 0
    logits = torch.stack([torch.zeros(4), differences]).reshape(1, 2, 1, 1, 4)
    target = torch.tensor([0, 0, 1, 1]).reshape(1, 1, 1, 4)
    costs = [math.log(2), math.log(1 + math.e), math.log(1 + math.exp(-2)), math.log(1 + math.exp(3))]
    assert TopKCrossEntropy(25)(logits, target).item() == pytest.approx(costs[3])
    assert TopKCrossEntropy(50)(logits, target).item() == pytest.approx((costs[3] + costs[1]) / 2)
    assert TopKCrossEntropy(51)(logits, target).item() == pytest.approx((costs[3] + costs[1] + costs[0]) / 3)
    assert TopKCrossEntropy(0.1)(logits, target).item() == pytest.approx(costs[3])  # one voxel at least


def test_regions_by_hand():
    """Two regions in two voxels: binary cross-entropies log(1 + exp(-x)) inside and log(1 + exp(x)) outside."""
    logits = torch.tensor([[1.0, -1.0], [0.0, 3.0]]).reshape(1, 2, 1, 1, 2)
    inside = torch.tensor([[1, 1], [0, 0]], dtype=torch.uint8).reshape(1, 2, 1, 1, 2)
    hardest = math.log(1 + math.exp(3)), math.log(1 + math.e)  # outside at 3, inside at -1
    assert TopKCrossEntropy(50)(logits, inside).item() == pytest.approx(sum(hardest) / 2)


@pytest.mark.parametrize("percent", [3, 10, 62.5])
@pytest.mark.parametrize("target", ["classes", "regions"])
def test_value_and_gradient_of_a_plain_implementation(target, percent):
    logits, reference = batch(target, torch.float64)
    loss = TopKCrossEntropy(percent)(logits, reference)
    (gradient,) = torch.autograd.grad(loss, logits)
    if target == "classes":
        costs = functional.cross_entropy(logits, reference.long(), reduction="none")
    else:
        p = logits.sigmoid()
        costs = -torch.where(reference > 0, p, 1 - p).log()
    costs = costs.flatten().sort(descending=True).values
    expected = costs[: math.ceil(len(costs) * percent / 100)].mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_all_voxels_are_the_cross_entropy():
    logits, target = batch()
    torch.testing.assert_close(TopKCrossEntropy(100)(logits, target), functional.cross_entropy(logits, target.long()))
    logits, inside = batch("regions")
    expected = functional.binary_cross_entropy_with_logits(logits, inside.float())
    torch.testing.assert_close(TopKCrossEntropy(100)(logits, inside), expected)


@pytest.mark.parametrize("target", ["classes", "regions"])
def test_unknown_voxels_cost_nothing(target):
    """However wrong, they are never among the hardest, and they have no gradient."""
    what = make_target(target, BRATS_METS, partly_labelled=True)
    torch.manual_seed(0)
    mask = torch.randint(0, 4, (1, 2, 4, 5)).byte()
    mask[0, 0] = IGNORE
    logits = torch.randn(1, what.channels, 2, 4, 5)
    logits[:, :, 0] *= 100
    logits.requires_grad_()
    loss = KnownVoxels(TopKCrossEntropy(20), what.background)(logits, what.encode(mask))
    known = TopKCrossEntropy(40)(logits[:, :, 1:], what.encode(mask[:, 1:]))  # as many of half the voxels
    torch.testing.assert_close(loss, known)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:, :, 0].any()
    assert gradient[:, :, 1].any()


def test_certain_predictions_are_finite():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]]).reshape(1, 2, 1, 1, 2).requires_grad_()
    for reference in (torch.tensor([0, 0]).reshape(1, 1, 1, 2), torch.ones(1, 2, 1, 1, 2, dtype=torch.uint8)):
        loss = TopKCrossEntropy(50)(logits, reference)
        assert torch.isfinite(loss)
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()
    right = torch.tensor([0, 1]).reshape(1, 1, 1, 2)
    assert TopKCrossEntropy(50)(logits, right) == 0


def test_half_precision_is_summed_in_single():
    logits, target = batch()
    half = logits.detach().bfloat16()
    assert TopKCrossEntropy()(half, target).dtype == torch.float32
    torch.testing.assert_close(TopKCrossEntropy()(half, target), TopKCrossEntropy()(half.float(), target))


def test_the_config_at_two_resolutions(composed):
    from hydra.utils import instantiate

    loss = instantiate(composed("loss=dice_topk", "loss.parts.topk.percent=30").loss)
    assert isinstance(loss, CompositeLoss)
    logits, target = batch()
    coarse = torch.randn(2, 4, 2, 3, 4)
    parts = DeepSupervision(loss)([logits, coarse], target)
    torch.testing.assert_close(parts["topk"], TopKCrossEntropy(30)(logits, target).detach())
    single = loss(logits, target)
    torch.testing.assert_close(
        single["loss"], WeightedDiceLoss()(logits, target) + TopKCrossEntropy(30)(logits, target)
    )
    assert not torch.equal(parts["loss"], single["loss"])


@pytest.mark.parametrize("percent", [0, -1, 101])
def test_percent_out_of_range(percent):
    with pytest.raises(ValueError, match="percent must be above 0 to 100"):
        TopKCrossEntropy(percent)
