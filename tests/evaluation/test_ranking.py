"""Ranks of methods over cases, regions and scores."""

import itertools
import math

import numpy as np
import pytest

from brats_lightning.evaluation import ranking
from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.ranking import (
    RULES,
    case_ranks,
    final_ranks,
    permutation_test,
    rank_table,
    ranked_scores,
)
from brats_lightning.evaluation.report.wording import terminal_ranks
from brats_lightning.metrics.official import HEADLINES
from brats_lightning.runtime.console import as_text

NAN = math.nan
DICE, HD95 = RULES["brats2024"].columns
DSC, NSD, F1 = RULES["brats2026"].columns


def ranked(scores, methods, resamples):
    """The ranking with a patient for each case."""
    return rank_table(scores, methods, range(len(next(iter(scores.values())))), Bootstrap(resamples, 0))


def by_hand():
    """Five cases, three methods: ties, a score that one method lacks, one that only one has, and one that all lack."""
    return {
        ("et", DICE): np.array(
            [
                [0.9, 0.5, 0.7],  # 1 3 2
                [0.5, 0.5, 0.1],  # 1½ 1½ 3
                [0.4, NAN, 0.6],  # 2 – 1
                [NAN, 0.9, NAN],  # no rival
                [NAN, NAN, NAN],
            ]
        ),
        ("et", HD95): np.array(
            [
                [2.0, 1.0, 3.0],  # 2 1 3
                [9.0, 9.0, 9.0],  # 2 2 2
                [NAN, NAN, NAN],
                [1.0, 2.0, 3.0],  # 1 2 3
                [NAN, NAN, NAN],
            ]
        ),
    }


def test_ranks_by_hand():
    ranks = case_ranks(by_hand())
    expected = [[1.5, 2, 2.5], [1.75, 1.75, 2.5], [2, NAN, 1], [1, 2, 3], [NAN, NAN, NAN]]
    np.testing.assert_array_equal(ranks, expected)
    table = ranked(by_hand(), ["a", "b", "c"], 100)
    assert table["columns"] == [DICE, HD95]
    assert table["cases"] == 4
    rows = [(row["method"], row["rank"], row["mean_rank"], row["cases"]) for row in table["methods"]]
    assert rows == [("a", 1, 6.25 / 4, 4), ("b", 2, 5.75 / 3, 3), ("c", 3, 9 / 4, 4)]
    # b − a is ½, 0, 1: one of the four patterns of signs reaches 1½. c − a is 1, ¾, −1, 2, whose sum is reached if what
    # is turned round sums to at most 0: {}, {−1}, {1, −1}, {¾, −1}.
    assert table["methods"][0]["p"] == {"b": 1 / 4, "c": 4 / 16}
    # c − b is ½, ¾, 1
    assert table["methods"][1]["p"] == {"c": 1 / 8}
    assert table["methods"][2]["p"] == {}


def sum_reaches(differences):
    """How many of all sign patterns have a sum of at least the observed one."""
    sums = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=len(differences))]
    return np.mean(np.array(sums) >= sum(differences) - 1e-12)


def test_places_of_equal_means():
    assert final_ranks(np.array([0.1 + 0.2, 0.3, 0.2, NAN])).tolist() == [2, 2, 1, 4]


def test_which_scores_count():
    scores = {(r, c): np.ones((1, 2)) for r in ("et", "rc") for c in HEADLINES["brats2026"].values()}
    assert list(ranked_scores(scores, "brats2026")) == [(r, c) for r in ("et", "rc") for c in (DSC, NSD, F1)]
    for protocol, rule in RULES.items():
        assert set(rule.columns) <= set(HEADLINES[protocol].values())
    assert set(RULES) == set(HEADLINES)


def test_a_missing_prediction_counts_until_2025():
    missing = np.array([[False, False], [True, False], [False, False]])
    values = np.array([[0.9, 0.1], [0.0, 0.2], [NAN, NAN]])  # a missing prediction is scored with 0
    older = ranked(ranked_scores({("et", DICE): values}, "brats2024", missing), ["a", "b"], 100)
    assert [(row["mean_rank"], row["cases"]) for row in older["methods"]] == [(1.5, 2), (1.5, 2)]
    newer = ranked(ranked_scores({("et", DSC): values}, "brats2026", missing), ["a", "b"], 100)
    assert [(row["method"], row["mean_rank"], row["cases"]) for row in newer["methods"]] == [("a", 1, 1), ("b", 2, 1)]
    assert np.array_equal(values[1], [0.0, 0.2])


def test_a_method_without_any_rank_is_last():
    values = np.array([[NAN, 0.1, 0.2], [NAN, 0.3, 0.1]])
    table = ranked({("et", DICE): values}, ["a", "b", "c"], 100)
    rows = [(row["method"], row["rank"], row["rank_low"], row["rank_high"], row["cases"]) for row in table["methods"]]
    assert rows == [("b", 1, 1, 2, 2), ("c", 1, 1, 2, 2), ("a", 3, 3, 3, 0)]
    assert math.isnan(table["methods"][2]["mean_rank"])


def test_no_case_can_be_ranked():
    table = ranked({("et", DICE): np.full((3, 2), NAN)}, ["a", "b"], 100)
    assert table == {"columns": [DICE], "cases": 0, "methods": []}


def random_scores(cases=12, methods=4, seed=0):
    """With ties, undefined values and methods of different quality."""
    rng = np.random.default_rng(seed)
    scores = {}
    for region, column in itertools.product(("et", "tc", "wt"), (DICE, HD95)):
        values = np.round(rng.uniform(0, 1, (cases, methods)) + 0.2 * np.arange(methods), 1)
        values[rng.uniform(size=values.shape) < 0.1] = NAN
        scores[region, column] = values if column == DICE else 3 - values
    return scores


def as_described(scores, methods):
    """The ranking of BraTS since 2017 as its organisers describe it, in plain loops.

    Each team is ranked in each case for each region and measure; the mean of these is the cumulative rank of the case,
    the mean of the cumulative ranks the final score. For each pair of teams the cumulative ranks are permuted within
    cases; the proportion of permutations with a difference of final scores as large as the observed one is p.
    """
    cumulative = {}
    for case, method in itertools.product(range(len(next(iter(scores.values())))), range(len(methods))):
        own = []
        for (_, column), values in scores.items():
            rivals = [v for v in values[case] if not math.isnan(v)]
            mine = values[case, method]
            if len(rivals) > 1 and not math.isnan(mine):
                better = sum(v > mine if column == DICE else v < mine for v in rivals)
                own.append(better + (rivals.count(mine) + 1) / 2)
        cumulative[case, method] = sum(own) / len(own) if own else None
    cases = {case for case, _ in cumulative}
    final, p = {}, {}
    for i, method in enumerate(methods):
        own = [cumulative[case, i] for case in cases if cumulative[case, i] is not None]
        final[method] = sum(own) / len(own)
    for i, j in itertools.permutations(range(len(methods)), 2):
        pairs = [(cumulative[case, i], cumulative[case, j]) for case in cases]
        pairs = [pair for pair in pairs if None not in pair]
        observed = sum(b - a for a, b in pairs)
        swapped = [
            sum((a - b) if swap else (b - a) for swap, (a, b) in zip(swaps, pairs, strict=True))
            for swaps in itertools.product((False, True), repeat=len(pairs))
        ]
        p[methods[i], methods[j]] = sum(value >= observed - 1e-9 for value in swapped) / len(swapped)
    return final, p


def test_equals_the_published_description():
    scores, methods = random_scores(cases=9), ["a", "b", "c", "d"]
    final, p = as_described(scores, methods)
    rows = ranked(scores, methods, 100)["methods"]
    assert [row["method"] for row in rows] == sorted(methods, key=final.__getitem__)
    for place, row in enumerate(rows):
        assert row["mean_rank"] == pytest.approx(final[row["method"]])
        assert list(row["p"]) == [worse["method"] for worse in rows[place + 1 :]]
        for worse, value in row["p"].items():
            assert value == pytest.approx(p[row["method"], worse])


def test_the_order_of_the_methods_does_not_matter():
    scores, methods = random_scores(), ["a", "b", "c", "d"]
    turned = [2, 0, 3, 1]
    there = ranked(scores, methods, 200)
    other = ranked({k: v[:, turned] for k, v in scores.items()}, [methods[i] for i in turned], 200)
    assert len({row["rank"] for row in there["methods"]}) == 4
    assert other == there


def test_cases_given_twice_change_the_p_values_only():
    scores, methods = random_scores(cases=8), ["a", "b", "c", "d"]
    once = ranked(scores, methods, 200)["methods"]
    twice = ranked({key: np.concatenate((v, v)) for key, v in scores.items()}, methods, 200)["methods"]
    for row, doubled in zip(once, twice, strict=True):
        assert (row["method"], row["rank"]) == (doubled["method"], doubled["rank"])
        assert doubled["mean_rank"] == pytest.approx(row["mean_rank"])
        assert doubled["cases"] == 2 * row["cases"]
    assert once[0]["p"][once[3]["method"]] > twice[0]["p"][once[3]["method"]]


def test_permutation_test_by_hand():
    assert permutation_test(np.array([1.0, 1, 1, 1, 1, NAN, 0]), 0) == 1 / 32
    assert permutation_test(-np.ones(5), 0) == 1  # the observed sum is the smallest
    assert permutation_test(np.array([1.0, 0.5, -0.5]), 0) == sum_reaches([1, 0.5, -0.5]) == 3 / 8
    assert permutation_test(np.array([0.0, NAN]), 0) == 1


def test_random_permutations_estimate_the_exact_value(monkeypatch):
    differences = np.random.default_rng(3).normal(0.7, 1, 14)
    exact = permutation_test(differences, 0)
    assert exact == pytest.approx(sum_reaches(differences))
    monkeypatch.setattr(ranking, "EXACT", 3)
    assert 0.02 < exact < 0.2
    error = math.sqrt(exact * (1 - exact) / ranking.PERMUTATIONS)
    assert permutation_test(differences, 0) == pytest.approx(exact, abs=4 * error)
    assert permutation_test(np.ones(40), 0) == 1 / (ranking.PERMUTATIONS + 1)  # the observed one is counted


def test_a_rank_is_certain_where_every_case_agrees():
    better = np.tile([0.9, 0.5, 0.5], (20, 1))
    rows = ranked({("et", DICE): better}, ["a", "b", "c"], 200)["methods"]
    assert [(row["rank"], row["rank_low"], row["rank_high"]) for row in rows] == [(1, 1, 1), (2, 2, 2), (2, 2, 2)]
    mixed = np.where(np.arange(20)[:, None] < 11, [0.9, 0.5], [0.5, 0.9])  # 11 cases against 9
    rows = ranked({("et", DICE): mixed}, ["a", "b"], 200)["methods"]
    assert [(row["rank"], row["rank_low"], row["rank_high"]) for row in rows] == [(1, 1, 2), (2, 1, 2)]


def test_matrix_on_the_terminal():
    table = ranked({("et", DICE): np.tile([0.9, 0.5, 0.1], (6, 1))}, ["a", "[b]", "c"], 100)
    lines = [line.split("│") for line in as_text(terminal_ranks(table, "brats2024")).splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line[1:-1]] for line in lines]
    assert cells == [
        ["1 [1, 1]", "a", "1.00", "0.016", "0.016"],
        ["2 [2, 2]", "[b]", "2.00", "", "0.016"],
        ["3 [3, 3]", "c", "3.00", "", ""],
    ]
