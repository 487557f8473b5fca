"""Intervals by drawing patients."""

import numpy as np
import pytest

from brats_lightning.evaluation.bootstrap import Bootstrap, by_patient

NAN = np.nan


def of_cases(values, resamples, seed):
    """The interval of a mean, with a patient for each case."""
    low, high = Bootstrap(resamples, seed).interval(values, np.ones_like(values), range(len(values)))
    return low[0], high[0]


def test_constant_data_give_a_point():
    assert of_cases(np.full((7, 1), 0.25), 100, 3) == (pytest.approx(0.25), pytest.approx(0.25))


def test_it_is_seeded_and_close_to_normal_theory():
    values = np.random.default_rng(0).normal(10, 2, (400, 1))
    found = of_cases(values, 4000, 1)
    assert found == of_cases(values, 4000, 1)
    assert found != of_cases(values, 4000, 2)
    half = 1.96 * values.std(ddof=1) / 20
    np.testing.assert_allclose(found, [values.mean() - half, values.mean() + half], atol=0.02)


def test_two_cases_by_enumeration():
    # Means 0 (¼), ½ (½), 1 (¼): the 2.5 % and 97.5 % points are the ends.
    assert of_cases(np.array([[0.0], [1.0]]), 500, 0) == (0, 1)


def test_a_case_is_drawn_with_all_its_lesions():
    # One case has nine lesions of Dice 1, the other one of Dice 0: a draw gives 0, 0.9 or 1, never in between.
    sums, counts = np.array([[9.0], [0.0]]), np.array([[9.0], [1.0]])
    assert set(Bootstrap(500, 0).ratios(sums, counts, "ab")[:, 0]) == {0, 0.9, 1}


def test_a_patient_is_drawn_with_all_cases():
    values = np.array([[0.0], [1.0], [1.0], [1.0]])
    drawn = Bootstrap(500, 0).ratios(values, np.ones((4, 1)), ["a", "b", "b", "b"])[:, 0]
    assert set(drawn) == {0, 0.75, 1}
    np.testing.assert_allclose([(drawn == value).mean() for value in (0, 0.75, 1)], [0.25, 0.5, 0.25], atol=0.06)
    # Ten timepoints of each of two patients say no more than one.
    ten = np.repeat(values[:2], 10, axis=0)
    low, high = Bootstrap(500, 0).interval(ten, np.ones((20, 1)), ["a"] * 10 + ["b"] * 10)
    assert (low[0], high[0]) == (0, 1)


def test_one_patient_has_no_interval():
    low, high = Bootstrap(50, 0).interval(np.array([[0.0], [1.0]]), np.ones((2, 1)), "aa")
    assert np.isnan([low[0], high[0]]).all()
    # The second patient has no value in the first column.
    counts = np.array([[1.0, 1.0], [0.0, 1.0]])
    low, high = Bootstrap(50, 0).interval(counts, counts, "ab")
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [True, False]


def test_sums_of_patients_in_the_order_of_their_first_case():
    values = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    assert by_patient(values, ["b", "a", "b"]).tolist() == [[5, 50], [2, 20]]
