"""Two or more methods on the same cases: paired differences, and the challenge's aggregation of ranks."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata, wilcoxon

from brats_lightning.evaluation.pairing import EvaluationError
from brats_lightning.evaluation.scoring import Evaluation
from brats_lightning.evaluation.summary import bootstrap_interval, lower_is_better
from brats_lightning.metrics.official import headline_columns

FEWEST = 6  # with fewer differences not even five of one sign give p < 0.05
PERMUTATIONS = 10_000

# (region, column) → a row per case, a column per method
Scores = dict[tuple[str, str], Float[np.ndarray, "cases methods"]]


def signed_rank(differences: Float[np.ndarray, " n"]) -> tuple[float, str]:
    """Two-sided p-value of Wilcoxon's signed-rank test, and a note where there is none.

    Differences of 0 leave the test (Wilcoxon's own treatment); NaN is skipped. p is NaN for fewer than six other
    differences and 1 where all are 0.
    """
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return math.nan, "no case has both scores"
    differing = differences[differences != 0]
    if not len(differing):
        return 1.0, "no difference in any case"
    if len(differing) < FEWEST:
        return math.nan, f"only {len(differing)} cases differ; the test needs {FEWEST}"
    return float(wilcoxon(differing).pvalue), ""


def paired_differences(scores: Scores, methods: Sequence[str], resamples: int, seed: int) -> list[dict[str, Any]]:
    """Second minus first, for every pair of methods, region and column.

    Each entry has ``first``, ``second``, ``region``, ``column``, ``n`` (cases with both scores), the ``mean``
    difference, ``low`` and ``high`` of its 95 % bootstrap interval over cases, the signed-rank ``p`` and a ``note``.
    """
    rows = []
    for a, b in combinations(range(len(methods)), 2):
        for (region, column), values in scores.items():
            differences = values[:, b] - values[:, a]
            has = ~np.isnan(differences)
            counts = has.astype(np.float64)[:, None]
            low, high = bootstrap_interval(np.where(has, differences, 0.0)[:, None], counts, resamples, seed)
            p, note = signed_rank(differences)
            mean = float(differences[has].mean()) if has.any() else math.nan
            row = {"first": methods[a], "second": methods[b], "region": region, "column": column, "n": int(has.sum())}
            row |= {"mean": mean, "low": float(low[0]), "high": float(high[0]), "p": p, "note": note}
            rows.append(row)
    return rows


def case_ranks(scores: Scores) -> Float[np.ndarray, "cases methods"]:
    """Each case's mean rank of each method over regions and columns, 1 the best; equal scores share their mean rank.

    A score that only some methods lack ranks best: it is undefined where reference and prediction agree that there is
    nothing. What all lack is left out; NaN where nothing is left.
    """
    ranks = []
    for (_, column), values in scores.items():
        worst_last = values if lower_is_better(column) else -values
        own = rankdata(np.where(np.isnan(values), -np.inf, worst_last), axis=1)
        ranks.append(np.where(np.isnan(values).all(axis=1, keepdims=True), np.nan, own))
    has = ~np.isnan(ranks)
    total = np.where(has, ranks, 0.0).sum(axis=0)
    counted = has.sum(axis=0)
    return np.where(counted > 0, total / np.maximum(counted, 1), np.nan)


def rank_table(ranks: Float[np.ndarray, "cases methods"], methods: Sequence[str], seed: int) -> dict[str, Any]:
    """The challenge's aggregation: mean rank over cases, final rank, and how sure each pair's order is.

    ``p`` of a pair is a permutation test's: how often the mean difference of the two methods' ranks is at least as
    large when in each case it is left to chance which method is which.
    """
    ranks = ranks[~np.isnan(ranks).any(axis=1)]
    if not len(ranks):
        return {"cases": 0, "methods": [], "pairs": []}
    means = ranks.mean(axis=0)
    places = rankdata(np.round(means, 9), method="min")  # a sum's rounding decides no place
    rng = np.random.default_rng(seed)
    pairs = []
    for a, b in combinations(range(len(methods)), 2):
        differences = ranks[:, b] - ranks[:, a]
        signs = rng.choice((-1.0, 1.0), size=(PERMUTATIONS, len(ranks)))
        extreme = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9
        p = float((extreme.sum() + 1) / (PERMUTATIONS + 1))
        pairs.append({"first": methods[a], "second": methods[b], "difference": float(differences.mean()), "p": p})
    rows = [
        {"method": method, "mean_rank": float(mean), "rank": int(place)}
        for method, mean, place in zip(methods, means, places, strict=True)
    ]
    return {"cases": len(ranks), "methods": sorted(rows, key=lambda row: row["mean_rank"]), "pairs": pairs}


def common_cases(evaluations: Sequence[Evaluation]) -> list[str]:
    """Cases that every method was scored on.

    Raises:
        EvaluationError: there is none.
    """
    common = set.intersection(*({case.case for case in evaluation.cases} for evaluation in evaluations))
    if not common:
        raise EvaluationError("the methods have no case in common")
    return sorted(common)


def paired_scores(evaluations: Sequence[Evaluation], cases: Sequence[str], protocol: str) -> Scores:
    """The headline scores of the given cases, all methods side by side."""
    tables = [{case.case: case.official[protocol] for case in evaluation.cases} for evaluation in evaluations]
    return {
        (region, column): np.array([[table[case][region][column] for table in tables] for case in cases])
        for region in evaluations[0].scoring.scheme.regions
        for column in headline_columns(protocol)
    }


def compare(evaluations: Sequence[Evaluation], resamples: int, seed: int) -> tuple[dict[str, Any], dict[str, Scores]]:
    """What is written to ``comparison.json``, and the paired scores by protocol.

    The evaluations are at least two, of the same protocols; the seed is the bootstrap's and the permutation test's.
    """
    methods = [evaluation.name for evaluation in evaluations]
    cases = common_cases(evaluations)
    scores = {each: paired_scores(evaluations, cases, each) for each in evaluations[0].scoring.protocols}
    protocols = {
        protocol: {
            "differences": paired_differences(table, methods, resamples, seed),
            "ranks": rank_table(case_ranks(table), methods, seed),
        }
        for protocol, table in scores.items()
    }
    bootstrap = {"resamples": resamples, "seed": seed}
    return {"methods": methods, "cases": cases, "bootstrap": bootstrap, "protocols": protocols}, scores


def difference_rows(scores: Mapping[str, Scores], cases: Sequence[str], methods: Sequence[str]) -> list[list[Any]]:
    """The table of ``comparison.csv`` with its head: every paired difference, second minus first.

    ``scores`` are by protocol, as `paired_scores` gives them of these cases and methods.
    """
    head = ["protocol", "case", "region", "column", "first", "second", "first_score", "second_score", "difference"]
    rows: list[list[Any]] = [head]
    for protocol, table in scores.items():
        for i, case in enumerate(cases):
            for (region, column), values in table.items():
                for a, b in combinations(range(len(methods)), 2):
                    one, two = float(values[i, a]), float(values[i, b])
                    rows.append([protocol, case, region, column, methods[a], methods[b], one, two, two - one])
    return rows
