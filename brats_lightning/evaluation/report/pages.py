"""The HTML pages, made from the templates beside this file."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from brats_lightning.data.survey import status
from brats_lightning.evaluation.report import figures, wording
from brats_lightning.evaluation.report.drawing import Chart
from brats_lightning.evaluation.report.selection import LISTED, POOR, kind_of_lesion, worst_first, worst_lesions
from brats_lightning.evaluation.scoring import Evaluation, ScoredCase
from brats_lightning.evaluation.summary import Scores
from brats_lightning.metrics.official import headline_columns

_FILTERS = (
    *(wording.number, wording.sort_key, wording.digits, wording.counted, wording.rounded, wording.p_value),
    *(wording.region_title, wording.sequence_title, wording.dimensions),
    *(figures.band_title, status, kind_of_lesion),
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


def evaluation_charts(evaluation: Evaluation, summary: Mapping[str, Any]) -> dict[str, Chart]:
    """The figures of the report on one method, by the name of their files."""
    leading, lesions = evaluation.scoring.protocols[0], summary["lesions"]
    official = {case.case: case.official[leading] for case in evaluation.cases}
    charts = {
        "scores": figures.score_chart(official, summary["scores"][leading], leading),
        "detected_by_volume": figures.size_chart(lesions, "sensitivity"),
        "dice_by_volume": figures.size_chart(lesions, "dice"),
        "detection": figures.detection_chart(lesions, evaluation.scoring.lesion_region),
    }
    if any(entry["reliability"] for entry in lesions.values()):
        charts["reliability"] = figures.reliability_chart(lesions)
    return charts


def evaluation_page(
    evaluation: Evaluation,
    summary: Mapping[str, Any],
    charts: Mapping[str, Chart],
    shown: Mapping[str, Sequence[ScoredCase]],
    volumes: Sequence[str],
) -> str:
    """The report on one method.

    Args:
        evaluation: of it.
        summary: of the evaluation.
        charts: its `evaluation_charts`.
        shown: the cases in the viewer, by group.
        volumes: of these cases, as `pack_cases` gives them.
    """
    scoring = evaluation.scoring
    leading, region = scoring.protocols[0], scoring.lesion_region
    cases = worst_first(evaluation.cases, leading, region)
    pictured = [case for group in shown.values() for case in group]
    viewer = {
        "cases": [{"name": case.case, "facts": wording.case_facts(case, leading, region)} for case in pictured],
        "regions": scoring.scheme.regions,
        "region": region,
    }
    template = environment().get_template("evaluation.html")
    return template.render(
        title=f"Segmentation scores: {evaluation.name}",
        scoring=scoring,
        summary=summary,
        predictions=[summary["settings"]["predictions"]],
        cases=[(case, wording.what_went_wrong(case, region)) for case in cases],
        charts=charts,
        shown=shown,
        numbers={case.case: number for number, case in enumerate(pictured)},
        lesions=worst_lesions(evaluation.cases, region),
        volumes=volumes,
        listed=LISTED,
        poor=POOR,
        viewer=viewer,
    )


def study_page(name: str, facts: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The report on a study.

    Args:
        name: of the study.
        facts: ``folds``, ``seeds``, what its ``data`` are; ``jobs`` with their state, ``arms`` with their commands, and
            the ``tuning`` of each fold.
        summary: protocol → what `compare_arms` returns.
    """
    shown = {protocol: found for protocol, found in summary.items() if found["methods"]}
    charts = {protocol: figures.methods_chart(found["methods"], protocol) for protocol, found in shown.items()}
    template = environment().get_template("study.html")
    return template.render(title=f"Study: {name}", summary=shown, charts=charts, **facts)


def comparison_charts(comparison: Mapping[str, Any], scores: Mapping[str, Scores]) -> dict[str, Chart]:
    """The figures of the report on several methods, by the name of their files."""
    methods, charts = comparison["methods"], {}
    for protocol, table in scores.items():
        for a, b in combinations(range(len(methods)), 2):
            rows = differences_of(comparison, protocol, methods[a], methods[b])
            name = f"{protocol}_{methods[a]}_{methods[b]}"
            charts[f"{name}_cases"] = figures.agreement_chart(rows, table, (a, b), comparison["cases"])
            charts[f"{name}_differences"] = figures.difference_chart(rows, distances=False)
            charts[f"{name}_distances"] = figures.difference_chart(rows, distances=True)
    return charts


def differences_of(comparison: Mapping[str, Any], protocol: str, first: str, second: str) -> list[Mapping[str, Any]]:
    """The paired differences of two methods."""
    found = comparison["protocols"][protocol]["differences"]
    return [row for row in found if (row["first"], row["second"]) == (first, second)]


def comparison_page(
    evaluations: Sequence[Evaluation],
    summaries: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any],
    charts: Mapping[str, Chart],
) -> str:
    """The report on several methods with its `comparison_charts`; each method's own is in the folder of its name."""
    template = environment().get_template("comparison.html")
    return template.render(
        title="Comparison: " + ", ".join(comparison["methods"]),
        evaluations=evaluations,
        summaries=summaries,
        comparison=comparison,
        pairs=list(combinations(comparison["methods"], 2)),
        differences_of=differences_of,
        charts=charts,
        predictions=[str(evaluation.predictions) for evaluation in evaluations],
    )
