"""Lesions: components, their merging and matching, and the table for reports."""

import numpy as np
import pytest
from scipy import ndimage

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import bounding_box
from brats_lightning.core.labels import BRATS_METS
from brats_lightning.metrics.lesions import (
    dilate,
    lesion_sizes,
    lesion_table,
    match_one_to_one,
    merged_components,
    overlaps,
    touching,
)
from tests.metrics.metric_pairs import random_pair

EIGHTEEN = ndimage.generate_binary_structure(3, 2)


def masks(n=200, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        yield rng.random(tuple(rng.integers(1, 12, 3))) < rng.uniform(0, 0.6)


def bar(*ranges, length=24):
    """Labels along one line of voxels, in the middle of a volume."""
    labels = np.zeros((3, 3, length), np.int32)
    for number, (start, stop) in enumerate(ranges, 1):
        labels[1, 1, start:stop] = number
    return labels


def test_dilation_is_that_of_the_18_neighbourhood():
    for mask in masks(50):
        np.testing.assert_array_equal(dilate(mask), ndimage.binary_dilation(mask, EIGHTEEN))


@pytest.mark.parametrize(("gap", "lesions"), [(1, 1), (2, 1), (3, 2)])
def test_a_gap_of_two_voxels_merges(gap, lesions):
    mask = bar((2, 5), (5 + gap, 9 + gap)) > 0
    labels, n = merged_components(mask)
    assert n == lesions
    assert set(np.unique(labels[mask])) == set(range(1, lesions + 1))
    assert not labels[~mask].any()


def test_sizes_and_overlaps():
    a, b = bar((0, 4), (10, 20)), bar((2, 12), (15, 16))
    assert lesion_sizes(a, 3).tolist() == [0, 4, 10, 0]
    pairs = [part.tolist() for part in overlaps(a, b)]
    assert pairs == [[1, 2, 2], [1, 1, 2], [2, 2, 1]]
    assert [part.tolist() for part in overlaps(a, np.zeros_like(a))] == [[], [], []]


def test_touching_is_overlap_with_the_dilated_lesion():
    for mask in masks(40, seed=1):
        a, n = label_components(mask)
        b, _ = label_components(np.roll(mask, 1, axis=0) & ~mask)
        expected = [
            (lesion, other)
            for lesion in range(1, n + 1)
            for other in np.unique(b[ndimage.binary_dilation(a == lesion, EIGHTEEN)])
            if other
        ]
        assert list(zip(*(part.tolist() for part in touching(a, b)), strict=True)) == expected


def test_a_diagonal_corner_does_not_touch():
    a, b = np.zeros((2, 4, 4, 4), np.int32)
    a[1, 1, 1] = b[2, 2, 2] = 1
    assert len(touching(a, b)[0]) == 0
    b[2, 2, 1] = 1
    assert len(touching(a, b)[0]) == 1


def test_touching_sees_a_lesion_deep_inside():
    a, b = np.zeros((2, 9, 9, 9), np.int32)
    a[1:8, 1:8, 1:8], b[4, 4, 4] = 1, 3
    assert [part.tolist() for part in touching(a, b)] == [[1], [3]]


def test_matching_is_one_to_one_with_the_greatest_sum():
    reference = bar((0, 8), (10, 14))
    prediction = bar((6, 14), (0, 2))  # the first overlaps both, the second only the first
    matches = match_one_to_one(reference, 2, prediction, 2)
    assert matches == {1: (2, 2 * 2 / 10), 2: (1, 2 * 4 / 12)}
    assert match_one_to_one(reference, 2, np.zeros_like(reference), 0) == {}
    assert match_one_to_one(reference, 2, bar((20, 24)), 1) == {}


def test_bounding_box():
    mask = np.zeros((6, 7, 8), np.uint8)
    assert mask[bounding_box(mask)].shape == (1, 1, 1)
    mask[2, 3, 0] = mask[4, 3, 5] = 1
    assert bounding_box(mask) == (slice(2, 5), slice(3, 4), slice(0, 6))
    other = np.zeros_like(mask)
    other[5, 6, 7] = 2
    assert bounding_box(mask, other) == (slice(2, 6), slice(3, 7), slice(0, 8))
    grown = mask[bounding_box(mask, other, margin=1)]
    np.testing.assert_array_equal(grown, mask[1:, 2:, :])


def test_table_by_hand():
    reference, prediction = np.zeros((2, 20, 10, 10), np.uint8)
    reference[2:6, 2:6, 2:6] = 3  # 64 voxels
    reference[2:6, 2:6, 3] = 1  # a class of the same region
    reference[10, 1, 1] = 3
    reference[15:18, 8, 8] = 3
    prediction[2:6, 2:6, 2:4] = 1  # half of the first
    prediction[15:18, 8, 7:10] = 3  # the third and twice as much beside it
    prediction[12, 5, 2:5] = 3
    prediction[0, 9, 9] = 2  # not of the region
    rows = lesion_table(reference, prediction, (1.0, 2.0, 0.5), BRATS_METS.regions["tc"])
    assert [(row.lesion, row.false_positive) for row in rows] == [(1, False), (2, False), (3, False), (1, True)]
    assert [row.volume for row in rows] == [64, 1, 3, 3]
    assert [row.detected for row in rows] == [True, False, True, False]
    assert [row.dice for row in rows] == pytest.approx([2 / 3, 0, 0.5, 0])
    assert [row.centre for row in rows] == [(4, 4, 4), (10, 1, 1), (16, 8, 8), (12, 5, 3)]
    strict = lesion_table(reference, prediction, (1.0, 2.0, 0.5), BRATS_METS.regions["tc"], overlap=0.6)
    assert [row.detected for row in strict] == [True, False, False, False]
    assert lesion_table(reference, prediction, (1.0, 2.0, 0.5), BRATS_METS.regions["tc"], overlap=0.5)[2].detected
    assert len(strict) == 4  # an overlap that detects nothing is still no false positive


def test_table_counts_as_brats2026_does():
    from brats_lightning.metrics.official import score_case

    rng = np.random.default_rng(5)
    for _ in range(20):
        reference, prediction, _ = random_pair(rng)
        scores = score_case(reference, prediction, (1.0, 1.0, 1.0), BRATS_METS, "brats2026")
        for region, row in scores.items():
            table = lesion_table(reference, prediction, (1.0, 1.0, 1.0), BRATS_METS.regions[region], overlap=0.0)
            assert sum(lesion.false_positive for lesion in table) == row["all_instance_fp"]
            assert sum(lesion.dice > 0 for lesion in table) == row["all_instance_tp"]
            volume = sum(lesion.volume for lesion in table if not lesion.false_positive)
            assert volume == np.isin(reference, BRATS_METS.regions[region]).sum()
