"""The HTML page that compares methods."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from brats_lightning.evaluation.comparison import Scores
from brats_lightning.evaluation.report.evaluation import computation, counted, digits, mean_cell
from brats_lightning.evaluation.report.figures import COLUMN_TITLES, difference_figure
from brats_lightning.evaluation.report.page import Cell, figure, interval_cell, name_cell, number_cell, page, table
from brats_lightning.evaluation.scoring import Evaluation
from brats_lightning.evaluation.summary import HEADLINE


def comparison_page(
    evaluations: Sequence[Evaluation],
    summaries: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any],
    scores: Mapping[str, Scores],
) -> str:
    """The report of several methods, as HTML; each method's own is in the folder of its name."""
    methods = comparison["methods"]
    sections = []
    for protocol, found in comparison["protocols"].items():
        sections += [f"<h2>Ranks · {protocol}</h2>", _rank_section(found["ranks"])]
        sections += [f"<h2>Scores · {protocol}</h2>", _method_table(methods, summaries, protocol)]
        sections.append(f"<h2>Paired differences · {protocol}</h2>")
        for i, first in enumerate(methods):
            for j in range(i + 1, len(methods)):
                rows = [row for row in found["differences"] if (row["first"], row["second"]) == (first, methods[j])]
                sections.append(f"<h3>{escape(methods[j])} − {escape(first)}</h3>")
                sections.append(figure(difference_figure(rows, scores[protocol], (i, j)), "Bars: 95 % intervals."))
                sections.append(_difference_table(rows))
    links = "".join(f'<li><a href="{quote(name)}/report.html">{escape(name)}</a></li>' for name in methods)
    sections += [
        '<p class="soft">Intervals: 95 %, bootstrap over cases. p: Wilcoxon’s signed-rank test, two-sided, not '
        "corrected for the number of tests.</p>",
        f"<h2>Each method's own report</h2><ul>{links}</ul>",
        "<h2>How this was computed</h2>",
        computation(evaluations[0], summaries[0], folders=[str(e.predictions) for e in evaluations]),
    ]
    facts = [", ".join(map(escape, comparison["protocols"])), f"{counted(len(comparison['cases']), 'common case')}"]
    facts += [
        f'<span class="bad">{escape(e.name)}: {counted(len(e.missing), "prediction")} missing</span>'
        for e in evaluations
        if e.missing
    ]
    return page("Comparison: " + ", ".join(methods), " · ".join(facts), sections)


def _rank_section(ranks: Mapping[str, Any]) -> str:
    rows = [
        [Cell(str(row["rank"]), float(row["rank"])), name_cell(row["method"]), number_cell(row["mean_rank"])]
        for row in ranks["methods"]
    ]
    pairs = "; ".join(
        f"{escape(pair['first'])} and {escape(pair['second'])}: p = {p_value(pair['p'])}" for pair in ranks["pairs"]
    )
    return (
        table(["Rank", "Method", "Mean rank"], rows)
        + '<p class="soft">In each case every region and headline score ranks the methods, 1 the best; the mean over '
        f"scores, regions and {counted(ranks['cases'], 'case')} is the mean rank. Permutation test: {pairs}.</p>"
    )


def _method_table(methods: Sequence[str], summaries: Sequence[Mapping[str, Any]], protocol: str) -> str:
    rows = []
    for region in summaries[0]["scores"][protocol]:
        for name, summary in zip(methods, summaries, strict=True):
            entries = summary["scores"][protocol][region]
            cells = [mean_cell(entries[column], column) for column in HEADLINE[protocol]]
            lesions = summary["lesions"][region]
            found = f"{lesions['detected']} of {lesions['lesions']}"
            per_case = lesions["false_positives"] / summary["cases"]["scored"]
            rows.append([name_cell(region.upper()), name_cell(name), *cells, Cell(found), Cell(f"{per_case:.1f}")])
    head = ["Region", "Method", *(COLUMN_TITLES[column] for column in HEADLINE[protocol])]
    caption = f"{escape(protocol)}: mean over each method's cases [95 % interval]."
    return table([*head, "Lesions detected", "False positives per case"], rows, caption)


def _difference_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            name_cell(row["region"].upper()),
            name_cell(COLUMN_TITLES[row["column"]]),
            interval_cell(row["mean"], row["low"], row["high"], digits(row["column"])),
            Cell(f"{p_value(row['p'])} <small>{escape(row['note'])}</small>"),
            Cell(str(row["n"])),
        ]
        for row in rows
    ]
    return table(["Region", "Score", "Mean difference", "p", "n"], cells)


def p_value(p: float) -> str:
    """As papers print it."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
