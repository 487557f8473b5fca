"""Pasted lesions: whose, where, how bright, how large; and what stays as it was."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import chisquare

from brats_lightning.core.components import lesion_components
from brats_lightning.core.labels import BRATS_METS, IGNORE
from brats_lightning.data.augment import copy_paste as module
from brats_lightning.data.augment.copy_paste import FEATHER, CopyPaste, Donors, cut_out, find_place, paste
from brats_lightning.data.cache.entry import CachedCase, Lesion, find_positions
from brats_lightning.data.preprocessing import quantise

MODALITIES = ("t1c", "t2f")
SHAPE = (40, 44, 48)


class FakeCase(CachedCase):
    """A cached case in memory."""

    spacing = (1.0, 1.0, 1.0)

    def __init__(self, **attributes):
        for name, value in attributes.items():
            object.__setattr__(self, name, value)

    def image(self):
        return self.codes

    def mask(self):
        return self.classes

    def positions(self):
        return self.rows

    def patch(self):
        return self.codes.copy(), self.classes.copy()


def make_case(name, values, mask, spacing=(1.0, 1.0, 1.0)):
    """With its float values encoded as the cache does."""
    codes = np.zeros(values.shape, np.uint16)
    pairs = zip(MODALITIES, values, codes, strict=True)
    intensities = {modality: quantise(channel, channel_codes) for modality, channel, channel_codes in pairs}
    rows, lesions = find_positions(mask, BRATS_METS, spacing, seed=0)
    arrays = {"codes": codes, "classes": mask, "rows": rows}
    return FakeCase(id=name, modalities=MODALITIES, spacing=spacing, intensities=intensities, lesions=lesions, **arrays)


def tissue(seed, gain=1.0, base=1000.0, outside=4):
    """Two modalities of smooth noise in a box, 0 around it."""
    noise = np.random.default_rng(seed).normal(size=(2, *SHAPE))
    values = base + gain * 60 * ndimage.gaussian_filter(noise, (0, 1, 1, 1))
    box = tuple(slice(outside, n - outside) for n in SHAPE)
    inside = np.zeros(SHAPE, bool)
    inside[box] = True
    return np.rint(values * inside).astype(np.float32)


def ball(centre, radius):
    grid = np.indices(SHAPE)
    return sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) <= radius**2


def donor(name="donor", radius=3, centre=(20, 22, 24), gain=2.0, seed=1, **kwargs):
    """Oedema around an enhancing ball: bright on T1c and brighter on FLAIR."""
    values, mask = tissue(seed, gain), np.zeros(SHAPE, np.uint8)
    mask[ball(centre, radius + 1.5)] = 2
    mask[ball(centre, radius)] = 3
    values[0][mask == 3] += 300 * gain
    values[1][mask > 0] += 200 * gain
    return make_case(name, values, mask, **kwargs)


def recipient(name="recipient", seed=2, **kwargs):
    return make_case(name, tissue(seed, base=500.0), np.zeros(SHAPE, np.uint8), **kwargs)


def pasted(cases, case, seed=0, **settings):
    """A whole case after the paste."""
    copy_paste = CopyPaste(**{"probability": 1, "count": [1, 1]} | settings)
    copy_paste.prepare(cases)
    image, mask = case.patch()
    copy_paste(image, mask, case, MODALITIES, np.random.default_rng(seed))
    return image, mask


def zscores(image, case):
    values = [case.intensities[name] for name in MODALITIES]
    return np.stack(
        [(codes * v.scale + v.offset - v.mean) / v.std for codes, v in zip(image.astype(float), values, strict=True)]
    )


def test_equal_generators_paste_equally():
    cases = [donor(), recipient()]
    first, again, other = (pasted(cases, cases[1], seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[1] != other[1]).any()


def test_which_grafts_are_kept_changes_nothing(monkeypatch):
    cases = [donor(), donor("second", radius=2, seed=8), recipient()]

    def in_a_row():
        copy_paste = CopyPaste(1, [3, 3])
        copy_paste.prepare(cases)
        patches = [cases[2].patch() for _ in range(3)]
        for seed, (image, mask) in enumerate(patches):
            copy_paste(image, mask, cases[2], MODALITIES, np.random.default_rng(seed))
        assert len(copy_paste._grafts) <= module.GRAFTS_KEPT
        return np.stack([image for image, _ in patches])

    kept = in_a_row()
    monkeypatch.setattr(module, "GRAFTS_KEPT", 1)
    np.testing.assert_array_equal(in_a_row(), kept)


def test_the_whole_lesion_comes_along_with_its_oedema():
    cases = [donor(), recipient()]
    _, mask = pasted(cases, cases[1])
    assert np.bincount(mask.ravel()).tolist()[1:] == np.bincount(cases[0].classes.ravel()).tolist()[1:]
    assert lesion_components(mask, BRATS_METS)[1] == 1


def test_contrast_against_the_surroundings_is_the_donors_in_standard_deviations():
    cases = [donor(), recipient()]
    image, mask = pasted(cases, cases[1], seed=1)
    contrasts = []
    for z, classes in ((zscores(cases[0].codes, cases[0]), cases[0].classes), (zscores(image, cases[1]), mask)):
        distance = ndimage.distance_transform_edt(classes == 0)
        around = (distance > 1) & (distance <= 4)
        contrasts.append([z[:, classes == label].mean(axis=1) - np.median(z[:, around], axis=1) for label in (2, 3)])
    wanted, got = np.array(contrasts)
    assert np.abs(wanted).max() > 3
    np.testing.assert_allclose(got, wanted, atol=0.25)
    # not in codes, which mean something else in each case
    assert abs(cases[1].intensities["t1c"].std / cases[0].intensities["t1c"].std - 1) > 0.2


def test_nothing_changes_beyond_the_feathered_rim_and_outside_the_brain():
    cases = [donor(), recipient()]
    for seed in range(6):
        image, mask = pasted(cases, cases[1], seed)
        far = ndimage.distance_transform_edt(mask == 0) > FEATHER + 1
        np.testing.assert_array_equal(image[:, far], cases[1].codes[:, far])
        assert ((image != cases[1].codes).any(axis=0) & ~far).any()
        np.testing.assert_array_equal(image == 0, cases[1].codes == 0)


def test_it_stays_in_the_brain_and_off_the_recipients_lesions():
    own = donor("recipient", seed=5, centre=(14, 16, 16))
    others = [donor(), donor("second", radius=2, seed=8)]
    for seed in range(30):
        image, mask = pasted([own, *others], own, seed, count=[3, 3])
        np.testing.assert_array_equal(mask[own.classes > 0], own.classes[own.classes > 0])
        new = (mask > 0) & (own.classes == 0)
        assert (own.codes[:, new] > 0).all()
        assert not (ndimage.binary_dilation(new, np.ones((3, 3, 3))) & (own.classes > 0)).any()
        assert (image[:, own.classes > 0] == own.codes[:, own.classes > 0]).all()
        n = ndimage.label(mask > 0, np.ones((3, 3, 3)))[1]
        assert n == lesion_components(mask, BRATS_METS)[1] > 1  # each one whole, on its own


def test_a_full_patch_takes_no_lesion():
    cases = [donor(), recipient()]
    cases[1].classes[:] = 2
    image, mask = pasted(cases, cases[1])
    np.testing.assert_array_equal(image, cases[1].codes)
    assert (mask == 2).all()
    cases[1].classes[:] = 0
    copy_paste = CopyPaste(1)
    copy_paste.prepare(cases)
    image = np.ones((2, 8, 8, 8), np.uint16)
    copy_paste(image, np.zeros((8, 8, 8), np.uint8), cases[1], MODALITIES, np.random.default_rng(0))
    assert (image == 1).all()  # a patch smaller than the graft


def test_pasted_into_the_share_of_patches_that_is_asked_for():
    cases = [donor(), recipient()]
    copy_paste = CopyPaste(probability=0.3, count=[1, 1])
    copy_paste.prepare(cases)
    hits = 0
    for seed in range(150):
        image, mask = cases[1].patch()
        copy_paste(image, mask, cases[1], MODALITIES, np.random.default_rng(seed))
        hits += mask.any()
    assert hits / 150 == pytest.approx(0.3, abs=0.1)


def table(*volumes, name="a"):
    return FakeCase(id=name, lesions=tuple(Lesion(float(volume), volume, 0, 0) for volume in volumes))


def drawn(donors, recipient, n=4000):
    rng = np.random.default_rng(0)
    pairs = [donors.draw(recipient, rng) for _ in range(n)]
    return [(case.id, lesion.volume_mm3) for case, lesion in pairs]


def test_volumes_are_drawn_with_the_weights_asked_for():
    donors = Donors.of([table(1, 16, 64, name="a"), table(4, 101, name="b")], max_volume=100.0, exponent=0.5)
    volumes = [volume for _, volume in drawn(donors, "somebody else")]
    kinds, counts = np.unique(volumes, return_counts=True)
    assert kinds.tolist() == [1, 4, 16, 64]
    shares = np.array([1, 1 / 2, 1 / 4, 1 / 8])
    assert chisquare(counts, shares / shares.sum() * len(volumes)).pvalue > 0.01


def test_donors_are_other_cases_as_long_as_there_are_any():
    cases = [table(1, 1, name="a"), table(1, 1, 1, name="b"), table(name="c"), table(1, name="d")]
    donors = Donors.of(cases, 10.0, 1.0)
    for name in "abcd":
        names, counts = np.unique([case for case, _ in drawn(donors, name)], return_counts=True)
        others = {case.id: len(case.lesions) for case in cases if case.id != name and case.lesions}
        assert dict(zip(names, counts, strict=True)).keys() == others.keys()
        expected = np.array(list(others.values())) / sum(others.values()) * 4000
        assert chisquare(counts, expected).pvalue > 0.01
    alone = Donors.of([table(1, 2, name="a"), table(name="b")], 10.0, 1.0)
    assert {case for case, _ in drawn(alone, "a", 10)} == {"a"}
    assert Donors.of([table(name="a")], 10.0, 1.0).draw("a", np.random.default_rng(0)) is None


def test_a_single_case_is_its_own_donor_and_none_without_lesions_changes():
    only = donor()
    _, mask = pasted([only], only)
    assert lesion_components(mask, BRATS_METS)[1] == 2
    bare = recipient()
    image, mask = pasted([bare], bare)
    np.testing.assert_array_equal(image, bare.codes)
    assert not mask.any()


def test_voxels_of_another_size_are_not_transplanted():
    cases = [donor(spacing=(1.0, 1.0, 1.0)), recipient(spacing=(2.0, 1.0, 1.0))]
    assert not pasted(cases, cases[1])[1].any()
    cases = [donor(spacing=(2.0, 1.0, 1.0)), recipient(spacing=(2.0, 1.0, 1.0))]
    assert pasted(cases, cases[1])[1].any()


def test_a_graft_is_one_lesion_without_its_neighbours():
    case = donor(radius=1.5)
    mask = case.classes.copy()
    mask[20, 22, 31] = 3  # beyond the oedema
    mask[20, 22, 21] = 1  # in the oedema's rim, a core of its own
    case = make_case("donor", case.codes.astype(np.float32), mask)
    voxels = sorted(lesion.voxels for lesion in case.lesions)
    assert voxels[:2] == [1, 1]
    large = max(case.lesions, key=lambda lesion: lesion.voxels)
    graft = cut_out(case, large, MODALITIES, reach=8)
    assert (graft.labels == 3).sum() == large.voxels
    assert not (graft.labels == 1).any()
    single = next(i for i, lesion in enumerate(case.lesions) if case.rows[lesion.start, 4] == 31)
    graft = cut_out(case, case.lesions[single], MODALITIES, reach=8)
    assert np.bincount(graft.labels.ravel()).tolist()[1:] == [0, 0, 1]
    assert graft.alpha[graft.labels > 0].tolist() == [1.0]


def test_far_oedema_fades_and_loses_its_label_halfway():
    values, mask = tissue(1), np.zeros(SHAPE, np.uint8)
    mask[19:22, 21:24, 10:38] = 2  # a long beam of oedema
    mask[20, 22, 24] = 3
    case = make_case("a", values, mask)
    graft = cut_out(case, case.lesions[0], MODALITIES, reach=8)
    z, y, x = np.argwhere(graft.labels == 3)[0]
    np.testing.assert_allclose(graft.alpha[z, y, x : x + 9], [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0], atol=1e-6)
    assert graft.labels[z, y, x : x + 9].tolist() == [3, 2, 2, 2, 2, 2, 2, 0, 0]


def test_oedema_without_core_is_a_lesion_and_one_without_healthy_tissue_is_none():
    mask = np.zeros(SHAPE, np.uint8)
    mask[ball((20, 22, 24), 2)] = 2
    case = make_case("a", tissue(1), mask)
    assert (cut_out(case, case.lesions[0], MODALITIES, 8).labels == 2).sum() == (mask == 2).sum()
    mask[:] = 2
    mask[20, 22, 24] = 3
    case = make_case("a", tissue(1, outside=0), mask)
    assert cut_out(case, case.lesions[0], MODALITIES, 8) is None


def test_the_place_is_tissue_like_the_lesions_own():
    values, mask = tissue(1, gain=0.1), np.zeros(SHAPE, np.uint8)
    values[:, :, :, 24:] *= 2  # two tissues; the lesion lies in the bright one
    mask[ball((20, 22, 34), 1)] = 3
    first = make_case("a", values, mask)
    second = make_case("b", values[..., ::-1], np.zeros(SHAPE, np.uint8))  # bright on the other side
    for seed in range(10):
        _, mask = pasted([first, second], second, seed)
        assert np.argwhere(mask)[:, 2].mean() < 24


def test_codes_stay_within_their_range():
    cases = [donor(gain=1.0), recipient()]
    graft = cut_out(cases[0], cases[0].lesions[0], MODALITIES, 8)
    for sign, limit in ((1, 65535), (-1, 1)):
        extreme = replace(graft, contrast=sign * graft.contrast)
        image, mask = cases[1].patch()
        image[1][image[1] > 0] = 700
        identity = np.ones(2, np.float32), np.zeros(2, np.float32)
        place = find_place(extreme, image, mask, *identity, 16, np.random.default_rng(0))
        paste(extreme, image[:, *place], mask[place], np.array([1e-9, 0], np.float32))
        assert set(image[0][mask == 3].tolist()) == {limit}
        assert np.unique(image[1]).tolist() == [0, 700]  # a constant modality stays constant


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"probability": 1.5}, "probability"),
        ({"count": [0, 2]}, "count"),
        ({"count": [3, 2]}, "count"),
        ({"count": [1]}, "count"),
        ({"max_volume": 0}, "max_volume"),
        ({"exponent": -1}, "exponent"),
        ({"reach": 0}, "reach"),
        ({"attempts": 0}, "attempts"),
    ],
)
def test_wrong_settings_are_named(settings, key):
    with pytest.raises(ValueError, match=rf"copy_paste.*{key}"):
        CopyPaste(**settings)


def test_unknown_voxels_bring_no_tissue():
    values, mask = tissue(1), np.zeros(SHAPE, np.uint8)
    mask[ball((20, 22, 24), 3)] = 3
    cut = mask.copy()
    cut[:, :, 29:] = IGNORE
    grafts = []
    for classes in (mask, cut):
        case = make_case("donor", values, classes)
        grafts.append(cut_out(case, case.lesions[0], MODALITIES, reach=8))
    whole, partly = grafts
    np.testing.assert_array_equal(partly.labels, whole.labels)
    # The box begins 4 voxels before the lesion, at x = 17.
    np.testing.assert_array_equal(partly.surroundings[:, :, :12], whole.surroundings[:, :, :12])
    assert whole.surroundings[:, :, 12:].any()
    assert not partly.surroundings[:, :, 12:].any()


def test_oedema_beyond_unknown_voxels_is_another_lesions():
    values, mask = tissue(1), np.zeros(SHAPE, np.uint8)
    mask[20:23, 20:23, 20:23] = 3
    mask[20:23, 20:23, 23:25] = 2
    mask[20:23, 20:23, 25] = IGNORE
    mask[20:23, 20:23, 26:28] = 2
    case = make_case("donor", values, mask)
    graft = cut_out(case, case.lesions[0], MODALITIES, reach=16)
    assert np.bincount(graft.labels.ravel()).tolist()[2:] == [9, 27]  # of its oedema what is off the unknown


def test_nothing_is_pasted_over_unknown_voxels():
    case = recipient()
    case.classes[:, :, 20:] = IGNORE
    before = case.patch()
    image, mask = pasted([donor(), case], case, count=[5, 5], attempts=64)
    assert (mask[:, :, :20] > 0).any()
    np.testing.assert_array_equal(mask[:, :, 20:], before[1][:, :, 20:])
    np.testing.assert_array_equal(image[..., 20:], before[0][..., 20:])
