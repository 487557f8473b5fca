"""Ranks of methods as the challenge aggregates them: over cases, regions and scores, with permutation tests."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.stats import rankdata

from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.summary import Scores, lower_is_better

EXACT = 16  # all 2¹⁶ patterns of signs are faster than random ones
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Rule:
    """What counts in the ranking of a year.

    Attributes:
        columns: the scores, which all count the same.
        failures: whether a case without a prediction counts, with the scores that the evaluator gives it; otherwise it
            is left out for this method.
    """

    columns: tuple[str, ...]
    failures: bool


_DICE, _HD95, _NSD = "LesionWise_Score_Dice", "LesionWise_Score_HD95", "LesionWise_Score_NSD @ 1.0"
# The explanation of the evaluators in docs/ says which of this is published and which is inferred.
RULES = {
    "brats2023": Rule((_DICE, _HD95), failures=True),
    "brats2024": Rule((_DICE, _HD95), failures=True),
    "brats2025": Rule((_DICE, _NSD), failures=True),
    "brats2026": Rule(("lesionwise_dsc_mean", "lesionwise_nsd_mean", "small_instance_f1"), failures=False),
}


def ranked_scores(scores: Scores, protocol: str, missing: Bool[np.ndarray, "cases methods"] | None = None) -> Scores:
    """The scores that count in the ranking; ``missing`` says which predictions there are not."""
    rule = RULES[protocol]
    left_out = False if rule.failures or missing is None else missing
    return {key: np.where(left_out, np.nan, values) for key, values in scores.items() if key[1] in rule.columns}


def case_ranks(scores: Scores) -> Float[np.ndarray, "cases methods"]:
    """Mean rank of each method in each case over regions and columns; 1 is best, equal scores get their mean rank.

    A score that is undefined (NaN) is left out: methods are ranked among those that have it, if there are at least two.
    NaN if nothing is left.
    """
    ranks = []
    for (_, column), values in scores.items():
        worst_last = values if lower_is_better(column) else -values
        comparable = (~np.isnan(values)).sum(axis=1, keepdims=True) > 1
        ranks.append(rankdata(np.where(comparable, worst_last, np.nan), axis=1, nan_policy="omit"))
    return np.ma.masked_invalid(ranks).mean(axis=0).filled(np.nan)


def final_ranks(means: Float[np.ndarray, "*draws methods"]) -> Integer[np.ndarray, "*draws methods"]:
    """Ranks of mean ranks; the best of equal ones for all of them, the last one for NaN."""
    comparable = np.round(np.nan_to_num(means, nan=np.inf), 9)  # rounding errors of a sum must not decide a rank
    return rankdata(comparable, method="min", axis=-1).astype(np.int64)


def permutation_test(differences: Float[np.ndarray, " cases"], seed: int) -> float:
    """One-sided p-value of paired differences: how often their sum is at least as large if signs are drawn at random.

    With up to `EXACT` differences that are not 0 all patterns of signs are counted; otherwise the observed one and
    `PERMUTATIONS` random ones. NaN is skipped.
    """
    differing = differences[~np.isnan(differences) & (differences != 0)]
    if len(differing) <= EXACT:
        sums = np.zeros(1)
        for difference in differing:
            sums = np.concatenate((sums + difference, sums - difference))
    else:
        signs = np.random.default_rng(seed).integers(2, size=(PERMUTATIONS, len(differing)))
        sums = np.append((2.0 * signs - 1) @ differing, differing.sum())
    return float(np.mean(sums >= differing.sum() - 1e-9))


def rank_table(
    scores: Scores, methods: Sequence[str], patients: Sequence[Hashable], bootstrap: Bootstrap
) -> dict[str, Any]:
    """The ranking by the given scores, usually `ranked_scores`.

    The rank of a method is that of the mean over cases of its `case_ranks`, so that a case counts once whatever it
    lacks. Two methods are compared by permuting them in each case at random; the bootstrap's seed is that of these
    draws, too. ``patients`` are those of each case.

    Returns:
        ``columns`` that count, ``cases``, how many have a rank, and ``methods`` from the best to the worst, each with
        its ``method``, ``rank``, ``rank_low`` and ``rank_high`` of a 95 % bootstrap interval, ``mean_rank``,
        its number of ``cases``, and ``p``: each method further down → the one-sided p-value that it is worse. These are
        the rows of the upper triangle of the significance matrix.
    """
    ranks = case_ranks(scores)
    has = ~np.isnan(ranks)
    result: dict[str, Any] = {
        "columns": list(dict.fromkeys(column for _, column in scores)),
        "cases": int(has.any(axis=1).sum()),
        "methods": [],
    }
    if not has.any():
        return result

    sums, counts = np.nan_to_num(ranks), has.astype(np.float64)
    observed = sums.sum(axis=0) / np.where(has.any(axis=0), counts.sum(axis=0), np.nan)
    places = final_ranks(observed)
    drawn = final_ranks(np.vstack((observed, bootstrap.ratios(sums, counts, patients))))
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0, method="nearest")
    order = np.argsort(places, kind="stable").tolist()
    for place, i in enumerate(order):
        row = {"method": methods[i], "rank": int(places[i]), "rank_low": int(low[i]), "rank_high": int(high[i])}
        row |= {"mean_rank": float(observed[i]), "cases": int(has[:, i].sum())}
        row["p"] = {methods[j]: permutation_test(ranks[:, j] - ranks[:, i], bootstrap.seed) for j in order[place + 1 :]}
        result["methods"].append(row)
    return result
