import pytest
import torch
from torch import nn

from brats_lightning.core.components import label_components
from brats_lightning.losses import (
    BlobLoss,
    CategoricalFocalLoss,
    ChannelTarget,
    ComponentDiceLoss,
    CompositeLoss,
    WeightedDiceLoss,
    composite,
    instances,
    sums,
)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, logits, target):
        return logits.mean() * 0 + self.value


@pytest.fixture
def random_batch():
    torch.manual_seed(0)
    return torch.randn(2, 4, 3, 5, 7, requires_grad=True), torch.randint(0, 4, (2, 3, 5, 7))


def test_weighted_sum(random_batch):
    loss = CompositeLoss({"a": Constant(2.0), "b": Constant(5.0)}, {"b": 0.1, "a": 3.0})
    result = loss(*random_batch)
    assert {name: value.item() for name, value in result.items()} == pytest.approx({"loss": 6.5, "a": 2.0, "b": 5.0})


def test_parts_equal_the_losses_alone(random_batch):
    dice, focal, entropy = WeightedDiceLoss([1, 2, 3, 4]), CategoricalFocalLoss(), CategoricalFocalLoss(0, 1)
    result = CompositeLoss({"dice": dice, "focal": focal, "entropy": entropy, "one": Constant(1.0)})(*random_batch)
    alone = {"dice": dice(*random_batch), "focal": focal(*random_batch), "entropy": entropy(*random_batch)}
    for name, value in alone.items():
        torch.testing.assert_close(result[name], value.detach())
        assert not result[name].requires_grad
    torch.testing.assert_close(result["loss"], sum(alone.values()) + 1)


def test_one_pass_over_the_voxels_for_equal_gamma(random_batch, monkeypatch):
    passes = []

    def counting(logits, target, gamma, lesions=None):
        passes.append(gamma)
        return class_sums(logits, target, gamma, lesions)

    class_sums = composite.class_sums
    for module in (composite, instances):
        monkeypatch.setattr(module, "class_sums", counting)
    dice, focal = WeightedDiceLoss(), CategoricalFocalLoss()
    CompositeLoss({"dice": dice, "focal": focal, "weighted": CategoricalFocalLoss(class_weights=[1, 2, 3, 4])})(
        *random_batch
    )
    assert passes == [2.0]
    CompositeLoss({"dice": dice})(*random_batch)
    assert passes == [2.0, None]
    CompositeLoss({"dice": dice, "focal": focal, "blob": BlobLoss(), "component": ComponentDiceLoss()})(*random_batch)
    assert passes == [2.0, None, 2.0]
    BlobLoss()(*random_batch)
    assert passes == [2.0, None, 2.0, None]


@pytest.mark.parametrize("kind", ["classes", "memberships"])
def test_instance_losses_in_the_one_pass_equal_themselves_alone(random_batch, kind, monkeypatch):
    monkeypatch.setattr(sums, "chunk_size", lambda _: 100)  # several chunks a sample
    logits, target = random_batch
    target = target * (torch.rand(target.shape) < 0.1)
    assert all(label_components(sample.numpy() > 0)[1] > 1 for sample in target)
    if kind == "memberships":
        target = torch.stack([target == 3, (target == 1) | (target == 3), target > 0], 1).byte()
        logits = logits[:, 1:]
    parts = {"blob": BlobLoss(), "dice": WeightedDiceLoss(), "component": ComponentDiceLoss()}
    parts |= {"focal": CategoricalFocalLoss(), "entropy": CategoricalFocalLoss(0, 1)}  # of two γ
    weights = {"blob": 2.0, "dice": 1.0, "component": 3.0, "focal": 0.5, "entropy": 0.25}
    together, apart = (logits.detach().clone().requires_grad_() for _ in range(2))
    result = CompositeLoss(parts, weights)(together, target)
    alone = {name: part(apart, target) for name, part in parts.items()}
    for name, value in alone.items():
        torch.testing.assert_close(result[name], value.detach())
    expected = sum(weights[name] * value for name, value in alone.items())
    torch.testing.assert_close(result["loss"], expected)
    result["loss"].backward()
    expected.backward()
    torch.testing.assert_close(together.grad, apart.grad)


@pytest.mark.parametrize("parts", [{}, {"loss": Constant(1.0)}])
def test_bad_parts(parts):
    with pytest.raises(ValueError, match="at least one loss, none of them 'loss'"):
        CompositeLoss(parts)


def test_weights_of_other_names():
    with pytest.raises(ValueError, match="same losses"):
        CompositeLoss({"dice": Constant(1.0)}, {"focal": 1.0})


def test_parts_of_other_labels():
    with pytest.raises(ValueError, match=r"same labels.*'rc'"):
        CompositeLoss({"blob": BlobLoss(), "component": ComponentDiceLoss(["netc", "snfh", "et", "rc"])})


def test_channel_target():
    seen = {}

    def outside(logits, target):
        seen.update(dtype=logits.dtype, shape=tuple(target.shape), kind=target.dtype)
        return logits.sum()

    ChannelTarget(outside)(torch.zeros(2, 3, 4, 5, 6, dtype=torch.bfloat16), torch.zeros(2, 4, 5, 6, dtype=torch.uint8))
    assert seen == {"dtype": torch.float32, "shape": (2, 1, 4, 5, 6), "kind": torch.int64}


def test_parity_with_monai_dice_focal(random_batch):
    losses = pytest.importorskip("monai.losses")
    logits, target = random_batch
    theirs = ChannelTarget(
        losses.DiceFocalLoss(softmax=True, to_onehot_y=True, smooth_nr=0, smooth_dr=1e-5, gamma=2.0, lambda_focal=0)
    )
    # its focal part is a sum of sigmoids; ours of a softmax is compared with MONAI's softmax one by itself
    mine = CompositeLoss(
        {"dice": WeightedDiceLoss(include_background=True), "focal": CategoricalFocalLoss()}, {"dice": 1, "focal": 0}
    )
    torch.testing.assert_close(mine(logits, target)["loss"], theirs(logits, target))
