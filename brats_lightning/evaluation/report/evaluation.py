"""What people read of an evaluation: the tables on the terminal and the HTML page."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from rich.markup import escape as plain
from rich.table import Table

from brats_lightning.evaluation.report.figures import (
    COLUMN_TITLES,
    band_title,
    detection_figure,
    score_distribution,
    size_figure,
)
from brats_lightning.evaluation.report.page import (
    Cell,
    definitions,
    figure,
    interval_cell,
    name_cell,
    number,
    number_cell,
    page,
    table,
)
from brats_lightning.evaluation.report.pictures import PREDICTION_COLOUR, REFERENCE_COLOUR, LesionPicture
from brats_lightning.evaluation.scoring import CaseScores, Evaluation
from brats_lightning.evaluation.summary import HEADLINE, lower_is_better

REGION_TITLES = {"et": "enhancing tumour", "tc": "tumour core", "wt": "whole tumour", "rc": "resection cavity"}
POOR = 0.5  # Dice below which a lesion that was found is worth a word


def digits(column: str) -> int:
    """Decimals a column is printed with: distances are mm."""
    return 1 if lower_is_better(column) else 3


def counted(n: int, word: str) -> str:
    """``1 lesion``, ``2 lesions``."""
    return f"{n:,} {word}{'s' * (n != 1)}"


def terminal_table(name: str, summary: Mapping[str, Any], protocol: str) -> Table:
    """The headline scores of one protocol, mean over cases and 95 % interval."""
    shown = Table(title=plain(f"{name} · {protocol} · {counted(summary['cases']['scored'], 'case')}"))
    shown.add_column("region")
    for column in HEADLINE[protocol]:
        shown.add_column(COLUMN_TITLES[column], justify="right")
    for region, columns in summary["scores"][protocol].items():
        cells = []
        for column in HEADLINE[protocol]:
            row, n = columns[column], digits(column)
            between = "" if math.isnan(row["low"]) else f"\n[{number(row['low'], n)}, {number(row['high'], n)}]"
            cells.append(plain(number(row["mean"], n) + between))
        shown.add_row(region.upper(), *cells)
    return shown


def evaluation_page(evaluation: Evaluation, summary: Mapping[str, Any], pictures: Sequence[LesionPicture]) -> str:
    """The report of one method, as HTML."""
    leading, *others = evaluation.scoring.protocols
    lesion_region = evaluation.scoring.lesion_region
    cases = summary["cases"]
    facts = [escape(" and ".join(evaluation.scoring.protocols)), counted(cases["scored"], "case")]
    if cases["missing"]:
        facts.append(f'<span class="bad">{counted(cases["missing"], "prediction")} missing</span>')
    if evaluation.left_out:
        cases_out = len({problem.case for problem in evaluation.left_out})
        facts.append(f'<span class="bad">{counted(cases_out, "case")} left out</span>')
    sections = [
        _tiles(summary, leading),
        "<h2>Scores</h2>",
        _headline_table(summary, leading),
        figure(
            score_distribution(
                [case.official[leading] for case in evaluation.cases], summary["scores"][leading], leading
            ),
            "Cases in which a region has nothing to score are left out.",
        ),
        *(_headline_table(summary, protocol) for protocol in others),
        "<h2>Cases, worst first</h2>",
        _case_table(evaluation, leading),
        "<h2>By lesion size</h2>",
        figure(size_figure(summary["lesions"]), "Points with 95 % intervals."),
        *(_band_table(region, entry, shown=region == lesion_region) for region, entry in summary["lesions"].items()),
        "<h2>Detection against false positives</h2>",
        _detection(evaluation, summary),
        *_picture_section(evaluation, pictures),
        "<h2>How this was computed</h2>",
        computation(evaluation, summary),
        *(_all_columns(summary, protocol) for protocol in evaluation.scoring.protocols),
        *_left_out(evaluation),
    ]
    return page(f"Segmentation scores: {evaluation.name}", " · ".join(facts), sections)


def _tiles(summary: Mapping[str, Any], protocol: str) -> str:
    column = HEADLINE[protocol][0]
    tiles = []
    for i, (region, columns) in enumerate(summary["scores"][protocol].items()):
        row, lesions = columns[column], summary["lesions"][region]
        between = "" if math.isnan(row["low"]) else f"95 % interval {number(row['low'])}–{number(row['high'])}"
        n = lesions["lesions"]
        share = f"{lesions['detected']} of {counted(n, 'lesion')} detected"
        share += f" ({100 * lesions['detected'] / n:.0f} %)" if n else ""
        per_case = lesions["false_positives"] / summary["cases"]["scored"]
        tiles.append(
            f'<div class="tile" style="border-color: var(--series{i % 6})">'
            f'<div class="soft">{escape(region_title(region))}</div>'
            f"<b>{number(row['mean'])}</b>{COLUMN_TITLES[column]}"
            f'<div class="soft">{between or "no interval"} · n = {row["n"]}</div>'
            f"<div>{share} · {per_case:.1f} false positives per case</div></div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def region_title(region: str) -> str:
    """``ET · enhancing tumour``."""
    title = REGION_TITLES.get(region)
    return f"{region.upper()} · {title}" if title else region.upper()


def _headline_table(summary: Mapping[str, Any], protocol: str) -> str:
    columns = HEADLINE[protocol]
    rows = []
    for region, entries in summary["scores"][protocol].items():
        voxels = summary["voxel_scores"][region]
        cells = [mean_cell(entries[column], column) for column in columns]
        cells += [mean_cell(voxels["dice"], "dice"), mean_cell(voxels["hd95"], "hd95")]
        rows.append([name_cell(region.upper()), *cells, Cell(str(entries[columns[0]]["n"]))])
    head = [
        "Region",
        *(COLUMN_TITLES[column] for column in columns),
        "Whole-volume Dice",
        "Whole-volume HD95 (mm)",
        "n",
    ]
    caption = f"{escape(protocol)}: mean over cases [95 % interval]. n: cases with the first score."
    return table(head, rows, caption)


def mean_cell(row: Mapping[str, float], column: str) -> Cell:
    """A summary's mean with its interval."""
    return interval_cell(row["mean"], row["low"], row["high"], digits(column))


def what_went_wrong(case: CaseScores, region: str) -> str:
    """One line on the lesions of a region: what was missed, invented, or found badly."""
    if case.missing:
        return "no prediction"
    lesions = [row for row in case.lesions[region] if not row.false_positive]
    missed = [row.volume for row in lesions if not row.detected]
    invented = [row.volume for row in case.lesions[region] if row.false_positive]
    found = [row for row in lesions if row.detected]
    parts = []
    if missed:
        parts.append(f"missed {len(missed)} of {len(lesions)} (largest {number(max(missed), 0)} mm³)")
    if invented:
        parts.append(f"{counted(len(invented), 'false positive')} (largest {number(max(invented), 0)} mm³)")
    worst = min(found, key=lambda row: row.dice, default=None)
    if worst is not None and worst.dice < POOR:
        parts.append(f"a lesion of {number(worst.volume, 0)} mm³ found with Dice {number(worst.dice, 2)}")
    if not parts:
        return "all lesions found" if lesions else "nothing to find, nothing found"
    return "; ".join(parts)


def worst_first(cases: Sequence[CaseScores], protocol: str, region: str) -> list[CaseScores]:
    """Missing predictions, then by the mean of the main score over regions, then by lesions missed and invented."""

    def badness(case: CaseScores) -> tuple[bool, float, int, str]:
        official = [columns[HEADLINE[protocol][0]] for columns in case.official[protocol].values()]
        # Without a lesion to score, the voxels tell a false alarm from a clean case.
        for values in (official, [case.plain[name]["dice"] for name in case.official[protocol]]):
            defined = [value for value in values if not math.isnan(value)]
            if defined:
                break
        lost = sum(not row.detected for row in case.lesions[region])
        return not case.missing, float(np.mean(defined)) if defined else 1.0, -lost, case.case

    return sorted(cases, key=badness)


def _case_table(evaluation: Evaluation, protocol: str) -> str:
    region, main = evaluation.scoring.lesion_region, HEADLINE[protocol][0]
    regions = list(evaluation.scoring.scheme.regions)
    names = [name.upper() for name in regions]
    head = ["Case", "What went wrong", "Lesions", "Missed", "False pos.", "Volume error (ml)", *names, *names]
    groups = [("", 1), (region.upper(), 5), (COLUMN_TITLES[main], len(names)), ("Whole-volume Dice", len(names))]
    rows = []
    for case in worst_first(evaluation.cases, protocol, region):
        lesions = [row for row in case.lesions[region] if not row.false_positive]
        missed, invented = sum(not row.detected for row in lesions), len(case.lesions[region]) - len(lesions)
        story = escape(what_went_wrong(case, region))
        rows.append(
            [
                name_cell(case.case),
                Cell(f'<span class="bad">{story}</span>' if case.missing else story, kind="text"),
                *(number_cell(count, 0) for count in (len(lesions), missed, invented)),
                number_cell(case.plain[region]["volume_error"], 2),
                *(number_cell(case.official[protocol][name][main]) for name in regions),
                *(number_cell(case.plain[name]["dice"]) for name in regions),
            ]
        )
    note = (
        f"Lesions are the 26-connected components of {region.upper()}, matched one to one; one counts as missed unless "
        f"matched with a Dice of at least {evaluation.scoring.overlap:g}. The protocols count by their own rules, in "
        "scores.csv. Volume error: prediction − reference."
    )
    shown = table(head, rows, "Click a heading to sort.", sortable=True, groups=groups)
    return f'{shown}<p class="soft">{note}</p>'


def _band_table(region: str, entry: Mapping[str, Any], shown: bool) -> str:
    rows = [
        [
            Cell(escape(band_title(band)), kind="name"),
            Cell(f"{band['lesions']:,}"),
            Cell(f"{band['detected']:,}"),
            interval_cell(band["sensitivity"], band["sensitivity_low"], band["sensitivity_high"], 2),
            interval_cell(band["dice"], band["dice_low"], band["dice_high"], 2),
        ]
        for band in entry["size_bands"]
    ]
    head = ["Lesion volume (mm³)", "Lesions", "Detected", "Share detected", "Mean Dice"]
    inner = table(head, rows, "Share: Wilson's interval. Dice: missed lesions count 0, bootstrap over cases.")
    opened = " open" if shown else ""
    return f"<details{opened}><summary>{escape(region_title(region))}, by volume</summary>{inner}</details>"


def _detection(evaluation: Evaluation, summary: Mapping[str, Any]) -> str:
    region = evaluation.scoring.lesion_region
    caption = (
        "Masks carry no probabilities, so the curve leaves out predicted lesions below a volume, written in mm³ at the "
        f"points of {region.upper()}. The large points are the masks as they are."
    )
    return figure(detection_figure(summary["lesions"], region), caption)


def _picture_section(evaluation: Evaluation, pictures: Sequence[LesionPicture]) -> list[str]:
    if not pictures:
        return []
    region = evaluation.scoring.lesion_region.upper()
    items = []
    for picture in pictures:
        row = picture.lesion
        kind = "False positive" if row.false_positive else "Missed"
        kind += f" (Dice {number(row.dice, 2)})" if row.dice else ""
        text = f"<b>{kind}</b>, {number(row.volume, 0)} mm³ · {escape(picture.case)} · voxel {row.centre}"
        image = f'<img src="{picture.image}" alt="{escape(kind)}, {escape(picture.case)}">'
        items.append(figure(image, text))
    legend = " &emsp; ".join(
        f'<span class="key" style="background: {colour}"></span>{text}'
        for colour, text in ((REFERENCE_COLOUR, "reference"), (PREDICTION_COLOUR, "prediction"))
    )
    return [
        "<h2>Largest missed lesions and false positives</h2>",
        f'<p class="soft">{legend} &emsp; Axial slices in radiological orientation; outlines of {region}.</p>',
        f'<div class="pictures">{"".join(items)}</div>',
    ]


def computation(evaluation: Evaluation, summary: Mapping[str, Any], folders: Sequence[str] = ()) -> str:
    """How the scores came about; ``folders`` are the predictions' where there are several."""
    settings, scoring = summary["settings"], evaluation.scoring
    items = [
        ("Predictions", ", ".join(folders) or settings["predictions"]),
        ("References", settings["references"]),
        ("Labels", ", ".join(f"{i} {name}" for i, name in enumerate(scoring.scheme.names, 1))),
        (
            "Regions",
            ", ".join(f"{r.upper()} = {{{', '.join(map(str, c))}}}" for r, c in scoring.scheme.regions.items()),
        ),
    ]
    for name, title in (("label_map", "references"), ("prediction_label_map", "predictions")):
        if settings[name]:
            mapped = ", ".join(f"{old} → {new}" for old, new in settings[name].items())
            items.append((f"Labels changed in the {title}", mapped))
    if "brats2026" in scoring.protocols:
        volume, overlap = (settings["thresholds"][key] for key in ("volume", "overlap"))
        items.append(
            (
                "brats2026",
                f"large from {volume:g} mm³, detected from Dice {overlap:g} ({scoring.thresholds} thresholds)",
            )
        )
        swapped = "as the official program takes it (x and z swapped)" if scoring.spacing == "official" else "correct"
        items.append(("Spacing in brats2026", swapped))
    if summary["cases"]["missing"]:
        items.append(("Missing predictions, scored as missing", ", ".join(summary["cases"]["missing_predictions"])))
    bootstrap = settings["bootstrap"]
    resampling = (
        f"95 %, percentile bootstrap over cases, {bootstrap['resamples']:,} resamples, seed {bootstrap['seed']}"
    )
    items.append(("Intervals", resampling))
    return definitions(items)


def _all_columns(summary: Mapping[str, Any], protocol: str) -> str:
    rows = [
        [
            name_cell(region.upper()),
            name_cell(column),
            *(number_cell(row[key]) for key in ("mean", "std", "median", "low", "high")),
            Cell(str(row["n"]), float(row["n"])),
        ]
        for region, columns in summary["scores"][protocol].items()
        for column, row in columns.items()
    ]
    head = ["Region", "Column", "Mean", "Std", "Median", "Interval from", "to", "n"]
    return f"<details><summary>All columns of {escape(protocol)}</summary>{table(head, rows, sortable=True)}</details>"


def _left_out(evaluation: Evaluation) -> list[str]:
    rows = [[Cell(escape(text), kind="text") for text in p.to_dict().values()] for p in evaluation.left_out]
    head = ["Case", "File", "Found", "Expected", "What to do"]
    return ["<h2>Left out</h2>", table(head, rows)] if rows else []
