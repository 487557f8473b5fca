"""Arms compared on held-out cases."""

import math

import numpy as np
import pytest

from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.comparison import adjusted
from brats_lightning.evaluation.study import HeldOut, compare_arms, score_rows
from brats_lightning.metrics.official import headline_columns

DICE, HD95 = headline_columns("brats2024")


def compared(found, resamples):
    """The comparison with a patient for each case."""
    patient_of = {case: case for each in found for case in each.tables}
    return compare_arms(found, "brats2024", patient_of, Bootstrap(resamples, 0))


def test_holm_by_hand():
    # 0.01·3, 0.04·1 raised to 0.02·2 = 0.04, and a test that was not possible
    assert adjusted([0.04, 0.01, math.nan, 0.02]) == pytest.approx([0.04, 0.03, math.nan, 0.04], nan_ok=True)
    assert adjusted([0.6, 0.5]) == [1.0, 1.0]
    assert adjusted([]) == []


def table(dice, hd95=1.0):
    return {"et": {DICE: dice, HD95: hd95}}


def test_a_case_counts_once_whatever_the_number_of_seeds():
    cases = [f"c{i}" for i in range(8)]
    plain = [
        HeldOut("plain", seed, False, {c: table(0.1 * i + 0.2 * seed) for i, c in enumerate(cases)}) for seed in (0, 1)
    ]
    better = HeldOut("better", 0, False, {c: table(0.1 * i + 0.3, math.nan) for i, c in enumerate(cases[:7])})
    found = compared([*plain, better], 200)
    assert found["cases"] == 7
    mean = found["methods"]["plain"]["scores"]["et"][DICE]
    assert mean["n"] == found["methods"]["plain"]["cases"] == 8
    assert mean["mean"] == pytest.approx(np.mean([0.1 * i + 0.1 for i in range(8)]))
    assert found["methods"]["plain"]["seeds"] == pytest.approx({0: 0.35, 1: 0.55})
    dice, hd95 = found["differences"]
    assert (dice["first"], dice["second"], dice["n"], dice["mean"]) == ("plain", "better", 7, pytest.approx(0.2))
    assert dice["p_adjusted"] == dice["p"] == pytest.approx(2 / 2**7)  # all seven differ in one direction
    assert hd95["n"] == 0
    assert math.isnan(hd95["p_adjusted"])


def test_p_values_are_corrected_for_all_pairs_of_a_column():
    rng = np.random.default_rng(0)
    arms = {"a": 0.0, "b": 0.3, "c": 0.6}
    tables = [
        HeldOut(name, 0, False, {f"c{i}": table(shift + rng.uniform(0, 0.01)) for i in range(10)})
        for name, shift in arms.items()
    ]
    rows = [row for row in compared(tables, 100)["differences"] if row["column"] == DICE]
    assert [row["p"] for row in rows] == pytest.approx([2 / 2**10] * 3)
    assert [row["p_adjusted"] for row in rows] == pytest.approx([6 / 2**10] * 3)


def test_tuned_results_are_methods_of_their_own():
    both = [HeldOut("plain", 0, tuned, {"c": table(0.5 + 0.1 * tuned)}) for tuned in (False, True)]
    found = compared(both, 100)
    assert list(found["methods"]) == ["plain", "plain, tuned"]
    assert found["differences"][0]["mean"] == pytest.approx(0.1)
    assert [(row["method"], row["mean_rank"]) for row in found["ranks"]["methods"]] == [
        ("plain, tuned", 1.25),
        ("plain", 1.75),
    ]


def test_one_arm_has_no_differences_and_none_no_methods():
    one = HeldOut("plain", 0, False, {"c": table(0.5)})
    assert compared([one], 100)["differences"] == []
    assert compared([], 100) == {"cases": 0, "methods": {}, "ranks": None, "differences": []}


def test_rows_have_arm_seed_and_fold():
    found = [HeldOut("plain", 3, False, {"a": table(0.5), "b": table(0.25)})]
    assert list(score_rows(found, {"a": 1, "b": 0})) == [
        ["arm", "seed", "fold", "case", "region", DICE, HD95],
        ["plain", 3, 1, "a", "et", 0.5, 1.0],
        ["plain", 3, 0, "b", "et", 0.25, 1.0],
    ]
