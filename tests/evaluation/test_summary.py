import math

import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS
from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.scoring import SIZE_FILTERS, ScoredCase, Scoring, operating_points
from brats_lightning.evaluation.summary import (
    detection_curve,
    size_bands,
    summarise,
    wilson_interval,
)
from brats_lightning.metrics.lesions import LesionRow, lesion_table

NAN = math.nan


def lesion(volume, dice=0.0, false_positive=False):
    return LesionRow(1, false_positive, float(volume), dice >= 0.1, float(dice), (0, 0, 0))


def case(name, *lesions, operating=None):
    return ScoredCase(
        name, name, False, {}, {}, {"et": list(lesions)}, {"et": operating or [(0, 0)] * len(SIZE_FILTERS)}
    )


def test_summary_by_hand():
    tables = [{"et": {"dice": v, "hd95": h}} for v, h in ((0.2, NAN), (0.4, NAN), (0.9, NAN), (NAN, 3.0))]
    row = summarise(tables, "abcd", Bootstrap(200, 0))["et"]["dice"]
    assert row["mean"] == pytest.approx(0.5)
    assert row["std"] == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert row["median"] == pytest.approx(0.4)
    assert row["n"] == 3
    assert 0.2 <= row["low"] < 0.5 < row["high"] <= 0.9
    single = summarise(tables, "abcd", Bootstrap(200, 0))["et"]["hd95"]
    assert (single["mean"], single["median"], single["n"]) == (3, 3, 1)
    assert np.isnan([single["std"], single["low"], single["high"]]).all()


def test_a_column_without_values():
    row = summarise([{"et": {"dice": NAN}}, {"et": {"dice": NAN}}], ["a", "b"], Bootstrap(10, 0))["et"]["dice"]
    assert row["n"] == 0
    assert np.isnan([row[key] for key in ("mean", "std", "median", "low", "high")]).all()


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [(0, 10, (0, 0.27753)), (5, 10, (0.23659, 0.76341)), (10, 10, (0.72247, 1)), (81, 263, (0.25530, 0.36620))],
)
def test_wilson(successes, n, expected):
    from scipy.stats import binomtest

    assert wilson_interval(successes, n) == pytest.approx(expected, abs=1e-4)
    exact = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert np.isnan(wilson_interval(0, 0)).all()


def test_size_bands_by_hand():
    cases = [
        case("a", lesion(26.9, 0.5), lesion(27, 0.05), lesion(275, 0.8), lesion(500, 0, false_positive=True)),
        case("b", lesion(1000, 0.9), lesion(5), lesion(30, 0.7)),
    ]
    bands = size_bands(cases, "et", Bootstrap(100, 0))
    assert [(band["from_mm3"], band["to_mm3"]) for band in bands] == [
        (0, 27),
        (27, 64),
        (64, 275),
        (275, 1000),
        (1000, None),
    ]
    assert [(band["lesions"], band["detected"]) for band in bands] == [(2, 1), (2, 1), (0, 0), (1, 1), (1, 1)]
    assert [band["dice"] for band in bands] == pytest.approx([0.25, 0.375, NAN, 0.8, 0.9], nan_ok=True)
    assert [band["sensitivity"] for band in bands] == pytest.approx([0.5, 0.5, NAN, 1, 1], nan_ok=True)
    assert (bands[0]["sensitivity_low"], bands[0]["sensitivity_high"]) == wilson_interval(1, 2)
    assert (bands[0]["dice_low"], bands[0]["dice_high"]) == (0, 0.5)
    assert np.isnan([bands[3]["dice_low"], bands[2]["sensitivity_low"]]).all()


def masks():
    """Reference lesions of 27 and 8 voxels; the prediction has the first, a shifted second and two inventions."""
    reference, prediction = np.zeros((2, 30, 12, 12), np.uint8)
    reference[1:4, 1:4, 1:4] = prediction[1:4, 1:4, 1:4] = 3
    reference[8:10, 1:3, 1:3] = prediction[9:11, 1:3, 1:3] = 3  # 4 of 8 voxels in common
    prediction[15:20, 1:6, 1:3] = 3  # 50
    prediction[25, 5, 5] = 3
    return reference, prediction


def test_operating_points_by_hand():
    reference, prediction = masks()
    points = dict(zip(SIZE_FILTERS, operating_points(reference, prediction, (1.0, 1.0, 1.0), (3,), 0.1), strict=True))
    assert points[0] == (2, 2)
    assert points[3] == points[5] == (2, 1)  # without the single voxel
    assert points[10] == points[27] == (1, 1)  # without the 8 voxels; at least 27 is kept
    assert points[50] == (0, 1)
    assert points[100] == (0, 0)


def test_operating_points_start_where_the_lesion_table_is():
    reference, prediction = masks()
    for spacing in ((1.0, 1.0, 1.0), (0.5, 1.0, 3.0)):
        table = lesion_table(reference, prediction, spacing, BRATS_METS.regions["et"], 0.6)
        first = operating_points(reference, prediction, spacing, (3,), 0.6)[0]
        assert first == (sum(r.detected for r in table), sum(r.false_positive for r in table)) == (1, 2)


def test_operating_points_of_nothing():
    empty = np.zeros((3, 3, 3), np.uint8)
    assert operating_points(empty, empty, (1.0, 1.0, 1.0), (3,), 0.1) == [(0, 0)] * len(SIZE_FILTERS)


def test_detection_curve():
    n = len(SIZE_FILTERS)
    cases = [
        case("a", lesion(10, 0.5), lesion(10), operating=[(1, 3)] + [(1, 0)] * (n - 1)),
        case("b", lesion(9, 0.9), lesion(9, 0.9), operating=[(2, 1)] * n),
    ]
    curve = detection_curve(cases, "et")
    assert curve[0] == {"smallest_mm3": 0.0, "sensitivity": 0.75, "false_positives_per_case": 2.0}
    assert curve[-1] == {"smallest_mm3": 1000.0, "sensitivity": 0.75, "false_positives_per_case": 0.5}
    assert math.isnan(detection_curve([case("c")], "et")[0]["sensitivity"])


def test_scoring_settings():
    assert Scoring(protocols=["brats2026", "brats2026"]).protocols == ("brats2026",)
    assert Scoring(thresholds="challenge").overlap == 0.2
    assert Scoring().lesion_region == "et"
    with pytest.raises(ValueError, match="prediction_label_map must map labels 1 … 255"):
        Scoring(prediction_label_map={0: 1})
