"""Pictures of a case: which slices, which errors, which words."""

import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS, IGNORE
from brats_lightning.evaluation.slices import Shown, draw_case, errors, findings, summary


def shown(mask, prediction):
    image = np.random.default_rng(0).integers(1, 9, mask.shape).astype(np.uint16)
    return Shown("title", "t1c", image, mask, prediction, (2.0, 1.0, 1.0), BRATS_METS)


@pytest.fixture
def pair():
    """A lesion of eight voxels half found, one of a single voxel, and one invented."""
    reference, prediction = np.zeros((2, 6, 12, 10), np.uint8)
    reference[1:3, 2:4, 2:4], prediction[2, 2:4, 2:4] = 3, 3
    prediction[2, 2, 2] = 1
    reference[4, 8, 7] = 2
    prediction[5, 10, 2] = 3
    return reference, prediction


def test_the_slices_that_matter(pair):
    most, smallest = findings(*pair, 2.0)
    assert (most.z, most.why, most.lesion) == (1, "largest error: 4 voxels", None)
    assert (smallest.z, smallest.why) == (4, "smallest lesion, 2 mm³: missed")
    assert np.argwhere(smallest.lesion).tolist() == [[8, 7]]
    most, smallest = findings(pair[0], pair[0], 2.0)
    assert (most.z, most.why) == (1, "most tumour")
    assert smallest.why.endswith("found")
    nothing = np.zeros((6, 4, 4), np.uint8)
    assert [found.why for found in findings(nothing, nothing, 1.0)] == ["most tumour", "no lesion; the middle"]


def test_kinds_of_errors(pair):
    reference, prediction = (mask[2] for mask in pair)
    kinds = errors(reference, prediction)
    assert {name: int(mask.sum()) for name, mask in kinds.items()} == {"missed": 0, "invented": 0, "wrong class": 1}
    kinds = errors(pair[0], pair[1])
    assert {name: int(mask.sum()) for name, mask in kinds.items()} == {"missed": 5, "invented": 1, "wrong class": 1}


def test_the_words_above(pair):
    # ET: 3 of 8 voxels found and one invented, 2·3/(8 + 4); TC: 4, 2·4/(8 + 5); WT: 2·4/(9 + 5)
    text = summary(*pair, BRATS_METS)
    assert text == "Dice ET 0.50, TC 0.62, WT 0.57 · 1 of 2 lesions found, 1 invented"
    nothing = np.zeros((2, 2, 2), np.uint8)
    assert "ET –, TC –, WT – · 0 of 0 lesions found, 0 invented" in summary(nothing, nothing, BRATS_METS)


def test_a_picture_shows_errors_in_their_colours(pair):
    reference, prediction = pair
    sound = draw_case(shown(reference, reference))
    wrong = draw_case(shown(reference, prediction))
    assert sound.shape == wrong.shape
    assert sound.shape[1] > 1000

    def pink(picture):
        red, green, blue = picture.astype(int).transpose(2, 0, 1)
        return int(((red > 140) & (green < 0.5 * red) & (blue > 0.4 * red)).sum())

    third = sound.shape[1] // 3
    above = slice(0, int(0.9 * sound.shape[0]))  # of the legend
    assert pink(wrong[above, 2 * third :]) > 100 + pink(sound[above, 2 * third :])
    np.testing.assert_array_equal(sound[100:350, : 2 * third], wrong[100:350, : 2 * third])  # scan and reference


def test_what_nobody_labelled_is_neither_reference_nor_error(pair):
    reference, prediction = pair
    unknown = reference.copy()
    unknown[5] = IGNORE
    assert draw_case(shown(unknown, prediction)).any()
    empty = np.zeros_like(reference)
    assert draw_case(shown(empty, empty)).any()
