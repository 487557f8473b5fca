"""The HTML page that compares methods."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from brats_lightning.evaluation.comparison import Scores
from brats_lightning.evaluation.report.figures import difference_figure
from brats_lightning.evaluation.report.page import render
from brats_lightning.evaluation.scoring import Evaluation


def comparison_page(
    evaluations: Sequence[Evaluation],
    summaries: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any],
    scores: Mapping[str, Scores],
) -> str:
    """The report of several methods, as HTML; each method's own is in the folder of its name."""
    methods = comparison["methods"]
    pairs: dict[str, list[tuple[Any, ...]]] = {protocol: [] for protocol in scores}
    for protocol, table in scores.items():
        for a, b in combinations(range(len(methods)), 2):
            found = comparison["protocols"][protocol]["differences"]
            rows = [row for row in found if (row["first"], row["second"]) == (methods[a], methods[b])]
            pairs[protocol].append((methods[a], methods[b], rows, difference_figure(rows, table, (a, b))))
    return render(
        "comparison.html",
        title="Comparison: " + ", ".join(methods),
        evaluations=evaluations,
        summaries=summaries,
        comparison=comparison,
        pairs=pairs,
        folders=[str(evaluation.predictions) for evaluation in evaluations],
    )
