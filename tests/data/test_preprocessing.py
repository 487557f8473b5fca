import numpy as np
import pytest

from brats_lightning.core.components import components_at, lesion_components
from brats_lightning.core.geometry import Grid, GridTransform
from brats_lightning.core.labels import BRATS_METS, IGNORE
from brats_lightning.data.cases import Case, CaseError
from brats_lightning.data.nifti import Volume
from brats_lightning.data.normalisation import Normaliser, normalisation_parameters
from brats_lightning.data.preprocessing import (
    QUANTILE_LEVELS,
    Intensities,
    Preprocessing,
    brain_box,
    median_spacing,
    prepare,
    quantise,
    working_mask,
)
from tests.data.tiny_cases import save

GRID = Grid((10, 9, 8), np.diag([-1.0, -1.0, 1.0, 1.0]))  # so x, y, z of the file are x, y, z of LPS


def volume(values, start):
    return Volume(GRID, np.asarray(values), start)


def encoded(values):
    values = np.asarray(values)[:, None, None]
    codes = np.full(values.shape, 77, np.uint16)
    intensities = quantise(values, codes)
    return codes.ravel(), intensities


def decoded(codes, intensities):
    return np.where(codes == 0, 0.0, codes * intensities.scale + intensities.offset)


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 1, 500, 65535], np.uint16),
        np.array([0, -5, 7, 0, -1000], np.int16),  # negative intensities stay apart from the outside
        np.array([0, -32768, 32766], np.int16),
        np.array([100_000, 0, 120_000], np.int32),
        np.array([0.0, 3.0, 4000.0], np.float32),  # whole numbers stored as floats
        np.array([3, 4, 5], np.uint8),
        np.array([0, 0], np.int16),
        np.array([], np.int16),
    ],
)
def test_whole_numbers_are_kept_exactly(values):
    codes, intensities = encoded(values)
    np.testing.assert_array_equal(decoded(codes, intensities), values)
    np.testing.assert_array_equal(codes == 0, values == 0)
    assert intensities.scale == 1


def test_common_intensities_are_their_own_codes():
    codes, intensities = encoded(np.array([0, 17, 4095], np.int16))
    assert codes.tolist() == [0, 17, 4095]
    assert intensities.offset == 0


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 0.25, 1.75, 1e-6], np.float32),
        np.array([-3.5, 0, 2.25, 1e-9], np.float64),
        np.array([0, -32768, 32767, 5], np.int16),  # spans 65,536 levels, one too many
        np.array([0, 1, 3_000_000_000], np.int64),
        np.array([0, 0.5, 0.5], np.float32),  # a constant brain
    ],
)
def test_everything_else_is_rounded_to_half_a_step_and_only_zero_is_outside(values):
    codes, intensities = encoded(values)
    brain = values[values != 0].astype(float)
    np.testing.assert_array_equal(codes == 0, values == 0)
    step = (brain.max() - brain.min()) / 65534
    np.testing.assert_allclose(decoded(codes, intensities), values, rtol=1e-12, atol=step * 0.501)
    assert intensities.minimum == pytest.approx(brain.min())
    assert intensities.maximum == pytest.approx(brain.max())


def test_statistics_are_numpys_over_the_brain():
    values = np.random.default_rng(0).integers(-200, 900, 5000).astype(np.int16)
    _, intensities = encoded(values)
    brain = values[values != 0].astype(np.float64)
    assert intensities.mean == pytest.approx(brain.mean(), rel=1e-12)
    assert intensities.std == pytest.approx(brain.std(), rel=1e-12)
    assert (intensities.minimum, intensities.maximum) == (brain.min(), brain.max())
    np.testing.assert_allclose(intensities.quantiles, np.percentile(brain, QUANTILE_LEVELS), rtol=1e-12)
    assert intensities.quantile(99.5) == pytest.approx(np.percentile(brain, 99.5))
    assert intensities.quantile(50.5) == pytest.approx((intensities.quantile(50) + intensities.quantile(51)) / 2)


def test_quantile_levels():
    assert len(QUANTILE_LEVELS) == 119
    assert list(QUANTILE_LEVELS) == sorted(set(QUANTILE_LEVELS))
    for level in (0, 0.1, 0.5, 1, 2, 50, 98, 99, 99.5, 99.9, 100):
        assert min(abs(level - q) for q in QUANTILE_LEVELS) < 1e-9


def test_statistics_of_nothing_are_zero():
    _, intensities = encoded(np.zeros(3, np.int16))
    assert (intensities.mean, intensities.std, intensities.minimum, intensities.maximum) == (0, 0, 0, 0)
    assert set(intensities.quantiles) == {0.0}


QUANTILES = tuple(10.0 + 0.2 * q for q in QUANTILE_LEVELS)  # 10 … 30
PLAIN = Intensities(1.0, 0.0, mean=20.0, std=4.0, minimum=10.0, maximum=30.0, quantiles=QUANTILES)


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("zscore", {10: -2.5, 20: 0, 30: 2.5}),
        ("minmax", {10: 0, 20: 0.5, 30: 1}),
        ("percentile", {10: 0, 12: 0, 20: 0.5, 24: 0.75, 28: 1, 30: 1}),
    ],
)
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.5, -3.0)])
def test_normalisation_by_hand(method, values, scale, offset):
    intensities = Intensities(scale, offset, 20.0, 4.0, 10.0, 30.0, QUANTILES)
    a, b, lowest, highest = normalisation_parameters(intensities, method, low=10, high=90)
    for value, expected in values.items():
        code = (value - offset) / scale
        assert np.clip(code * a + b, lowest, highest) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["zscore", "minmax", "percentile"])
def test_a_constant_brain_becomes_zero(method):
    flat = Intensities(1.0, 0.0, 5.0, 0.0, 5.0, 5.0, (5.0,) * len(QUANTILE_LEVELS))
    a, b, lowest, highest = normalisation_parameters(flat, method)
    assert np.clip(5 * a + b, lowest, highest) == 0


def test_bad_normalisations():
    with pytest.raises(ValueError, match=r"'robust'; expected one of zscore, minmax, percentile"):
        Normaliser(["t1c"], "robust")
    for low, high in ((60.0, 40.0), (-1.0, 50.0), (0.0, 101.0)):
        with pytest.raises(ValueError, match="expected 0 ≤ low < high ≤ 100"):
            Normaliser(["t1c"], "percentile", low, high)


def test_the_box_holds_every_modality_and_every_mask_voxel():
    empty = volume(np.zeros((0, 0, 0)), (0, 0, 0))
    box = brain_box([volume(np.ones((2, 2, 2)), (3, 4, 5)), volume(np.ones((1, 1, 1)), (7, 0, 6)), empty])
    assert box.origin == (3, 0, 5)
    assert box.shape == (5, 6, 2)


def small_case():
    rng = np.random.default_rng(0)
    images = {
        "t1n": volume(rng.integers(1, 99, (4, 5, 6)).astype(np.int16), (1, 2, 3)),
        "t1c": volume(rng.random((3, 5, 6)).astype(np.float32) + 0.5, (2, 2, 3)),
    }
    mask = np.zeros((5, 5, 5), np.uint8)
    mask[-1, -1, -1] = 3  # outside the images' box
    mask[0, 0, 0] = 1
    return images, volume(mask, (1, 2, 3))


def test_native_is_lossless():
    images, mask = small_case()
    prepared = prepare(images, mask, Preprocessing())
    assert prepared.modalities == ("t1n", "t1c")
    assert prepared.image.shape == (2, 5, 5, 6)
    np.testing.assert_array_equal(prepared.image[0, :4], images["t1n"].values)
    assert not prepared.image[0, 4].any()
    np.testing.assert_array_equal(prepared.mask, np.pad(mask.values, ((0, 0), (0, 0), (0, 1))))
    assert prepared.reference is None
    assert prepared.transform.restore(prepared.mask)[7, 6, 5] == 3


@pytest.mark.parametrize(
    "settings",
    [
        Preprocessing(spacing=(2, 1.5, 0.5)),
        Preprocessing(fit="crop_or_pad", size=(2, 12, 3)),
        Preprocessing(fit="resize", size=(4, 4, 9)),
        Preprocessing(spacing=[0.5, 2, 1], fit="crop_or_pad", size=[8, 8, 8]),
    ],
)
def test_lossy_geometry_keeps_the_exact_reference(settings):
    images, mask = small_case()
    prepared = prepare(images, mask, settings)
    if settings.size:
        assert prepared.transform.shape == tuple(settings.size)
    elif settings.spacing:
        assert prepared.transform.spacing == tuple(settings.spacing)
    assert prepared.image.shape[1:] == prepared.mask.shape == prepared.transform.shape
    expected = prepare(images, mask, Preprocessing())
    np.testing.assert_array_equal(prepared.brain.restore(prepared.reference), expected.transform.restore(expected.mask))


def test_interpolated_intensities_decode_to_the_interpolation():
    images, _ = small_case()
    settings = Preprocessing(spacing=(0.7, 1.4, 1.1))
    prepared = prepare(images, None, settings)
    assert prepared.mask is None
    assert prepared.reference is None
    for codes, (name, source) in zip(prepared.image, images.items(), strict=True):
        intensities = prepared.intensities[name]
        expected = prepared.transform.sample(source.values, source.start)
        np.testing.assert_allclose(decoded(codes, intensities), expected, atol=intensities.scale)
        np.testing.assert_array_equal(codes == 0, expected == 0)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.4, 0.4, 0.4), (1.5, 0.5, 2), (0.5, 0.5, 0.6)])
def test_no_lesion_is_lost_or_shrinks_on_another_grid(spacing):
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[2:8, 2:8, 2:8] = 2
    mask[4, 5, 4] = 3  # in oedema
    mask[12:14, 12:14, 12:14] = 3  # alone
    mask[12, 17, 17] = 1
    whole = Volume(Grid((20, 20, 20), np.diag([-0.5, -0.5, 0.5, 1])), mask, (0, 0, 0))
    transform = Preprocessing(spacing).place(GridTransform.whole(whole.grid))
    working = working_mask(whole, transform, BRATS_METS)
    assert lesion_components(working, BRATS_METS)[1] == 3
    for place, label, voxels in (((4, 5, 4), 3, 1), ((12, 12, 12), 3, 8), ((12, 17, 17), 1, 1)):
        at = tuple(np.floor((np.array(place) + 0.5 - transform.origin) / transform.step).astype(int))
        assert working[at] == label  # where it was, in the class it had
        assert components_at(working == label, at).sum() >= max(1, np.floor(voxels * 0.125 / np.prod(spacing)))


def test_working_masks_are_copies_where_voxels_are():
    mask = np.random.default_rng(0).integers(0, 4, (5, 6, 7), dtype=np.uint8)
    whole = Volume(Grid((7, 6, 5), np.diag([-1.0, -1, 1, 1])), mask, (0, 0, 0))
    np.testing.assert_array_equal(working_mask(whole, GridTransform.whole(whole.grid), BRATS_METS), mask)


def test_an_empty_mask_stays_empty_on_another_grid():
    empty = Volume(Grid((8, 8, 8), np.eye(4)), np.zeros((0, 0, 0), np.uint8), (0, 0, 0))
    transform = GridTransform.whole(empty.grid).resample((2, 1.5, 0.5))
    working = working_mask(empty, transform, BRATS_METS)
    assert working.shape == transform.shape
    assert not working.any()


def test_voxels_of_unknown_class_are_resampled_too():
    mask = np.full((8, 8, 8), IGNORE, np.uint8)
    mask[:, :, :4] = 0
    mask[2, 2, 2] = 3
    whole = Volume(Grid((8, 8, 8), np.diag([-1.0, -1, 1, 1])), mask, (0, 0, 0))
    working = working_mask(whole, GridTransform.whole(whole.grid).resample((2, 2, 2)), BRATS_METS)
    expected = np.zeros((4, 4, 4), np.uint8)
    expected[:, :, 2:] = IGNORE
    expected[1, 1, 1] = 3
    np.testing.assert_array_equal(working, expected)


def test_a_lesion_that_is_cropped_away_stays_so():
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[0, 0, 0] = 3
    whole = Volume(Grid((8, 8, 8), np.eye(4)), mask, (0, 0, 0))
    transform = GridTransform.whole(whole.grid).resample((2, 2, 2)).centred((2, 2, 2))
    assert not working_mask(whole, transform, BRATS_METS).any()


def header_only(folder, name, spacing, affine=None):
    """A case whose voxels are never looked at; spacing (x, y, z)."""
    path = folder / f"{name}-t1c.nii.gz"
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1]) if affine is None else affine
    save(path, np.zeros((2, 3, 4), np.uint8), affine)
    return Case(name, name, None, {"t1c": path})


def test_the_median_spacing_is_of_each_axis_in_lps(tmp_path):
    turned = np.array([[0.0, 0, 0.5, 0], [1.5, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])  # x of 0.5, y of 1.5, z of 2 mm
    cases = [
        header_only(tmp_path, "a", (0.859, 0.859, 1.5)),
        header_only(tmp_path, "b", (1, 1, 1)),
        header_only(tmp_path, "c", (0, 0, 0), turned),
    ]
    assert median_spacing(cases) == (1.5, 1, 0.85)
    assert median_spacing(cases[1:]) == (1.5, 1.25, 0.75)  # of an even number the mean of the middle two
    assert median_spacing([header_only(tmp_path, "d", (0.01, 0.9371, 1.0249))]) == (1, 0.95, 0.05)


def test_headers_that_cannot_be_read_are_left_out_of_the_median(tmp_path):
    good, bad = header_only(tmp_path, "a", (1, 1, 1)), header_only(tmp_path, "b", (3, 3, 3))
    bad.images["t1c"].write_bytes(b"not an image")
    assert median_spacing([good, bad]) == (1, 1, 1)
    other = Case("c", "c", None, {"t1n": tmp_path / "missing.nii.gz", "t1c": good.images["t1c"]})
    assert median_spacing([other, bad]) == (1, 1, 1)  # by its second file
    with pytest.raises(CaseError, match="2 cases cannot be used") as error:
        median_spacing([bad, Case("d", "d", None, {"t1n": tmp_path / "missing.nii.gz"})])
    assert [(problem.case, problem.file) for problem in error.value.problems] == [("b", "t1c"), ("d", "t1n")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit": "stretch"}, "expected one of none, crop_or_pad, resize"),
        ({"fit": "resize"}, "give both fit and size"),
        ({"size": (4, 4, 4)}, "give both fit and size"),
        ({"spacing": (1, 1)}, "three positive numbers"),
        ({"spacing": (1, 0, 1)}, "three positive numbers"),
        ({"fit": "crop_or_pad", "size": (4, 4, -4)}, "three positive numbers"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(Exception, match=message) as error:
        Preprocessing(**settings)
    assert isinstance(error.value, (ValueError, TypeError))
