import logging

import numpy as np
import pytest

from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.choice import Gain, Tried, best, best_without, gain_of_best, gains, report_choice

NAN = np.nan


def test_the_best_mean_of_what_is_defined_and_of_equals_the_first():
    assert best(np.array([[0.5, 0.75, 0.25], [0.5, 0.5, 1.0]])) == 1  # means 0.5, 0.625, 0.625
    assert best(np.array([[0.5, NAN, 0.25], [0.5, 0.75, 0.25]])) == 1
    assert best(np.array([[NAN, 0.25], [NAN, 0.5]])) == 1
    assert best(np.full((2, 3), NAN)) == 0
    assert best(np.array([[0.5, 0.5 + 1e-9]])) == 0


def test_the_table_begins_with_the_choice_where_a_digit_decides():
    # rounded to six digits both are 0.100000, the even neighbour of 0.1000005
    scores = [{"score": 0.0}, {"score": 0.1000004}, {"score": 0.1000005}]
    tried = Tried([{}, {"a": 1}, {"b": 1}], {"P-00001-000": scores, "P-00002-000": scores}, "brats2024")
    assert tried.chosen == 1
    found = tried.summary(Bootstrap(10, 0))
    assert [row["steps"] for row in found["tried"]] == [{"a": 1}, {"b": 1}, {}]
    assert found["score"] == 0.1


def test_each_fold_is_judged_by_the_choice_of_the_others():
    scores = np.array([[0.0, 1.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 0.5], [1.0, 0.0, 0.5]])
    # without fold 0: means 0.5, 0, 0.5; without fold 1: 0, 1, 0.5
    assert best_without(scores, [0, 0, 1, 1]) == {0: 0, 1: 1}
    # chosen so, the candidates score 0 - 0, 0 - 0, 0 - 0 and 0 - 1 more than the first
    assert gain_of_best(scores, [0, 0, 1, 1], Bootstrap(200, 0)).held_out == pytest.approx(-0.25)
    assert best_without(scores[:2], ["a", "a"]) == {"a": 0}  # nobody else


def test_a_gain_with_its_interval_by_patients():
    differences = np.array([[0.2, NAN, 0.0], [0.2, 0.4, 0.0], [0.2, NAN, 0.0], [0.4, NAN, 0.0]])
    first, second, none = gains(differences, ["a", "a", "b", "c"], Bootstrap(4000, 0))
    assert first.mean == pytest.approx(0.25)
    assert (first.low, first.high) == (pytest.approx(0.2), pytest.approx(0.4))  # a alone; c alone
    assert first.p_no_gain == 0
    assert second == Gain(pytest.approx(0.4), pytest.approx(0.4), pytest.approx(0.4), 0)  # resamples with the patient
    assert none == Gain(0, 0, 0, 1)
    up_or_down = gains(np.array([[0.5], [-0.5]]), ["a", "b"], Bootstrap(4000, 0))[0]
    assert up_or_down.p_no_gain == pytest.approx(0.75, abs=0.03)  # aa of aa, ab, ba, bb is above 0
    assert np.isnan(gains(np.full((2, 1), NAN), ["a", "b"], Bootstrap(10, 0))[0].mean)


def tried(table, names=None):
    """Candidates with random or given scores, one case for each patient."""
    cases = [f"BraTS-MET-{number:05}-000" for number in range(len(table))]
    scores = {case: [{"score": float(value)} for value in row] for case, row in zip(cases, table, strict=True)}
    settings = names or [{}] + [{"min_volume.mm3": number} for number in range(1, len(table[0]))]
    return Tried(settings, scores, "brats2024", ["min_volume.mm3"])


def test_a_gain_by_chance_is_reported_as_noise(caplog):
    # forty candidates that differ in nothing but chance: the best of them seems to gain a lot
    noise = np.random.default_rng(12).normal(0.5, 0.15, (12, 40))
    found = tried(noise)
    summary = found.summary(Bootstrap(2000, 0))
    best_row, gain = summary["tried"][0], summary["gain"]
    assert best_row["score"] - summary["without"] == pytest.approx(gain["gain"], abs=2e-6)
    assert best_row["gain"] == gain["gain"] > 0.06
    assert best_row["low"] > 0  # as if it were certain
    assert gain["low"] < 0 < gain["high"]
    assert gain["held_out"] < gain["gain"] / 2
    assert (gain["within_noise"], gain["p_no_gain"] > 0.2) == (True, True)
    with caplog.at_level(logging.INFO):
        report_choice(summary)
    assert "this is within noise" in caplog.text
    assert "* the number of components depends on it" in caplog.text


def test_patients_without_a_score_change_nothing(caplog):
    scores = np.array([[0.5, 0.6, 0.7], [0.5, 0.55, 0.7], [0.5, 0.5, 0.6]])
    none = np.full((20, 3), NAN)
    assert gain_of_best(np.vstack([scores, none]), range(23), Bootstrap(500, 0)) == gain_of_best(
        scores, range(3), Bootstrap(500, 0)
    )
    assert gains(np.vstack([scores, none]), range(23), Bootstrap(500, 0)) == gains(scores, range(3), Bootstrap(500, 0))
    cases = {f"P-{i:05}-000": [{"score": value} for value in row] for i, row in enumerate([*scores, *none])}
    with caplog.at_level(logging.INFO):
        report_choice(Tried([{}, {"a": 1}, {"b": 1}], cases, "brats2026").summary(Bootstrap(500, 0)))
    assert "gain 0.167 [" in caplog.text


def test_noise_is_rarely_taken_for_a_gain():
    claims = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = rng.normal(0.5, 0.2, (10, 1)) + rng.normal(0, 0.1, (10, 30))
        claims += not gain_of_best(scores, list(range(10)), Bootstrap(300, 0)).within_noise
    assert claims <= 4  # of 60; 1.5 are expected at this level, and 20 without regard to the choice


def test_a_real_gain_is_not(caplog, capsys):
    rng = np.random.default_rng(0)
    cases = rng.normal(0.5, 0.15, (12, 1))
    table = cases + np.array([0, 0.02, 0.1, 0.05]) + rng.normal(0, 0.02, (12, 4))
    found = tried(table)
    assert found.chosen == 2
    summary = found.summary(Bootstrap(2000, 0))
    assert [row["steps"] for row in summary["tried"]][::3] == [{"min_volume.mm3": 2}, {}]
    gain = summary["gain"]
    assert gain["gain"] == gain["held_out"] == pytest.approx(0.1, abs=0.02)
    assert 0.06 < gain["low"] < gain["gain"] < gain["high"] < 0.14
    assert (gain["p_no_gain"], gain["within_noise"]) == (pytest.approx(2**-12, abs=1e-6), False)
    with caplog.at_level(logging.INFO):
        report_choice(summary)
    assert "this is more than noise" in caplog.text
    assert "min_volume.mm3 *" in capsys.readouterr().out
    assert {row["gain"]: row["p_no_gain"] for row in summary["tried"]}[0] == 1  # without any setting


def test_one_patient_tells_nothing(caplog):
    summary = tried(np.array([[0.25, 0.5]])).summary(Bootstrap(100, 0))
    assert summary["score"] == 0.5
    assert summary["gain"]["p_no_gain"] is None
    report_choice(summary)
    assert "too few patients" in caplog.text
    nothing = tried(np.full((2, 2), NAN)).summary(Bootstrap(100, 0))
    assert nothing["score"] is None
