"""The result of a study: arms compared on the cases that each model had held out, whatever the fold and the seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.comparison import adjusted, paired_differences, paired_scores
from brats_lightning.evaluation.ranking import rank_table, ranked_scores
from brats_lightning.evaluation.summary import Table, summarise
from brats_lightning.metrics.official import headline_columns, mean_without_nan

TUNED = "tuned"


@dataclass(frozen=True)
class HeldOut:
    """The scores of one arm and seed by one protocol, each case by the model that was not trained on it.

    Attributes:
        arm: its name.
        seed: of the training.
        tuned: whether with the post-processing that was chosen on the other folds.
        tables: case → region → column → value.
    """

    arm: str
    seed: int
    tuned: bool
    tables: Mapping[str, Table]

    @property
    def method(self) -> str:
        """The name in tables."""
        return f"{self.arm}, {TUNED}" if self.tuned else self.arm


def score_rows(found: Sequence[HeldOut], fold_of: Mapping[str, int]) -> Iterator[list[Any]]:
    """The rows of ``scores.csv`` with a header."""
    columns = dict.fromkeys(
        column for each in found for table in each.tables.values() for row in table.values() for column in row
    )
    yield ["arm", "seed", "fold", "case", "region", *columns]
    for each in found:
        for case, table in each.tables.items():
            for region, row in table.items():
                yield [each.arm, each.seed, fold_of[case], case, region, *(row.get(column) for column in columns)]


def compare_arms(
    found: Sequence[HeldOut], protocol: str, patient_of: Mapping[str, str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Scores and paired differences of the methods, which are the arms, as trained and with tuned post-processing.

    A case's score is the mean over the seeds, so that each case counts once. All methods are compared on the cases that
    every one of them has; p-values are corrected together for all pairs and regions of a column.

    Returns:
        ``cases``: how many all methods have; ``methods``: name → ``scores`` as `summarise` gives them, ``seeds`` (for
        each the mean of the main column over the regions' means) and ``cases``; ``ranks`` as `rank_table` gives them,
        None of a single method; ``differences`` as `paired_differences` gives them, with ``p_adjusted``.
    """
    methods: dict[str, dict[int, Mapping[str, Table]]] = {}
    for each in found:
        methods.setdefault(each.method, {})[each.seed] = each.tables
    columns = headline_columns(protocol)
    pooled = {name: _mean_over_seeds(list(seeds.values()), columns) for name, seeds in methods.items()}
    common = sorted(set.intersection(*(set(tables) for tables in pooled.values()))) if pooled else []
    result: dict[str, Any] = {"cases": len(common), "methods": {}, "ranks": None, "differences": []}
    for name, tables in pooled.items():
        by_seed = {number: _main_score(own, columns[0]) for number, own in methods[name].items()}
        scores = summarise(list(tables.values()), [patient_of[case] for case in tables], bootstrap)
        result["methods"][name] = {"cases": len(tables), "scores": scores, "seeds": by_seed}
    if common and len(pooled) > 1:
        patients = [patient_of[case] for case in common]
        table = paired_scores(list(pooled.values()), common, protocol)
        result["ranks"] = rank_table(ranked_scores(table, protocol), list(pooled), patients, bootstrap)
        rows = paired_differences(table, list(pooled), patients, bootstrap)
        for column in columns:
            own = [row for row in rows if row["column"] == column]
            for row, p in zip(own, adjusted([row["p"] for row in own]), strict=True):
                row["p_adjusted"] = p
        result["differences"] = rows
    return result


def _mean_over_seeds(seeds: Sequence[Mapping[str, Table]], columns: Sequence[str]) -> dict[str, Table]:
    cases = dict.fromkeys(case for tables in seeds for case in tables)
    return {
        case: {
            region: {
                c: mean_without_nan([tables[case][region][c] for tables in seeds if case in tables]) for c in columns
            }
            for region in next(tables[case] for tables in seeds if case in tables)
        }
        for case in cases
    }


def _main_score(tables: Mapping[str, Table], column: str) -> float:
    regions = dict.fromkeys(region for table in tables.values() for region in table)
    means = [mean_without_nan([table[region][column] for table in tables.values()]) for region in regions]
    return mean_without_nan(means)
