"""Rotation, scaling and flips in one resampling."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from brats_lightning.data.augment.affine import RandomAffine, affine_matrix, apply_affine
from brats_lightning.data.augment.pipeline import Augmentation

NONE, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(shape=(8, 8, 8), channels=2, seed=0):
    image = torch.randn(channels, *shape, generator=seeded(seed))
    return image, torch.randint(0, 4, shape, generator=seeded(seed + 1), dtype=torch.uint8)


def resampled(image, mask, matrix):
    image, mask = image.clone(), mask.clone()
    apply_affine(image, mask, matrix)
    return image, mask


def sampled_by_torch(image, mask, matrix):
    """The outside implementation."""
    shape = torch.tensor(mask.shape, dtype=torch.float64)
    theta = torch.from_numpy(matrix) * (shape - 1) / (shape[:, None] - 1)  # to the range −1 … 1 of each axis
    theta = F.pad(theta.flip(0, 1), (0, 1))[None].float()
    grid = F.affine_grid(theta, [1, 1, *mask.shape], align_corners=True)
    labels = F.grid_sample(mask[None, None].float(), grid, mode="nearest", align_corners=True)
    return F.grid_sample(image[None], grid, align_corners=True)[0], labels[0, 0].to(torch.uint8)


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 7, 6), (1, 4, 9), (1, 1, 1)])
def test_identity(shape):
    image, mask = sample(shape)
    result, labels = resampled(image, mask, affine_matrix(NONE, ONE))
    torch.testing.assert_close(result, image)
    assert torch.equal(labels, mask)


@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 7, 7)])
@pytest.mark.parametrize(("axis", "plane"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
@pytest.mark.parametrize("quarters", [1, -1, 2])
def test_quarter_turns_are_rot90(shape, axis, plane, quarters):
    image, mask = sample(shape)
    angles = [90.0 * quarters if a == axis else 0.0 for a in range(3)]
    result, labels = resampled(image, mask, affine_matrix(angles, ONE))
    torch.testing.assert_close(result, image.rot90(quarters, [a + 1 for a in plane]), atol=1e-4, rtol=0)
    assert torch.equal(labels, mask.rot90(quarters, plane))


def test_turns_follow_each_other_about_x_then_y_then_z():
    image, mask = sample()
    _, labels = resampled(image, mask, affine_matrix((90.0, 90.0, 90.0), ONE))
    assert torch.equal(labels, mask.rot90(1, (0, 1)).rot90(1, (0, 2)).rot90(1, (1, 2)))


def test_scaling_by_2_by_hand():
    line = torch.tensor([10.0, 20.0, 40.0, 80.0])
    image, mask = line.view(1, 1, 1, 4), torch.tensor([0, 1, 2, 3], dtype=torch.uint8).view(1, 1, 4)
    result, labels = resampled(image, mask, affine_matrix(NONE, (1.0, 1.0, 2.0)))
    # voxels −1.5 … 1.5 from the centre show −0.75 … 0.75, that is positions 0.75, 1.25, 1.75, 2.25
    torch.testing.assert_close(result.flatten(), torch.tensor([17.5, 25.0, 35.0, 50.0]))
    assert labels.flatten().tolist() == [1, 1, 2, 2]
    result, labels = resampled(image, mask, affine_matrix(NONE, (1.0, 1.0, 0.5)))
    # … show −3 … 3, that is positions −1.5, 0.5, 2.5, 4.5: zeros outside
    torch.testing.assert_close(result.flatten(), torch.tensor([0.0, 15.0, 60.0, 0.0]))
    assert labels.flatten().tolist()[::3] == [0, 0]


@pytest.mark.parametrize("shape", [(16, 16, 16), (9, 14, 11)])
def test_equals_grid_sample(shape):
    image, mask = sample(shape)
    for seed in range(4):
        matrix = RandomAffine(1.0, (180.0,) * 3, 1.0, (0.5, 2.0), isotropic=False).draw(seeded(seed), (1.5, 0.9, 0.7))
        result, labels = resampled(image, mask, matrix)
        expected, expected_labels = sampled_by_torch(image, mask, matrix)
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
        assert (labels != expected_labels).float().mean() < 0.002  # ties


def test_more_than_one_chunk(monkeypatch):
    monkeypatch.setattr("brats_lightning.data.augment.affine.chunk_size", lambda _: 200)
    test_equals_grid_sample((9, 14, 11))


def test_a_mask_gets_no_new_label():
    image, _ = sample((20, 20, 20), channels=1)
    mask = torch.zeros(20, 20, 20, dtype=torch.uint8)
    mask[5:15, 5:15, 5:10] = 4
    for seed in range(5):
        _, labels = resampled(image, mask, RandomAffine(1.0, p_scaling=1.0).draw(seeded(seed)))
        assert labels.unique().tolist() == [0, 4]


def test_anisotropic_voxels_turn_rigidly():
    """A quarter turn about x swaps millimetres, not voxels: 3 mm along z are 1 voxel, along y 3."""
    image, mask = torch.zeros(1, 5, 15, 1), torch.zeros(5, 15, 1, dtype=torch.uint8)
    mask[3, 7, 0] = 1  # 3 mm above the centre, which turns to 3 mm behind it
    _, labels = resampled(image, mask, affine_matrix((0.0, 0.0, 90.0), ONE, spacing=(3.0, 1.0, 1.0)))
    assert labels[..., 0].nonzero().tolist() == [[2, 9], [2, 10], [2, 11]]


def test_axial_rotation_keeps_the_slices():
    image, mask = sample((6, 10, 10))
    matrix = RandomAffine(1.0, (30.0, 0.0, 0.0), 0.0).draw(seeded())
    np.testing.assert_allclose(matrix[0], [1, 0, 0])
    np.testing.assert_allclose(matrix[:, 0], [1, 0, 0])
    image[:, 2] = 0
    result, _ = resampled(image, mask, matrix)
    assert (result[:, 2] == 0).all()
    assert (result[:, 3] != 0).any()


def test_rotations_scale_nothing_and_stay_in_their_limits():
    turn = RandomAffine(1.0, (10.0, 20.0, 30.0), 0.0)
    for seed in range(50):
        matrix = turn.draw(seeded(seed))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    only_z = [RandomAffine(1.0, (10.0, 0.0, 0.0), 0.0).draw(seeded(seed)) for seed in range(200)]
    angles = np.degrees([np.arctan2(m[1, 2], m[1, 1]) for m in only_z])
    assert abs(angles).max() <= 10
    assert angles.min() < -8
    assert angles.max() > 8


def test_scaling_draws_one_factor_or_three():
    one = np.diag(RandomAffine(0.0, p_scaling=1.0).draw(seeded()))
    three = np.diag(RandomAffine(0.0, p_scaling=1.0, isotropic=False).draw(seeded()))
    assert len(set(one)) == 1
    assert len(set(three)) == 3
    assert all(1 / 1.4 <= value <= 1 / 0.7 for value in (*one, *three))


def test_rotation_and_scaling_happen_as_often_as_configured():
    generator = seeded()
    affine = RandomAffine()
    drawn = [affine.draw(generator) for _ in range(2000)]
    assert np.mean([matrix is not None for matrix in drawn]) == pytest.approx(1 - 0.8 * 0.8, abs=0.03)


def test_flips_are_fused_into_the_resampling():
    image, mask = sample((6, 7, 8))
    affine = RandomAffine(1.0)
    flipped = Augmentation((1.0, 0.0, 1.0), affine)(image[None].clone(), mask[None].clone(), seeded())
    plain = Augmentation((0.0, 0.0, 0.0), affine)(image[None].clone(), mask[None].clone(), seeded())
    torch.testing.assert_close(flipped[0], plain[0].flip(2, 4), atol=1e-5, rtol=0)
    assert (flipped[1] != plain[1].flip(1, 3)).float().mean() < 0.01


def test_the_spacing_of_each_sample_is_used():
    image, mask = sample((9, 9, 9))
    image, mask = image.expand(2, -1, -1, -1, -1).clone(), mask.expand(2, -1, -1, -1).clone()
    turn = RandomAffine(1.0, (0.0, 0.0, 90.0))
    plain, _ = Augmentation(NONE, turn)(image.clone(), mask.clone(), seeded())
    both, _ = Augmentation(NONE, turn)(image.clone(), mask.clone(), seeded(), [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0)])
    assert torch.equal(both[0], plain[0])
    assert not torch.equal(both[1], plain[1])
