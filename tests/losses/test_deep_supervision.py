import pytest
import torch

from brats_lightning.losses import CategoricalFocalLoss, CompositeLoss, DeepSupervision, WeightedDiceLoss
from brats_lightning.losses.deep_supervision import downsample_target

CROSS_ENTROPY = CategoricalFocalLoss(0, 1)


@pytest.fixture
def target():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 3, (2, 8, 6, 5), generator=generator, dtype=torch.uint8)


@pytest.fixture
def levels():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, *size, generator=generator) for size in ((8, 6, 5), (4, 3, 3), (2, 2, 2))]


def test_one_tensor_is_the_loss_itself(levels, target):
    assert DeepSupervision(CROSS_ENTROPY)(levels[0], target) == CROSS_ENTROPY(levels[0], target)


@pytest.mark.parametrize(("decay", "weights"), [(0.5, (4 / 7, 2 / 7, 1 / 7)), (1.0, (1 / 3, 1 / 3, 1 / 3))])
def test_weighted_mean_over_resolutions(levels, target, decay, weights):
    values = [CROSS_ENTROPY(x, downsample_target(target, x.shape[2:], 3)) for x in levels]
    expected = sum(w * value for w, value in zip(weights, values, strict=True))
    torch.testing.assert_close(DeepSupervision(CROSS_ENTROPY, decay)(levels, target), expected)


def test_parts_are_those_of_the_full_resolution(levels, target):
    composite = CompositeLoss({"dice": WeightedDiceLoss(), "focal": CategoricalFocalLoss()})
    result = DeepSupervision(composite)(levels, target)
    full = composite(levels[0], target)
    assert (result["dice"], result["focal"]) == (full["dice"], full["focal"])
    totals = [composite(x, downsample_target(target, x.shape[2:], 3))["loss"] for x in levels]
    torch.testing.assert_close(result["loss"], (4 * totals[0] + 2 * totals[1] + totals[2]) / 7)


def test_one_voxel_survives_every_resolution():
    target = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    target[0, 13, 5, 7] = 3
    for size in (8, 4, 2, 1):
        coarse = downsample_target(target, (size,) * 3, 4)
        assert coarse.sum() == 3
        assert coarse[0, 13 * size // 16, 5 * size // 16, 7 * size // 16] == 3


def test_most_frequent_foreground_wins():
    block = torch.tensor([0, 0, 0, 0, 0, 2, 2, 1], dtype=torch.uint8).reshape(1, 2, 2, 2)
    assert downsample_target(block, (1, 1, 1), 3).item() == 2  # not the background, though most voxels are
    tie = torch.tensor([3, 3, 1, 1, 0, 0, 0, 0], dtype=torch.int64).reshape(1, 2, 2, 2)
    assert downsample_target(tie, (1, 1, 1), 4).item() == 1
    assert downsample_target(torch.zeros_like(tie), (1, 1, 1), 4).item() == 0


def test_odd_sizes_keep_every_lesion():
    for z in range(37):
        target = torch.zeros(1, 37, 5, 3, dtype=torch.uint8)
        target[0, z, z % 5, z % 3] = 1
        assert downsample_target(target, (19, 3, 2), 2).any()


def test_same_size_is_the_target_itself(target):
    assert downsample_target(target, (8, 6, 5), 3) is target


def test_decay_must_be_positive():
    with pytest.raises(ValueError, match="decay"):
        DeepSupervision(CROSS_ENTROPY, 0)
