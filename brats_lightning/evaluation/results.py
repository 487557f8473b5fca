"""The files that an evaluation writes: tables, summaries and pages, for one method or several."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from brats_lightning.evaluation.comparison import compare, difference_rows
from brats_lightning.evaluation.report.pages import comparison_page, evaluation_page
from brats_lightning.evaluation.report.pictures import lesion_pictures
from brats_lightning.evaluation.report.wording import terminal_table
from brats_lightning.evaluation.scoring import Evaluation
from brats_lightning.evaluation.summary import summary
from brats_lightning.metrics.official import PROTOCOLS
from brats_lightning.runtime.console import show
from brats_lightning.runtime.files import make_folder, write_text

_NAMES = {
    *("scores.csv", "voxel_scores.csv", "summary.json", "comparison.csv", "comparison.json", "report.html"),
    *(f"scores_{protocol}.csv" for protocol in PROTOCOLS),
}


def write_results(
    evaluations: Sequence[Evaluation], folder: Path, resamples: int, seed: int, pictures: int, chosen: Mapping[str, str]
) -> dict[str, Any]:
    """Write the files of one method; or those of a comparison, with each method's own in a folder of its name.

    An earlier evaluation's files in ``folder`` are replaced or removed. For each method ``pictures`` lesions are drawn;
    ``chosen`` says how the cases were selected and goes into the summary's settings.

    Returns:
        The content of ``summary.json``, for several methods of ``comparison.json``.
    """

    def write_method(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
        result = summary(evaluation, resamples, seed)
        result["settings"] |= chosen
        tables = {}
        for protocol in evaluation.scoring.protocols:
            show(terminal_table(evaluation.name, result, protocol))
            tables[protocol] = scores_csv({case.case: case.official[protocol] for case in evaluation.cases})
        files = {f"scores_{protocol}.csv": text for protocol, text in tables.items()} if len(tables) > 1 else {}
        files["scores.csv"] = next(iter(tables.values()))
        files["voxel_scores.csv"] = scores_csv({case.case: case.voxelwise for case in evaluation.cases})
        files["summary.json"] = json_text(result)
        files["report.html"] = evaluation_page(evaluation, result, lesion_pictures(evaluation, pictures))
        _write(folder, files)
        return result

    if len(evaluations) == 1:
        return write_method(evaluations[0], folder)
    comparison, scores = compare(evaluations, resamples, seed)
    summaries = [write_method(evaluation, folder / evaluation.name) for evaluation in evaluations]
    files = {
        "comparison.csv": csv_text(difference_rows(scores, comparison["cases"], comparison["methods"])),
        "comparison.json": json_text(comparison),
        "report.html": comparison_page(evaluations, summaries, comparison, scores),
    }
    _write(folder, files)
    return comparison


def scores_csv(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """CSV with the columns ``case, region, …`` from case → region → column → value, with all digits."""
    columns = list(dict.fromkeys(column for regions in tables.values() for row in regions.values() for column in row))
    rows = [
        [case, region, *(row.get(column) for column in columns)]
        for case, regions in tables.items()
        for region, row in regions.items()
    ]
    return csv_text([["case", "region", *columns], *rows])


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV, NaN and None as empty cells."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(without_nan, map(list, rows)))
    return text.getvalue()


def json_text(value: Any) -> str:
    """The value as JSON, with null for NaN."""
    return json.dumps(without_nan(value), indent=1) + "\n"


def without_nan(value: Any) -> Any:
    """A copy with None for each NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files, and remove the other ones of an earlier evaluation."""
    make_folder(folder)
    for name, text in files.items():
        write_text(folder / name, text)
    for name in _NAMES - files.keys():
        (folder / name).unlink(missing_ok=True)
