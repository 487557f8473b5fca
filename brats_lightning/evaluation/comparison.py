"""Comparing methods on the same cases: paired differences and ranks."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import wilcoxon

from brats_lightning.evaluation.bootstrap import Bootstrap, by_patient
from brats_lightning.evaluation.pairing import EvaluationError
from brats_lightning.evaluation.ranking import rank_table, ranked_scores
from brats_lightning.evaluation.scoring import Evaluation
from brats_lightning.evaluation.summary import Scores, Table
from brats_lightning.metrics.official import headline_columns

FEWEST = 6  # five differences cannot give p < 0.05, even if all have the same sign


def signed_rank(differences: Float[np.ndarray, " patients"]) -> tuple[float, str]:
    """Two-sided p-value of Wilcoxon's signed-rank test over patients, and a note if the test is not possible.

    Differences of 0 are discarded, as Wilcoxon proposed; NaN is skipped. p is NaN for fewer than six other differences,
    and 1 if all are 0.
    """
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return math.nan, "no case has both scores"
    differing = differences[differences != 0]
    if not len(differing):
        return 1.0, "no difference in any case"
    if len(differing) < FEWEST:
        return math.nan, f"only {len(differing)} patients differ; the test needs {FEWEST}"
    return float(wilcoxon(differing).pvalue), ""


def adjusted(p: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's method; NaN, of a test that was not possible, is not counted.

    The smallest of n is multiplied by n, the next one by n - 1, …, none becoming smaller than the one before.
    """
    corrected = np.full(len(p), math.nan)
    order = [i for i in np.argsort(p) if not math.isnan(p[i])]
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p[i] * (len(order) - rank)))
        corrected[i] = largest
    return corrected.tolist()


def paired_differences(
    scores: Scores, methods: Sequence[str], patients: Sequence[Hashable], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Differences, second minus first, for every pair of methods, region and column.

    Each entry has ``first``, ``second``, ``region``, ``column``, ``n`` (cases with both scores), the ``mean``
    difference, ``low`` and ``high`` of its 95 % bootstrap interval, the signed-rank ``p`` of the means of the patients,
    and a ``note``. ``patients`` are those of each case.
    """
    rows = []
    for a, b in combinations(range(len(methods)), 2):
        for (region, column), values in scores.items():
            differences = values[:, b] - values[:, a]
            has = ~np.isnan(differences)
            sums, counts = np.where(has, differences, 0.0)[:, None], has.astype(np.float64)[:, None]
            low, high = bootstrap.interval(sums, counts, patients)
            total, number = by_patient(sums, patients), by_patient(counts, patients)
            p, note = signed_rank(total[number > 0] / number[number > 0])
            mean = float(differences[has].mean()) if has.any() else math.nan
            row = {"first": methods[a], "second": methods[b], "region": region, "column": column, "n": int(has.sum())}
            row |= {"mean": mean, "low": float(low[0]), "high": float(high[0]), "p": p, "note": note}
            rows.append(row)
    return rows


def common_cases(evaluations: Sequence[Evaluation]) -> list[str]:
    """The cases on which every method was scored.

    Raises:
        EvaluationError: there is none.
    """
    common = set.intersection(*({case.case for case in evaluation.cases} for evaluation in evaluations))
    if not common:
        raise EvaluationError("the methods have no case in common")
    return sorted(common)


def paired_scores(tables: Sequence[Mapping[str, Table]], cases: Sequence[str], protocol: str) -> Scores:
    """The headline scores of all methods, each with a table of every case, on the given cases."""
    return {
        (region, column): np.array([[table[case][region][column] for table in tables] for case in cases])
        for region in tables[0][cases[0]]
        for column in headline_columns(protocol)
    }


def compare(evaluations: Sequence[Evaluation], bootstrap: Bootstrap) -> tuple[dict[str, Any], dict[str, Scores]]:
    """The content of ``comparison.json``, and the paired scores by protocol.

    Needs at least two evaluations with the same protocols. The bootstrap's seed is that of the permutation tests, too.
    """
    methods = [evaluation.name for evaluation in evaluations]
    cases = common_cases(evaluations)
    patient_of = {case.case: case.patient for case in evaluations[0].cases}
    patients = [patient_of[case] for case in cases]
    scores = {}
    for protocol in evaluations[0].scoring.protocols:
        tables = [{case.case: case.official[protocol] for case in evaluation.cases} for evaluation in evaluations]
        scores[protocol] = paired_scores(tables, cases, protocol)
    missing = np.array([[case in evaluation.missing for evaluation in evaluations] for case in cases])
    protocols = {
        protocol: {
            "differences": paired_differences(table, methods, patients, bootstrap),
            "ranks": rank_table(ranked_scores(table, protocol, missing), methods, patients, bootstrap),
        }
        for protocol, table in scores.items()
    }
    return {"methods": methods, "cases": cases, "bootstrap": asdict(bootstrap), "protocols": protocols}, scores


def difference_rows(scores: Mapping[str, Scores], cases: Sequence[str], methods: Sequence[str]) -> list[list[Any]]:
    """The rows of ``comparison.csv`` with a header: every paired difference, second minus first.

    ``scores`` holds the `paired_scores` of these cases and methods by protocol.
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
