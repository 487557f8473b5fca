"""Values, frequencies and random numbers of the augmentation; the geometry is in test_resampling."""

import numpy as np
import pytest
import torch

from brats_lightning.data.augment.affine import RandomAffine
from brats_lightning.data.augment.intensity import (
    Brightness,
    Contrast,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    LowResolution,
    Shift,
    blur_axis,
)
from brats_lightning.data.augment.pipeline import Augmentation
from brats_lightning.data.augment.randomness import happens, log_uniform, new_seed, uniform


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(b=2, shape=(6, 7, 8), seed=0):
    """Noise with a corner of background, and a mask of four classes."""
    image = torch.randn(b, 2, *shape, generator=seeded(seed))
    image[:, :, : shape[0] // 3, : shape[1] // 2] = 0
    mask = torch.randint(0, 4, (b, *shape), generator=seeded(seed + 1), dtype=torch.uint8)
    return image, mask


def every_change(p):
    return {
        "noise": GaussianNoise(p),
        "blur": GaussianBlur(p, p_channel=1.0),
        "brightness": Brightness(p),
        "contrast": Contrast(p),
        "shift": Shift(p),
        "low": LowResolution(p, zoom=(0.5, 0.8), p_channel=1.0),
        "inverted": Gamma(p, invert=True),
        "gamma": Gamma(p),
    }


def apply(change, channel, seed=0):
    """The change of one channel (z, y, x); the input stays as it is."""
    image = channel[None].clone()
    change(image, seeded(seed))
    return image[0]


# --- the whole ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [(2,), (0, 1), (0, 1, 2)])
def test_a_flip_is_an_exact_flip_of_image_and_mask(axes):
    image, mask = batch()
    flipped, labels = Augmentation(flip=[float(a in axes) for a in range(3)])(image.clone(), mask.clone(), seeded())
    assert torch.equal(flipped, image.flip([a + 2 for a in axes]))
    assert torch.equal(labels, mask.flip([a + 1 for a in axes]))


def test_left_right_is_the_flip_by_default():
    image, mask = batch(b=64, shape=(2, 2, 3))
    result, _ = Augmentation()(image.clone(), mask, seeded())
    kept = (result == image).flatten(1).all(1)
    turned = (result == image.flip(-1)).flatten(1).all(1)
    assert (kept | turned).all()
    assert 20 < turned.sum() < 44


def test_works_in_place_and_returns_the_batch():
    image, mask = batch()
    result = Augmentation(flip=(1.0, 1.0, 1.0), affine=RandomAffine(1.0), intensity=every_change(1.0))(
        image, mask, seeded()
    )
    assert result[0] is image
    assert result[1] is mask


def test_probability_0_leaves_every_bit():
    image, mask = batch()
    nothing = Augmentation((0.0, 0.0, 0.0), RandomAffine(p_rotation=0.0, p_scaling=0.0), every_change(0.0))
    result, labels = nothing(image.clone(), mask.clone(), seeded())
    assert torch.equal(result, image)
    assert torch.equal(labels, mask)
    result, labels = Augmentation((0.0, 0.0, 0.0))(image.clone(), mask.clone(), seeded())
    assert torch.equal(result, image)


@pytest.mark.parametrize("name", list(every_change(1.0)))
def test_probability_1_always_changes_and_background_stays_0(name):
    image, mask = batch(b=8)
    result, labels = Augmentation((0.0, 0.0, 0.0), None, {name: every_change(1.0)[name]})(
        image.clone(), mask.clone(), seeded()
    )
    changed = (result != image).flatten(2).any(2)
    assert changed.all()
    assert torch.isfinite(result).all()
    assert (result[image == 0] == 0).all()
    assert torch.equal(labels, mask)


def test_null_leaves_a_change_out():
    augmentation = Augmentation(intensity={"noise": None, "shift": Shift(1.0)})
    assert list(augmentation.intensity) == ["shift"]


def test_equal_seeds_give_equal_bits_and_other_seeds_others():
    augmentation = Augmentation((0.5, 0.5, 0.5), RandomAffine(0.5, p_scaling=0.5), every_change(0.5))
    first, second, other = (augmentation(*batch(b=4), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_a_sample_is_augmented_independently_of_the_others_in_its_batch():
    augmentation = Augmentation((0.5, 0.5, 0.5), RandomAffine(0.5, p_scaling=0.5), every_change(0.5))
    image, mask = batch(b=4)
    whole, labels = augmentation(image.clone(), mask.clone(), seeded())
    others = torch.randn(image.shape, generator=seeded(9))
    others[2] = image[2]
    again, again_labels = augmentation(others, mask.clone(), seeded())
    assert torch.equal(again[2], whole[2])
    assert torch.equal(again_labels, labels)
    generator = seeded()
    for index in range(4):  # each alone, whatever the ones before it drew
        alone, _ = augmentation(image[index, None].clone(), mask[index, None].clone(), generator.clone_state())
        assert torch.equal(alone[0], whole[index])
        new_seed(generator)


def test_samples_of_a_batch_differ():
    image, mask = batch(b=1)
    image, mask = image.repeat(4, 1, 1, 1, 1), mask.repeat(4, 1, 1, 1)
    result, _ = Augmentation((0.0, 0.0, 0.0), RandomAffine(1.0), every_change(1.0))(image, mask, seeded())
    assert all(not torch.equal(result[i], result[j]) for i in range(4) for j in range(i))


def test_parts_happen_as_often_as_configured():
    image = torch.ones(2000, 1, 1, 1, 1)
    mask = torch.zeros(2000, 1, 1, 1, dtype=torch.uint8)
    changes = {"brightness": Brightness(0.15, factor=(2.0, 2.0)), "shift": Shift(0.3, offset=(10.0, 10.0))}
    result, _ = Augmentation((0.0, 0.0, 0.0), None, changes)(image, mask, seeded())
    values = result.flatten()
    assert sorted(set(values.tolist())) == pytest.approx([1, 2, 11, 12])
    assert np.isin(values.round(), (2, 12)).mean() == pytest.approx(0.15, abs=0.025)
    assert np.isin(values.round(), (11, 12)).mean() == pytest.approx(0.30, abs=0.03)
    assert (values.round() == 12).float().mean() == pytest.approx(0.045, abs=0.015)  # independent of each other


def test_channels_of_a_drawn_sample_are_changed_with_their_own_probability():
    image = torch.ones(2000, 1, 1, 1)
    Shift(1.0, offset=(1.0, 1.0), p_channel=0.5)(image, seeded())
    assert (image == 2).float().mean() == pytest.approx(0.5, abs=0.04)


def test_one_voxel_patches_and_background_only():
    augmentation = Augmentation((1.0, 1.0, 1.0), RandomAffine(1.0, p_scaling=1.0), every_change(1.0))
    for value in (0.0, 1.5):
        image = torch.full((2, 3, 1, 1, 1), value)
        result, mask = augmentation(image, torch.full((2, 1, 1, 1), 3, dtype=torch.uint8), seeded())
        assert torch.isfinite(result).all()
        assert (mask == 3).all()
        assert ((result == 0) == (value == 0)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_only_float32_is_taken(dtype):
    image, mask = batch()
    with pytest.raises(ValueError, match="float32"):
        Augmentation()(image.to(dtype), mask, seeded())


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: Augmentation(flip=(0.5, 0.5)), "flip"),
        (lambda: Augmentation(flip=(0.5, 0.5, 1.5)), "flip"),
        (lambda: RandomAffine(p_rotation=-0.1), "affine.p_rotation"),
        (lambda: RandomAffine(p_scaling=2.0), "affine.p_scaling"),
        (lambda: RandomAffine(rotation=(30.0, 30.0)), "affine.rotation"),
        (lambda: RandomAffine(rotation=(-30.0, 0.0, 0.0)), "affine.rotation"),
        (lambda: RandomAffine(scaling=(0.0, 1.0)), "affine.scaling"),
        (lambda: RandomAffine(scaling=(1.2, 0.8)), "affine.scaling"),
        (lambda: RandomAffine(scaling=(1.2,)), "affine.scaling"),
        (lambda: GaussianNoise(1.1), "GaussianNoise.p"),
        (lambda: GaussianNoise(0.1, std=(-0.1, 0.1)), "GaussianNoise.std"),
        (lambda: GaussianBlur(0.1, p_channel=-1.0), "GaussianBlur.p_channel"),
        (lambda: GaussianBlur(0.1, sigma=(0.0, 1.0)), "GaussianBlur.sigma"),
        (lambda: Gamma(0.1, gamma=(0.0, 1.0)), "Gamma.gamma"),
        (lambda: LowResolution(0.1, zoom=(0.0, 1.0)), "LowResolution.zoom"),
        (lambda: Brightness(0.1, factor=(float("nan"), 1.0)), "Brightness.factor"),
    ],
)
def test_wrong_settings_are_named(build, key):
    with pytest.raises(ValueError, match=key):
        build()


# --- random scalars ----------------------------------------------------------------------------------------------


def test_draws_fill_their_range():
    generator = seeded()
    values = np.array([uniform((-2.0, 6.0), generator) for _ in range(2000)])
    assert values.min() >= -2
    assert values.max() < 6
    assert values.mean() == pytest.approx(2, abs=0.2)
    logs = np.log2([log_uniform((0.5, 2.0), generator) for _ in range(2000)])
    assert abs(logs).max() <= 1
    assert logs.mean() == pytest.approx(0, abs=0.05)
    assert np.mean([happens(0.3, generator) for _ in range(2000)]) == pytest.approx(0.3, abs=0.03)


# --- intensity ---------------------------------------------------------------------------------------------------


def test_noise_has_the_standard_deviation_asked_and_no_mean():
    noise = apply(GaussianNoise(1.0, std=(0.5, 0.5)), torch.ones(40, 40, 40)) - 1
    assert noise.std() == pytest.approx(0.5, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.01)


def test_brightness_and_shift_by_hand():
    channel = torch.tensor([[[0.0, 1.0, -2.0]]])
    assert apply(Brightness(1.0, factor=(1.5, 1.5)), channel).tolist() == [
        [[0.0, pytest.approx(1.5), pytest.approx(-3)]]
    ]
    assert apply(Shift(1.0, offset=(0.25, 0.25)), channel).tolist() == [[[0.0, 1.25, -1.75]]]


def test_contrast_stretches_around_the_mean_of_the_brain():
    channel = torch.tensor([[[0.0, 1.0, 2.0, 6.0, 0.0]]])  # mean of the brain 3
    result = apply(Contrast(1.0, factor=(1.5, 1.5)), channel)
    torch.testing.assert_close(result, torch.tensor([[[0.0, 0.0, 1.5, 7.5, 0.0]]]))
    image, _ = batch(b=1, shape=(9, 9, 9))
    result = apply(Contrast(1.0, factor=(0.7, 0.7)), image[0, 0])
    brain = image[0, 0] != 0
    torch.testing.assert_close(result[brain].mean(), image[0, 0][brain].mean())
    torch.testing.assert_close(result[brain].std(), 0.7 * image[0, 0][brain].std())


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_1_is_the_identity(invert):
    image, _ = batch(b=1)
    result = apply(Gamma(1.0, gamma=(1.0, 1.0), invert=invert), image[0, 0])
    torch.testing.assert_close(result, image[0, 0], atol=1e-5, rtol=1e-5)


def test_gamma_by_hand_before_the_moments_are_restored():
    channel = torch.tensor([[[0.0, 1.0, 2.0, 4.0]]])
    brain = torch.tensor([1.0, 2.0, 4.0])
    for invert, powered in ((False, (brain / 4) ** 2), (True, -(((4 - brain) / 4) ** 2))):
        expected = (powered - powered.mean()) / powered.std(correction=0) * brain.std(correction=0) + brain.mean()
        result = apply(Gamma(1.0, gamma=(2.0, 2.0), invert=invert), channel)
        torch.testing.assert_close(result[0, 0], torch.cat([torch.zeros(1), expected]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("invert", [False, True])
def test_gamma_keeps_order_mean_and_deviation(invert):
    image, _ = batch(b=1, shape=(9, 9, 9))
    before = image[0, 0][image[0, 0] != 0]
    after = apply(Gamma(1.0, gamma=(1.4, 1.4), invert=invert), image[0, 0])[image[0, 0] != 0]
    assert torch.equal(before.argsort(), after.argsort())
    torch.testing.assert_close(after.mean(), before.mean(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.std(), before.std(), atol=1e-5, rtol=1e-4)


def test_gamma_of_a_constant_channel_changes_nothing():
    torch.testing.assert_close(apply(Gamma(1.0), torch.full((3, 3, 3), 2.0)), torch.full((3, 3, 3), 2.0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_blur_is_the_sampled_gaussian_and_keeps_the_sum(axis):
    channel = torch.zeros(9, 9, 9)
    channel[4, 4, 4] = 1
    blur_axis(channel, axis, 1.0)
    line = channel.movedim(axis, 0)[:, 4, 4]
    weights = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    torch.testing.assert_close(line, torch.cat([torch.zeros(1), weights / weights.sum(), torch.zeros(1)]))
    assert channel.sum() == pytest.approx(1)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_blur_continues_the_faces(length):
    channel = torch.full((length, 2, 2), 3.0)
    blur_axis(channel, 0, 1.0)  # its reach of 3 passes both faces
    torch.testing.assert_close(channel, torch.full((length, 2, 2), 3.0))
    ramp = torch.arange(float(length))[None, None].clone()
    blur_axis(ramp, 2, 0.7)
    weights = np.exp(-0.5 * (np.arange(-3, 4) / 0.7) ** 2)
    padded = np.pad(np.arange(float(length)), 3, mode="edge")
    expected = np.convolve(padded, weights / weights.sum(), mode="valid")
    np.testing.assert_allclose(ramp[0, 0], expected, rtol=1e-5, atol=1e-6)


def test_low_resolution_by_hand():
    channel = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 4)
    result = apply(LowResolution(1.0, zoom=(0.5, 0.5)), channel)
    # coarse voxels take 2 and 4, their centres lie at 0.5 and 2.5
    torch.testing.assert_close(result.flatten(), torch.tensor([2.0, 2.5, 3.5, 4.0]))
    torch.testing.assert_close(apply(LowResolution(1.0, zoom=(1.0, 1.0)), channel), channel)
