import jaxtyping
import pytest
import torch

from brats_lightning.losses import CategoricalFocalLoss, CompositeLoss, WeightedDiceLoss, sums
from brats_lightning.losses.sums import class_sums
from tests.losses import one_hot_losses

DICE_FOCAL = CompositeLoss({"dice": WeightedDiceLoss([1, 2, 3, 4]), "focal": CategoricalFocalLoss()})


def batch(*size, classes=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size[0], classes, *size[1:], generator=generator).mul(3).to(dtype)
    return logits, torch.randint(0, classes, size, generator=generator, dtype=torch.uint8)


def test_sums_by_hand():
    logits = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).T.reshape(1, 2, 1, 1, 2).log()
    result = class_sums(logits, torch.tensor([0, 0]).reshape(1, 1, 1, 2), gamma=1.0)
    assert result.reference.tolist() == [[2, 0]]
    torch.testing.assert_close(result.false_negatives, torch.tensor([[0.75, 0.0]]))
    torch.testing.assert_close(result.false_positives, torch.tensor([[0.0, 0.75]]))
    focal = -0.25 * torch.tensor(0.75).log() - 0.5 * torch.tensor(0.5).log()
    torch.testing.assert_close(result.focal, torch.stack((focal, torch.tensor(0.0)))[None])


def test_chunks_do_not_show(monkeypatch):
    logits, target = batch(2, 7, 5, 3)
    whole = class_sums(logits, target, 2.0)
    for voxels in (1, 30, 45):  # slabs of 1, 2 and 3 slices, the last one short
        monkeypatch.setattr(sums, "chunk_size", lambda _, voxels=voxels: voxels)
        for a, b in zip(whole, class_sums(logits, target, 2.0), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gamma", [None, 0.0, 1.0, 2.0, 2.5])
def test_gradient_of_every_sum(gamma, monkeypatch):
    monkeypatch.setattr(sums, "chunk_size", lambda _: 12)
    logits, target = batch(2, 3, 4, 2, classes=3, dtype=torch.float64)
    target[1][target[1] == 2] = 0

    def three_sums(x):
        return class_sums(x, target, gamma)[1:4]

    assert torch.autograd.gradcheck(three_sums, (logits.requires_grad_(),))


@pytest.mark.parametrize("part", ["dice", "focal", "loss"])
def test_gradient_of_the_losses(part):
    logits, target = batch(2, 3, 2, 3, dtype=torch.float64)
    target[0][target[0] == 2] = 0  # an absent class
    loss = {"loss": lambda x, t: DICE_FOCAL(x, t)["loss"], **DICE_FOCAL.parts}[part]
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits.requires_grad_(),))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_in_any_type_and_layout(dtype, layout):
    logits, target = batch(2, 9, 8, 7)
    logits = logits.to(dtype).contiguous(memory_format=layout).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    expected = one_hot_losses.dice(exact, target, [1, 2, 3, 4]) + one_hot_losses.focal(exact, target)
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):  # which must not reach the sums
        loss = DICE_FOCAL(logits, target)["loss"]
        loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert logits.grad.dtype == dtype
    assert logits.grad.is_contiguous(memory_format=layout)
    precision = torch.finfo(dtype).eps
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2 * precision, atol=1e-7)


def test_float16_sums_beyond_its_range():
    """Two million voxels, thirty times the largest float16, beside a lesion of 8."""
    logits = torch.zeros(1, 2, 128, 128, 128, dtype=torch.float16)
    logits[:, 0] = 4
    target = torch.zeros(1, 128, 128, 128, dtype=torch.uint8)
    target[0, :2, :2, :2] = 1
    p = 1 / (1 + torch.tensor(4.0, dtype=torch.float64).exp())
    background = 128**3 - 8
    predicted = p * 128**3
    dice = 1 - 2 * 8 * p / (predicted + 8)
    focal = (background * p**2 * -(1 - p).log() + 8 * (1 - p) ** 2 * -p.log()) / 128**3
    loss = CompositeLoss({"dice": WeightedDiceLoss(), "focal": CategoricalFocalLoss(alpha=1)})(logits, target)
    assert loss["dice"].item() == pytest.approx(dice.item(), rel=1e-6)
    assert loss["focal"].item() == pytest.approx(focal.item(), rel=1e-5)


def test_no_confident_right_voxel_is_lost_to_rounding():
    """1 - p is 1e-12, which float32 cannot tell from 1 - 1; its sum still counts."""
    logits = torch.zeros(1, 2, 1, 1, 4)
    logits[:, 1] = -27.631  # log 1e-12
    result = class_sums(logits, torch.zeros(1, 1, 1, 4, dtype=torch.uint8))
    torch.testing.assert_close(result.false_negatives[0, 0], torch.tensor(4e-12), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int64])
def test_any_integer_target(kind):
    logits, target = batch(1, 3, 3, 3)
    torch.testing.assert_close(DICE_FOCAL(logits, target)["loss"], DICE_FOCAL(logits, target.to(kind))["loss"])


@pytest.mark.parametrize("label", [4, 255, -1])
def test_class_without_a_channel(label):
    logits, target = batch(1, 2, 2, 2)
    target = target.long()
    target[0, 0, 0, 0] = label
    with pytest.raises(ValueError, match=r"data\.label_map"):
        class_sums(logits, target)


def test_shapes_that_disagree(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    logits, target = batch(1, 2, 2, 2)
    with pytest.raises(ValueError, match="class indices without a channel"):
        class_sums(logits, target[:, :1])
