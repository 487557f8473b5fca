import math

import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS, MODALITIES
from brats_lightning.data.fingerprint import BINS, band_counts, bands, fingerprint, histogram
from brats_lightning.data.inspection import inspect_case, inspect_cases
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.preprocessing import quantise
from tests.data.tiny_cases import LPS, lesions, write_case


def test_bounds_of_the_bands_belong_to_the_upper_one():
    assert band_counts([1, 26.9, 27, 274.9, 275, 1000]) == [2, 2, 2]
    assert band_counts([]) == [0, 0, 0]
    assert bands() == [
        {"from_mm3": 0, "to_mm3": 27},
        {"from_mm3": 27, "to_mm3": 275},
        {"from_mm3": 275, "to_mm3": None},
    ]


def test_histogram_is_a_density_of_z_scores():
    values = np.random.default_rng(0).normal(1000, 50, (20, 20, 20)).astype(np.float32)
    found = histogram(quantise(values, np.empty(values.shape, np.uint16)))
    centres = (BINS[1:] + BINS[:-1]) / 2
    assert (found * np.diff(BINS)).sum() == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(found, np.exp(-(centres**2) / 2) / math.sqrt(2 * math.pi), atol=0.06)


def test_histogram_of_two_values_and_of_one():
    two = np.repeat(np.array([10, 20], np.int16), 50).reshape(10, 10, 1)  # z-scores -1 and 1
    found = histogram(quantise(two, np.empty(two.shape, np.uint16)))
    assert (found * np.diff(BINS))[BINS[1:] <= -1 + 1e-9].sum() == pytest.approx(0, abs=0.51)
    assert (found * np.diff(BINS)).sum() == pytest.approx(1)
    one = np.full((4, 4, 4), 7, np.int16)
    assert not histogram(quantise(one, np.empty(one.shape, np.uint16))).any()


def test_lesions_of_each_region(raw, cache):
    case = cache.fill(find_cases(raw)).cases[0]
    assert inspect_case(case, BRATS_METS).volumes == {"et": [7.0, 1.0], "tc": [8.0, 1.0], "wt": [20.0, 1.0]}


def test_the_numbers_of_a_data_set(tmp_path, cache):
    wide = LPS @ np.diag([1, 1, 2, 1])
    write_case(tmp_path / "raw", "BraTS-MET-00001-000")
    write_case(tmp_path / "raw", "BraTS-MET-00001-001", seg=np.zeros_like(lesions()))
    write_case(tmp_path / "raw", "BraTS-MET-00002-000", affine=wide)
    write_case(tmp_path / "raw", "BraTS-MET-00003-000", affine=wide, t2w=None, seg=None)
    cases = find_cases(tmp_path / "raw")
    cached = [
        *cache.fill(cases[:3], MODALITIES).cases,
        *cache.fill(cases[3:], ["t1n", "t1c", "t2f"], need_mask=False).cases,
    ]
    found = fingerprint(inspect_cases(cached, BRATS_METS, workers=2), MODALITIES, BRATS_METS)
    assert (found["cases"], found["patients"], found["labelled"], found["empty"]) == (4, 3, 3, 1)
    assert found["spacing"] == {"least": [1, 1, 1], "median": [1.5, 1, 1], "most": [2, 1, 1]}
    assert found["spacings"] == [[[1, 1, 1], 2], [[2, 1, 1], 2]]
    assert found["shape"]["median"] == [6, 10, 8]  # of the brain, in (z, y, x)
    assert {name: row["missing"] for name, row in found["sequences"].items()} == {
        "t1n": 0,
        "t1c": 0,
        "t2w": 1,
        "t2f": 0,
    }
    et = found["lesions"]["et"]
    assert (et["cases"], et["count"], et["per_case"]) == (2, 4, {"median": 2, "most": 2})
    assert et["mean_mm3"] == pytest.approx((7 + 1 + 14 + 2) / 4)
    assert [band["lesions"] for band in et["bands"]] == [4, 0, 0]
    assert [band["lesions"] for band in found["lesions"]["wt"]["bands"]] == [3, 1, 0]
    fractions = found["class_fractions"]
    assert sum(fractions.values()) == pytest.approx(1)
    assert fractions["et"] == pytest.approx(2 * 8 / (3 * 6 * 10 * 8))


def test_a_data_set_without_masks(tmp_path, cache):
    write_case(tmp_path / "raw", seg=None)
    cached = cache.fill(find_cases(tmp_path / "raw"), need_mask=False).cases
    found = fingerprint(inspect_cases(cached, BRATS_METS), MODALITIES, BRATS_METS)
    assert found["labelled"] == 0
    assert found["class_fractions"] == {}
    assert found["lesions"]["et"]["count"] == 0
    assert math.isnan(found["lesions"]["et"]["median_mm3"])
