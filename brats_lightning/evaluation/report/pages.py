"""The HTML pages, made from the templates beside this file."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from brats_lightning.data.survey import status
from brats_lightning.evaluation.comparison import Scores
from brats_lightning.evaluation.report import figures, wording
from brats_lightning.evaluation.report.pictures import COLOURS, LesionPicture
from brats_lightning.evaluation.scoring import Evaluation
from brats_lightning.metrics.official import headline_columns

_FILTERS = (
    *(wording.number, wording.sort_key, wording.digits, wording.counted, wording.p_value, wording.region_title),
    *(wording.sequence_title, wording.dimensions, figures.band_title, status),
)


@cache
def environment() -> Environment:
    """The templates with their filters and functions; everything except figures is escaped."""
    loader = PackageLoader(__package__)
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {each.__name__: each for each in _FILTERS} | {"column_title": figures.COLUMN_TITLES.__getitem__}
    env.tests["a_number"] = lambda value: not math.isnan(value)
    env.globals["headline_columns"] = headline_columns
    return env


def evaluation_page(evaluation: Evaluation, summary: Mapping[str, Any], pictures: Sequence[LesionPicture]) -> str:
    """The report on one method."""
    scoring = evaluation.scoring
    leading, region = scoring.protocols[0], scoring.lesion_region
    official = [case.official[leading] for case in evaluation.cases]
    cases = wording.worst_first(evaluation.cases, leading, region)
    template = environment().get_template("evaluation.html")
    return template.render(
        title=f"Segmentation scores: {evaluation.name}",
        scoring=scoring,
        summary=summary,
        predictions=[summary["settings"]["predictions"]],
        cases=[(case, wording.what_went_wrong(case, region)) for case in cases],
        score_figure=figures.score_distribution(official, summary["scores"][leading], leading),
        size_figure=figures.size_figure(summary["lesions"]),
        detection_figure=figures.detection_figure(summary["lesions"], region),
        pictures=pictures,
        colours=COLOURS,
    )


def comparison_page(
    evaluations: Sequence[Evaluation],
    summaries: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any],
    scores: Mapping[str, Scores],
) -> str:
    """The report on several methods; each method's own is in the folder of its name."""
    methods = comparison["methods"]
    pairs: dict[str, list[tuple[Any, ...]]] = {protocol: [] for protocol in scores}
    for protocol, table in scores.items():
        for a, b in combinations(range(len(methods)), 2):
            found = comparison["protocols"][protocol]["differences"]
            rows = [row for row in found if (row["first"], row["second"]) == (methods[a], methods[b])]
            pairs[protocol].append((methods[a], methods[b], rows, figures.difference_figure(rows, table, (a, b))))
    template = environment().get_template("comparison.html")
    return template.render(
        title="Comparison: " + ", ".join(methods),
        evaluations=evaluations,
        summaries=summaries,
        comparison=comparison,
        pairs=pairs,
        predictions=[str(evaluation.predictions) for evaluation in evaluations],
    )
