"""The files that an evaluation writes: tables, summaries and pages, for one method or several."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.comparison import compare, difference_rows
from brats_lightning.evaluation.report.drawing import Chart
from brats_lightning.evaluation.report.packing import pack_cases
from brats_lightning.evaluation.report.pages import (
    comparison_charts,
    comparison_page,
    evaluation_charts,
    evaluation_page,
)
from brats_lightning.evaluation.report.selection import cases_in_pictures, worst_first
from brats_lightning.evaluation.report.wording import terminal_ranks, terminal_table
from brats_lightning.evaluation.scoring import Evaluation, ScoredCase
from brats_lightning.evaluation.summary import summary
from brats_lightning.metrics.official import PROTOCOLS
from brats_lightning.runtime.console import show
from brats_lightning.runtime.files import csv_text, json_text, make_folder, write_bytes, write_text

_NAMES = {
    *("scores.csv", "voxel_scores.csv", "summary.json", "comparison.csv", "comparison.json", "report.html"),
    *(f"scores_{protocol}.csv" for protocol in PROTOCOLS),
}
_CASES = "report_cases"  # folder of the pictures that are not in the page
REPORTS = {"file": 12, "folder": None}  # how the pictures are kept → of how many cases at most


@dataclass(frozen=True)
class ReportSettings:
    """What is written about an evaluation.

    Attributes:
        bootstrap: behind each interval.
        report: a key of `REPORTS`: whether the pictures are in the page or in files beside it.
        pictures: of how many cases; None is what `REPORTS` has.
        figures: folder for the figures as files; None writes none.
        chosen: how the cases were selected, for the summary's settings.
        printed: whether each method's scores are shown on the terminal, too.
    """

    bootstrap: Bootstrap
    report: str = "file"
    pictures: int | None = None
    figures: Path | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    printed: bool = True


def write_results(
    evaluations: Sequence[Evaluation],
    folder: Path,
    settings: ReportSettings,
    pool: ProcessPoolExecutor | None,
) -> dict[str, Any]:
    """Write the files of one method; or those of a comparison, with each method's own in a folder of its name.

    An earlier evaluation's files in ``folder`` are replaced or removed. Pictures are packed by ``pool``.

    Returns:
        The content of ``summary.json``, for several methods of ``comparison.json``.
    """

    def write_method(evaluation: Evaluation, folder: Path, figures: Path | None) -> dict[str, Any]:
        result = summary(evaluation, settings.bootstrap)
        result["settings"] |= settings.chosen
        tables = {}
        for protocol in evaluation.scoring.protocols:
            if settings.printed:
                show(terminal_table(evaluation.name, result, protocol))
            tables[protocol] = scores_csv({case.case: case.official[protocol] for case in evaluation.cases})
        files = by_protocol("scores", tables)
        files["voxel_scores.csv"] = scores_csv({case.case: case.voxelwise for case in evaluation.cases})
        files["summary.json"] = json_text(result)
        charts = evaluation_charts(evaluation, result)
        shown = _shown(evaluation, settings)
        pictured = [case for group in shown.values() for case in group]
        beside = folder / _CASES if settings.report == "folder" and pictured else None
        volumes = pack_cases(evaluation, pictured, beside, pool)
        files["report.html"] = evaluation_page(evaluation, result, charts, shown, volumes)
        _write(folder, files)
        if not beside:
            _remove_pictures(folder / _CASES)
        _write_figures(figures, charts)
        return result

    if len(evaluations) == 1:
        return write_method(evaluations[0], folder, settings.figures)
    comparison, scores = compare(evaluations, settings.bootstrap)
    charts = comparison_charts(comparison, scores)
    summaries = [
        write_method(each, folder / each.name, settings.figures and settings.figures / each.name)
        for each in evaluations
    ]
    for protocol, found in comparison["protocols"].items():
        show(terminal_ranks(found["ranks"], protocol))
    files = {
        "comparison.csv": csv_text(difference_rows(scores, comparison["cases"], comparison["methods"])),
        "comparison.json": json_text(comparison),
        "report.html": comparison_page(evaluations, summaries, comparison, charts),
    }
    _write(folder, files)
    _remove_pictures(folder / _CASES)
    _write_figures(settings.figures, charts)
    return comparison


def _shown(evaluation: Evaluation, settings: ReportSettings) -> dict[str, list[ScoredCase]]:
    """The cases in the viewer, by group."""
    ordered = worst_first(evaluation.cases, evaluation.scoring.protocols[0], evaluation.scoring.lesion_region)
    return cases_in_pictures(ordered, REPORTS[settings.report] if settings.pictures is None else settings.pictures)


def by_protocol(name: str, tables: Mapping[str, str]) -> dict[str, str]:
    """The files with a table of each protocol: ``<name>.csv`` with the first, of several also one named by each."""
    files = {f"{name}_{protocol}.csv": text for protocol, text in tables.items()} if len(tables) > 1 else {}
    return files | {f"{name}.csv": next(iter(tables.values()))}


def scores_csv(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """CSV with the columns ``case, region, …`` from case → region → column → value, with all digits."""
    columns = list(dict.fromkeys(column for regions in tables.values() for row in regions.values() for column in row))
    rows = [
        [case, region, *(row.get(column) for column in columns)]
        for case, regions in tables.items()
        for region, row in regions.items()
    ]
    return csv_text([["case", "region", *columns], *rows])


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files, and remove the other ones of an earlier evaluation."""
    make_folder(folder)
    for name, text in files.items():
        write_text(folder / name, text)
    for name in _NAMES - files.keys():
        (folder / name).unlink(missing_ok=True)


def _remove_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier evaluation."""
    for script in folder.glob("*.js"):
        script.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _write_figures(folder: Path | None, charts: Mapping[str, Chart]) -> None:
    """Write each figure as SVG and PDF, and its data as CSV."""
    if folder is None:
        return
    make_folder(folder)
    for name, chart in charts.items():
        write_text(folder / f"{name}.csv", csv_text(chart.table))
        for ending, content in chart.files().items():
            write_bytes(folder / f"{name}.{ending}", content)
