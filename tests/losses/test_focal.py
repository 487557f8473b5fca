import math

import pytest
import torch
from torch.nn import functional

from brats_lightning.losses import CategoricalFocalLoss
from tests.losses import one_hot_losses


@pytest.fixture
def random_batch():
    torch.manual_seed(0)
    return torch.randn(2, 4, 3, 5, 7), torch.randint(0, 4, (2, 3, 5, 7))


def test_two_voxels_by_hand():
    logits = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).T.reshape(1, 2, 1, 1, 2).log()
    target = torch.tensor([0, 1]).reshape(1, 1, 1, 2)
    easy, hard = 0.25**2 * math.log(4 / 3), 0.5**2 * math.log(2)
    assert CategoricalFocalLoss()(logits, target).item() == pytest.approx(0.25 * (easy + hard) / 2)
    weighted = CategoricalFocalLoss(gamma=2, alpha=1, class_weights=[1, 3])(logits, target).item()
    assert weighted == pytest.approx((easy + 3 * hard) / 4)


def test_gamma_zero_alpha_one_is_cross_entropy(random_batch):
    logits, target = random_batch
    torch.testing.assert_close(CategoricalFocalLoss(0, 1)(logits, target), functional.cross_entropy(logits, target))


def test_weighted_gamma_zero_is_weighted_cross_entropy(random_batch):
    logits, target = random_batch
    weights = [0.1, 1.0, 2.0, 5.0]
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = CategoricalFocalLoss(0, 1, weights)(mine, target)
    expected = functional.cross_entropy(theirs, target, torch.tensor(weights))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_equals_one_hot_reference(random_batch, gamma):
    logits, target = random_batch
    mine, theirs = (logits.double().requires_grad_() for _ in range(2))
    loss = CategoricalFocalLoss(gamma, 0.25, [1, 2, 3, 4])(mine, target)
    expected = one_hot_losses.focal(theirs, target, gamma, 0.25, [1, 2, 3, 4])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_certain_predictions_are_finite(gamma):
    target = torch.tensor([0, 1]).reshape(1, 1, 1, 2)
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4]]).T.reshape(1, 2, 1, 1, 2).requires_grad_()
    loss = CategoricalFocalLoss(gamma, 1)(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(2e4 / 2)  # one voxel right (0), one wrong by 20,000
    # the right voxel pulls at nothing, the wrong one as cross-entropy does, halved by the mean
    expected = torch.tensor([[0.0, 0.0], [0.5, -0.5]]).T.reshape(1, 2, 1, 1, 2)
    torch.testing.assert_close(logits.grad, expected)


def test_perfect_prediction_costs_nothing():
    target = torch.randint(0, 3, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    logits = one_hot_losses.one_hot(target, 3).float() * 200
    assert CategoricalFocalLoss()(logits, target).item() == 0


def test_only_ratios_of_weights_matter(random_batch):
    a = CategoricalFocalLoss(class_weights=[1, 2, 3, 4])(*random_batch)
    torch.testing.assert_close(a, CategoricalFocalLoss(class_weights=[0.1, 0.2, 0.3, 0.4])(*random_batch))
    torch.testing.assert_close(
        CategoricalFocalLoss(class_weights=[5, 5, 5, 5])(*random_batch), CategoricalFocalLoss()(*random_batch)
    )


def test_voxels_without_weight_cost_nothing():
    target = torch.zeros(1, 2, 2, 2, dtype=torch.uint8)
    assert CategoricalFocalLoss(class_weights=[0, 1])(torch.zeros(1, 2, 2, 2, 2), target).item() == 0


def test_parity_with_monai(random_batch):
    losses = pytest.importorskip("monai.losses")
    logits, target = random_batch
    theirs = losses.FocalLoss(use_softmax=True, to_onehot_y=True, include_background=True, gamma=2.0)
    # MONAI averages over the classes too, all but one of which are 0 in a voxel
    expected = 4 * theirs(logits, target[:, None])
    torch.testing.assert_close(CategoricalFocalLoss(2, 1)(logits, target), expected)


@pytest.mark.parametrize("settings", [{"gamma": -1}, {"alpha": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="gamma must be 0 or more and alpha positive"):
        CategoricalFocalLoss(**settings)
