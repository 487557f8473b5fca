"""Scores where the reference is unknown in places: those of the masks cut to the known part."""

import numpy as np
import pytest
import torch

from brats_lightning.core.labels import BRATS_METS, IGNORE
from brats_lightning.metrics.official import PROTOCOLS, score_case
from brats_lightning.metrics.voxel import confusion_matrix, voxel_scores
from tests.metrics.metric_pairs import random_pair


def pairs(count):
    """Pairs of masks with their spacing, and the same with slabs beyond them that nobody has labelled."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        reference, prediction, spacing = random_pair(rng)
        pads = [(0, 0)] * 3
        pads[rng.integers(3)] = (int(rng.integers(0, 4)), int(rng.integers(1, 9)))
        wide = np.pad(reference, pads, constant_values=IGNORE)
        guess = np.pad(prediction, pads)
        noise = rng.integers(0, 4, wide.shape, dtype=np.uint8) * (rng.random(wide.shape) < 0.2)
        guess[wide == IGNORE] = noise[wide == IGNORE]
        yield (reference, prediction), (wide, guess), spacing


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lesion_wise_scores_are_those_of_the_cut_masks(protocol):
    for number, (cut, whole, spacing) in enumerate(pairs(40)):
        expected = score_case(*cut, spacing, BRATS_METS, protocol)
        scores = score_case(*whole, spacing, BRATS_METS, protocol)
        for region, columns in expected.items():
            for column, value in columns.items():
                depends_on_size = column == "Specificity" or (protocol == "brats2025" and "HD95" in column)
                if not depends_on_size:
                    where = f"pair {number}, {region} {column}"
                    assert scores[region][column] == pytest.approx(value, nan_ok=True), where


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_columns_are_those_of_masks_that_are_background_there(protocol):
    for _, (reference, prediction), spacing in pairs(10):
        known = reference != IGNORE
        expected = score_case(reference * known, prediction * known, spacing, BRATS_METS, protocol)
        scores = score_case(reference, prediction, spacing, BRATS_METS, protocol)
        for region, columns in expected.items():
            assert scores[region] == pytest.approx(columns, nan_ok=True)


def test_voxel_scores_are_those_of_the_cut_masks():
    for cut, whole, _ in pairs(40):
        expected, matrix = (confusion_matrix(*map(torch.from_numpy, pair), 4) for pair in (cut, whole))
        assert torch.equal(matrix, expected)


def test_voxel_scores_by_hand():
    reference = torch.tensor([0, 3, 3, IGNORE, IGNORE], dtype=torch.uint8)
    prediction = torch.tensor([0, 3, 0, 3, 0], dtype=torch.uint8)
    scores = voxel_scores(confusion_matrix(reference, prediction, 4), BRATS_METS)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["dice_et"] == pytest.approx(2 / 3)
    nothing = torch.full((3,), IGNORE, dtype=torch.uint8)
    assert np.isnan(list(voxel_scores(confusion_matrix(nothing, prediction[:3], 4), BRATS_METS).values())).all()
