import numpy as np
import pytest
from scipy import ndimage

from brats_lightning.core import components as module
from brats_lightning.core.components import components_at, label_components, lesion_components
from brats_lightning.core.labels import BRATS_METS, LabelScheme

NETC, SNFH, ET = 1, 2, 3


@pytest.fixture(autouse=True, params=[0, 1 << 14], ids=["runs", "small"])
def both_ways(request, monkeypatch):
    monkeypatch.setattr(module, "_SMALL_BOX", request.param)


def test_corners_connect():
    mask = np.zeros((3, 3, 5), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True  # touch at a corner
    mask[1, 1, 3] = True  # one voxel of background between
    labels, n = label_components(mask)
    assert n == 2
    assert labels[0, 0, 0] == labels[1, 1, 1] == 1
    assert labels[1, 1, 3] == 2
    assert labels.dtype == np.int32


def test_components_and_their_numbers_are_scipys():
    rng = np.random.default_rng(0)
    most = 0
    for _ in range(300):
        # from few long runs to noise, which are labelled in different ways
        mask = rng.random(rng.integers(1, 24, 3)) < rng.random() ** 2
        mask = ndimage.binary_opening(mask, np.ones((1, 1, rng.integers(1, 6))))
        labels, n = label_components(mask)
        expected, m = ndimage.label(mask, np.ones((3, 3, 3)))
        assert n == m
        np.testing.assert_array_equal(labels, expected)
        most = max(most, n)
    assert most > 20


@pytest.mark.parametrize(("last", "first"), [((0, 0, 59), (0, 1, 0)), ((0, 2, 59), (1, 0, 0))])
def test_runs_do_not_join_across_the_edges_of_rows_and_planes(last, first):
    """The two voxels follow on each other in memory."""
    mask = np.zeros((3, 3, 60), bool)
    mask[last] = mask[first] = True
    assert label_components(mask)[1] == 2


def test_components_of_nothing_and_of_everything():
    labels, n = label_components(np.zeros((3, 4, 5), bool))
    assert n == 0
    np.testing.assert_array_equal(labels, np.zeros((3, 4, 5)))
    labels, n = label_components(np.zeros((0, 4, 5), bool))
    assert n == 0
    assert labels.shape == (0, 4, 5)
    labels, n = label_components(np.ones((3, 4, 5), bool))
    assert n == 1
    np.testing.assert_array_equal(labels, np.ones((3, 4, 5)))


def test_one_oedema_around_two_cores_is_two_lesions():
    mask = np.zeros((3, 5, 15), np.uint8)
    mask[:, :, 1:14] = SNFH
    mask[1, 2, 3] = ET
    mask[1, 2, 4] = NETC  # touches it: the same core
    mask[1, 2, 10] = ET
    lesions, n = lesion_components(mask, BRATS_METS)
    assert n == 2
    assert lesions[1, 2, 3] == lesions[1, 2, 4] != lesions[1, 2, 10]
    assert (lesions > 0).sum() == 3  # the oedema belongs to neither


def test_bare_oedema_is_a_lesion():
    mask = np.zeros((3, 3, 12), np.uint8)
    mask[1, 1, 1] = ET
    mask[1, 1, 2] = SNFH  # oedema of the core
    mask[1, 1, 5:7] = SNFH  # two bare ones
    mask[1, 1, 10] = SNFH
    lesions, n = lesion_components(mask, BRATS_METS)
    assert n == 3
    assert lesions[1, 1].tolist() == [0, 1, 0, 0, 0, 2, 2, 0, 0, 0, 3, 0]


def test_empty_and_full():
    assert lesion_components(np.zeros((2, 3, 4), np.uint8), BRATS_METS)[1] == 0
    lesions, n = lesion_components(np.full((2, 3, 4), ET, np.uint8), BRATS_METS)
    assert n == 1
    assert (lesions == 1).all()


def test_a_scheme_without_oedema_counts_everything():
    lesions, n = lesion_components(np.array([[[1, 0, 2, 2]]], np.uint8), LabelScheme(("et", "rc")))
    assert n == 2
    assert lesions.ravel().tolist() == [1, 0, 2, 2]


def test_components_at_some_places():
    mask = np.zeros((5, 6, 7), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True  # one, by the corner
    mask[4, 4, 4:6] = True
    assert np.argwhere(components_at(mask, ([0], [0], [0]))).tolist() == [[0, 0, 0], [1, 1, 1]]
    touched = np.zeros_like(mask)
    touched[4, 4, 5] = touched[2, 4, 4] = True  # the second lies in no component
    assert np.argwhere(components_at(mask, touched)).tolist() == [[4, 4, 4], [4, 4, 5]]
    assert not components_at(mask, np.zeros_like(mask)).any()
