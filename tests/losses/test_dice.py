import math

import pytest
import torch

from brats_lightning.losses import WeightedDiceLoss
from tests.losses import one_hot_losses


def logits_of(probabilities):
    """Logits (1, k, 1, 1, n) whose softmax are the rows' probabilities, one row per voxel."""
    return torch.tensor(probabilities).T[None, :, None, None].log()


def certain(target, classes, score=200.0):
    """Logits of a prediction that is sure of ``target``."""
    return one_hot_losses.one_hot(target, classes).float() * score


@pytest.fixture
def random_batch():
    torch.manual_seed(0)
    target = torch.randint(0, 4, (3, 5, 3, 7))
    target[1][target[1] == 2] = 1  # a sample without class 2
    target[2] = 0  # and one without any lesion
    return torch.randn(3, 4, 5, 3, 7, dtype=torch.float64), target


def test_two_by_two_by_hand():
    logits = logits_of([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6], [0.2, 0.8]]).reshape(1, 2, 1, 2, 2)
    target = torch.tensor([[[[0, 0], [1, 1]]]])
    # Σ p y = 1.4, Σ p = 1.8, Σ y = 2: 1 - 2.8 / 3.8
    assert WeightedDiceLoss(smooth=0.0)(logits, target).item() == pytest.approx(1 / 3.8)
    # smooth is in the denominator alone, of the cost: (0.4 + 0.6) / (3.8 + 0.2)
    assert WeightedDiceLoss(smooth=0.2)(logits, target).item() == pytest.approx(0.25)
    # background: Σ p y = 1.6, Σ p = 2.2, Σ y = 2: 1 / 4.2; the mean of the two
    loss = WeightedDiceLoss(smooth=0.0, include_background=True)
    assert loss(logits, target).item() == pytest.approx((1 / 3.8 + 1 / 4.2) / 2)


def test_absent_class_by_hand():
    logits = logits_of([[0.5, 0.5, 0.0], [0.0, 0.75, 0.25], [0.75, 0.0, 0.25], [1.0, 0.0, 0.0]])
    target = torch.tensor([0, 1, 0, 0]).reshape(1, 1, 1, 4)
    # class 1: FN 0.25, FP 0.5, R 1: 0.75 / 2.25. Class 2 is absent: FP 0.5 of 4 voxels, offset 0.5 · 4 = 2: 0.5 / 2.5
    loss = WeightedDiceLoss([9.0, 1.0, 3.0], smooth=0.0, absent_fraction=0.5)
    # class 1 takes the whole mean, class 2 is charged by its own weight 3 / (1 + 3)
    assert loss(logits, target).item() == pytest.approx(0.75 / 2.25 + 0.75 * 0.2)


@pytest.mark.parametrize("fraction", [1e-3, 0.125])
def test_charge_is_a_half_at_the_fraction(fraction):
    voxels = 8 * 8 * 8
    p = torch.full((1, 1, 8, 8, 8), fraction, dtype=torch.float64)
    logits = torch.cat((1 - p, p), 1).log()
    target = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    assert WeightedDiceLoss(absent_fraction=fraction)(logits, target).item() == pytest.approx(0.5)
    # the same as beside a perfectly segmented lesion that fills half that fraction
    lesion = fraction * voxels / 2
    assert 1 - 2 * lesion / (2 * lesion + fraction * voxels) == pytest.approx(0.5)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 4.0]])
def test_equals_one_hot_reference(random_batch, weights, include_background, batch):
    logits, target = random_batch
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = WeightedDiceLoss(weights, include_background=include_background, batch=batch)(mine, target)
    reference = one_hot_losses.dice(theirs, target, weights, include_background, batch)
    # the reference's smooth is in numerator and denominator of Dice, which is the denominator of 1 - Dice
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=1e-12)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("present", [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [3]])
def test_perfect_prediction_costs_nothing(present, include_background, batch):
    torch.manual_seed(1)
    target = torch.tensor(present)[torch.randint(0, len(present), (2, 3, 5, 4))]
    loss = WeightedDiceLoss([1, 2, 3, 4], include_background=include_background, batch=batch)
    assert loss(certain(target, 4), target).item() == 0


def test_one_voxel():
    target = torch.ones(1, 1, 1, 1, dtype=torch.uint8)
    loss = WeightedDiceLoss(smooth=0.0)
    assert loss(certain(target, 2), target).item() == 0
    assert loss(certain(1 - target, 2), target).item() == pytest.approx(1)
    assert loss(torch.zeros(1, 2, 1, 1, 1), target).item() == pytest.approx(0.5 / 1.5)


def test_false_positives_without_lesions_cost_and_have_a_gradient():
    target = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    loss = WeightedDiceLoss()
    costs = []
    for score in (-30.0, -12.0, -6.0, 0.0, 6.0):
        logits = torch.zeros(1, 3, 4, 4, 4)
        logits[:, 1:] = -100
        logits[:, 2, 1, 1, 1] = score
        logits.requires_grad_()
        cost = loss(logits, target)
        cost.backward()
        costs.append(cost.item())
        assert logits.grad[0, 2, 1, 1, 1] > 0
    assert costs == sorted(set(costs))
    assert 0 < costs[0] < 1e-9  # a faint false positive costs next to nothing: the charge is continuous
    assert costs[-1] < 1


def test_missed_lesion_costs_one():
    target = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    target[0, 1, 1, 1] = 2
    loss = WeightedDiceLoss(smooth=0)
    assert loss(certain(torch.zeros_like(target), 3), target).item() == pytest.approx(1)


def test_only_ratios_of_weights_matter(random_batch):
    logits, target = random_batch
    a = WeightedDiceLoss([1, 2, 3, 4])(logits, target)
    b = WeightedDiceLoss([100, 200, 300, 400])(logits, target)
    c = WeightedDiceLoss([7, 2, 3, 4])(logits, target)  # the background's weight is unused
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a, c)
    assert a != WeightedDiceLoss()(logits, target)


def test_zero_weight_leaves_a_class_out(random_batch):
    logits, target = random_batch
    target[0] = 3
    expected = one_hot_losses.dice(logits[:1], target[:1], [0, 1, 1, 0])
    loss = WeightedDiceLoss([0, 1, 1, 0])(logits[:1], target[:1])
    torch.testing.assert_close(loss, expected)  # only absent classes have a weight: no 0 / 0


def test_class_permutation_changes_nothing(random_batch):
    logits, target = random_batch
    weights = [1.0, 2.0, 3.0, 4.0]
    order = [0, 3, 1, 2]  # new class i is old class order[i]
    moved = torch.tensor([order.index(c) for c in range(4)])[target]
    a = WeightedDiceLoss(weights)(logits, target)
    b = WeightedDiceLoss([weights[c] for c in order])(logits[:, order], moved)
    torch.testing.assert_close(a, b)


def test_batch_pools_the_sums(random_batch):
    logits, target = random_batch
    assert WeightedDiceLoss(batch=True)(logits, target) != WeightedDiceLoss()(logits, target)
    torch.testing.assert_close(
        WeightedDiceLoss(batch=True)(logits[:1], target[:1]), WeightedDiceLoss()(logits[:1], target[:1])
    )


@pytest.mark.parametrize("include_background", [False, True])
def test_parity_with_monai(include_background):
    losses = pytest.importorskip("monai.losses")
    torch.manual_seed(2)
    logits, target = torch.randn(2, 4, 6, 5, 7), torch.randint(0, 4, (2, 6, 5, 7))  # every class in every sample
    theirs = losses.DiceLoss(
        softmax=True, to_onehot_y=True, include_background=include_background, smooth_nr=0, smooth_dr=1e-5
    )(logits, target[:, None])
    mine = WeightedDiceLoss(include_background=include_background)(logits, target)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"class_weights": [1, -1]}, "none negative"),
        ({"class_weights": [0, 0]}, "not all 0"),
        ({"class_weights": [1, math.nan]}, "finite"),
        ({"smooth": -1}, "smooth"),
        ({"absent_fraction": 0}, "absent_fraction"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        WeightedDiceLoss(**settings)


def test_other_number_of_weights_than_classes():
    with pytest.raises(ValueError, match=r"2 entries.*3 channels.*background first"):
        WeightedDiceLoss([1, 2])(torch.zeros(1, 3, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.uint8))


def test_weight_of_the_background_alone():
    logits, target = torch.zeros(1, 3, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="foreground are all 0"):
        WeightedDiceLoss([1, 0, 0])(logits, target)
    assert WeightedDiceLoss([1, 0, 0], include_background=True)(logits, target).isfinite()


def test_weights_are_not_part_of_a_checkpoint():
    assert not WeightedDiceLoss([1, 2]).state_dict()
