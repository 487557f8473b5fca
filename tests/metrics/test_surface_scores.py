"""Surface and volume scores outside any protocol."""

import math

import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS
from brats_lightning.metrics.voxel import scored_classes, surface_scores

SPACING = (1.0, 2.0, 0.5)


def test_by_hand():
    reference, prediction = np.zeros((2, 12, 10, 20), np.uint8)
    reference[2:6, 2:5, 2:6] = 3  # 48 voxels of 1 mm³
    prediction[4:8, 2:5, 2:6] = 3  # two voxels, 2 mm, further along x
    reference[9, 8, 15] = prediction[9, 8, 16] = 1
    prediction[1, 1, 1] = 2
    scores = surface_scores(reference, prediction, SPACING, BRATS_METS, tolerance=0.5)
    assert set(scores) == set(scored_classes(BRATS_METS))
    assert scores["et"] == scores["et_class"]
    assert scores["et"]["volume_error"] == 0
    assert scores["et"]["hd95"] == 2
    # 44 of 48 voxels are surface, all but an interior of 2 · 1 · 2. The other box covers two planes of 12 voxels, of
    # which 22 are surface: 20 on the other's surface, two in its interior, 0.5 mm from it.
    assert scores["et"]["nsd"] == 22 / 44
    assert scores["netc"] == {"hd95": 0.5, "nsd": 1.0, "volume_error": 0}
    assert scores["wt"]["volume_error"] == pytest.approx(0.001)


def test_edge_cases():
    nothing, one = np.zeros((2, 6, 8, 10), np.uint8)
    one[3, 3, 3] = 2
    diagonal = math.sqrt(6**2 + 16**2 + 5**2)
    both_empty = surface_scores(nothing, one, SPACING, BRATS_METS)["et"]
    assert math.isnan(both_empty["hd95"])
    assert math.isnan(both_empty["nsd"])
    assert both_empty["volume_error"] == 0
    assert surface_scores(nothing, one, SPACING, BRATS_METS)["wt"] == pytest.approx(
        {"hd95": diagonal, "nsd": 0, "volume_error": 0.001}
    )
    assert surface_scores(one, nothing, SPACING, BRATS_METS)["snfh"] == pytest.approx(
        {"hd95": diagonal, "nsd": 0, "volume_error": -0.001}
    )
    assert surface_scores(one, one, SPACING, BRATS_METS)["snfh"] == {"hd95": 0, "nsd": 1, "volume_error": 0}
