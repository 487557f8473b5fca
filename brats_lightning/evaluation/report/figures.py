"""Figures of the reports on segmentations, each of one panel that is legible on a phone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from brats_lightning.evaluation.report.drawing import Chart, Look, name_rows
from brats_lightning.evaluation.summary import lower_is_better
from brats_lightning.metrics.official import headline_columns

_WIDTH = 4.6  # inches

# The protocols' columns as the report names them.
COLUMN_TITLES = {
    "LesionWise_Score_Dice": "Lesion-wise Dice",
    "LesionWise_Score_HD95": "Lesion-wise HD95 (mm)",
    "LesionWise_Score_NSD @ 1.0": "Lesion-wise NSD at 1 mm",
    "lesionwise_dsc_mean": "Dice, large lesions",
    "lesionwise_nsd_mean": "NSD, large lesions",
    "lesionwise_hd95_mean": "HD95, large lesions (mm)",
    "small_instance_f1": "F1, small lesions",
    "large_instance_f1": "F1, large lesions",
}


def score_chart(tables: Mapping[str, Mapping[str, Mapping[str, float]]], summary: Any, protocol: str) -> Chart:
    """The main score of each case by region, with the mean and its interval; ``tables`` by case."""
    column = headline_columns(protocol)[0]
    regions = list(summary)
    table: list[list[Any]] = [["region", "case", column, "low", "high"]]
    for region in regions:
        row = summary[region][column]
        table += [[region, case, scores[region][column], None, None] for case, scores in tables.items()]
        table.append([region, "mean", row["mean"], row["low"], row["high"]])

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        rng = np.random.default_rng(0)  # of the jitter
        for i, region in enumerate(regions):
            values = np.array([scores[region][column] for scores in tables.values()])
            values = values[~np.isnan(values)]
            row, colour = summary[region][column], look.colour(i)
            axes.scatter(values, i - 0.12 + rng.uniform(-0.12, 0.12, len(values)), s=16, color=colour, alpha=0.55, lw=0)
            if row["n"]:
                axes.plot([row["low"], row["high"]], [i + 0.25] * 2, color=colour, lw=2.5, solid_capstyle="butt")
                axes.plot(row["mean"], i + 0.25, "D", color=colour, ms=6)
        axes.set(xlim=(-0.02, 1.02), xlabel=f"{COLUMN_TITLES[column]} of each case")
        name_rows(axes, [region.upper() for region in regions])

    return Chart("Scores of all cases by region", (_WIDTH, 0.7 + 0.6 * len(regions)), draw, table)


def band_title(band: Mapping[str, Any]) -> str:
    """A band of volumes in words: ``27–64``."""
    lower, upper = band["from_mm3"], band["to_mm3"]
    return f"≥ {lower}" if upper is None else f"< {upper}" if not lower else f"{lower}–{upper}"


def size_chart(lesions: Mapping[str, Any], name: str) -> Chart:
    """``sensitivity`` or mean ``dice`` by lesion volume, regions side by side."""
    title = {"sensitivity": "Fraction of lesions detected", "dice": "Mean Dice of all lesions (missed: 0)"}[name]
    keys = name, f"{name}_low", f"{name}_high"
    table = [["region", "from_mm3", "to_mm3", "lesions", *keys]]
    for region, entry in lesions.items():
        table += [[region, *(band[key] for key in table[0][1:])] for band in entry["size_bands"]]

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        for i, (region, entry) in enumerate(lesions.items()):
            bands = entry["size_bands"]
            x = np.arange(len(bands)) + (i - (len(lesions) - 1) / 2) * 0.2
            value, low, high = (np.array([band[key] for band in bands], float) for key in keys)
            error = np.maximum(np.nan_to_num(np.stack([value - low, high - value])), 0)
            colour, label = look.colour(i), region.upper()
            axes.errorbar(x, value, error, fmt="o", ms=5, lw=1.6, color=colour, label=label, clip_on=False)
        axes.set(ylim=(0, 1), xlabel="lesion volume (mm³)", ylabel=title)
        axes.set_xticks(range(len(bands)), [band_title(band) for band in bands])
        axes.grid(axis="y")
        figure.legend(loc="outside upper right", ncols=len(lesions))

    return Chart(f"{title} by lesion volume", (_WIDTH, 3.2), draw, table)


def detection_chart(lesions: Mapping[str, Any], labelled: str) -> Chart:
    """Sensitivity against false positives per case by smallest predicted volume, written at points of ``labelled``."""
    table = [["region", "smallest_mm3", "false_positives_per_case", "sensitivity"]]
    for region, entry in lesions.items():
        table += [[region, *(point[key] for key in table[0][1:])] for point in entry["detection_curve"]]

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        for i, (region, entry) in reversed(list(enumerate(lesions.items()))):  # the first on top
            curve, colour = entry["detection_curve"], look.colour(i)
            x, y = ([point[key] for point in curve] for key in ("false_positives_per_case", "sensitivity"))
            axes.plot(x, y, "o-", color=colour, ms=4, lw=1.4, label=region.upper(), clip_on=False)
            axes.plot(x[0], y[0], "o", color=colour, ms=9, clip_on=False)
            placed: list[tuple[float, float]] = []
            for point, a, b in zip(curve, x, y, strict=True):
                span = max(max(x), 1e-9)
                far = all(abs(a - c) > 0.12 * span or abs(b - d) > 0.08 for c, d in placed)
                if region == labelled and not np.isnan(b) and far:
                    shown = "all" if not point["smallest_mm3"] else f"≥ {point['smallest_mm3']:g}"
                    axes.annotate(shown, (a, b), (5, -10), textcoords="offset points", fontsize=8)
                    placed.append((a, b))
        axes.set(xlabel="false positives per case", ylabel="fraction of lesions detected", ylim=(0, 1.0))
        axes.set_xlim(0, 1.12 * axes.get_xlim()[1])  # room for the labels
        axes.grid()
        figure.legend(loc="outside upper right", ncols=len(lesions), reverse=True)

    return Chart("Detection against false positives", (_WIDTH, 3.6), draw, table)


def reliability_chart(lesions: Mapping[str, Any]) -> Chart:
    """The fraction of voxels that have a region, against its predicted probability."""
    keys = "probability", "fraction", "low", "high", "voxels"
    table = [["region", *keys]]
    for region, entry in lesions.items():
        table += [[region, *(point[key] for key in keys)] for point in entry["reliability"]]

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=look.faint, lw=1.2)
        for i, (region, entry) in enumerate(lesions.items()):
            x, y, low, high = (np.array([point[key] for point in entry["reliability"]], float) for key in keys[:4])
            axes.plot(x, y, "o-", color=look.colour(i), ms=4, lw=1.4, label=region.upper(), clip_on=False)
            axes.fill_between(x, low, high, color=look.colour(i), alpha=0.15, lw=0)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.set(xlabel="predicted probability", ylabel="fraction of voxels with the region")
        axes.grid()
        figure.legend(loc="outside upper right", ncols=len(lesions))

    return Chart("Reliability of the probabilities", (3.9, 4.2), draw, table)


def agreement_chart(
    differences: Sequence[Mapping[str, Any]],
    scores: Mapping[tuple[str, str], np.ndarray],
    pair: tuple[int, int],
    cases: Sequence[str],
) -> Chart:
    """The main score of two methods in each case, one against the other.

    Args:
        differences: of this pair.
        scores: (region, column) → a row per case, a column per method.
        pair: the columns of the two methods.
        cases: their names.
    """
    first, second = differences[0]["first"], differences[0]["second"]
    regions = list(dict.fromkeys(row["region"] for row in differences))
    main = differences[0]["column"]
    values = {region: scores[region, main][:, list(pair)].tolist() for region in regions}
    table = [["region", "case", f"{main} of {first}", f"{main} of {second}"]]
    table += [[region, case, *row] for region in regions for case, row in zip(cases, values[region], strict=True)]

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=look.faint, lw=1.2)
        for i, region in enumerate(regions):
            x, y = np.array(values[region]).T
            axes.scatter(x, y, s=20, color=look.colour(i), alpha=0.65, lw=0, label=region.upper())
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel=first, ylabel=second)
        axes.set_title(f"{COLUMN_TITLES[main]}, each case")
        figure.legend(loc="outside upper right", ncols=len(regions), handletextpad=0)

    return Chart(f"{second} against {first}", (3.6, 3.8), draw, table)


def methods_chart(methods: Mapping[str, Mapping[str, Any]], protocol: str) -> Chart:
    """The mean main score of each method by region, with its interval; ``methods`` as `compare_arms` gives them."""
    column = headline_columns(protocol)[0]
    regions = list(next(iter(methods.values()))["scores"])
    keys = "mean", "low", "high", "n"
    table = [["region", "method", *keys]]
    for region in regions:
        rows = {name: method["scores"][region][column] for name, method in methods.items()}
        table += [[region, name, *(row[key] for key in keys)] for name, row in rows.items()]

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        gap = 0.7 / max(1, len(methods))
        for i, (name, method) in enumerate(methods.items()):
            rows = [method["scores"][region][column] for region in regions]
            y = np.arange(len(regions)) + (i - (len(methods) - 1) / 2) * gap
            axes.hlines(y, [row["low"] for row in rows], [row["high"] for row in rows], look.colour(i), lw=2)
            axes.plot([row["mean"] for row in rows], y, "D", ms=5, color=look.colour(i), label=name)
        axes.set_xlabel(COLUMN_TITLES[column])
        name_rows(axes, [region.upper() for region in regions])
        figure.legend(loc="outside upper left", ncols=min(3, len(methods)))

    height = 1.2 + 0.22 * len(methods) * len(regions) + 0.2 * (len(methods) // 3)
    return Chart("Mean scores of the arms", (_WIDTH, height), draw, table)


def difference_chart(differences: Sequence[Mapping[str, Any]], distances: bool) -> Chart:
    """Mean paired differences of two methods with their intervals: of distances in mm, or of all other scores."""
    regions = list(dict.fromkeys(row["region"] for row in differences))
    second = differences[0]["second"]
    rows = [row for row in differences if lower_is_better(row["column"]) == distances]
    keys = "region", "column", "first", "second", "mean", "low", "high", "p", "n"
    table = [list(keys), *([row[key] for key in keys] for row in rows)]
    title = "Mean HD95 difference in mm" if distances else "Mean difference"

    def draw(figure: Figure, look: Look) -> None:
        axes = figure.subplots()
        for y, row in enumerate(rows):
            colour = look.colour(regions.index(row["region"]))
            axes.plot([row["low"], row["high"]], [y, y], color=colour, lw=2)
            axes.plot(row["mean"], y, "D", ms=5, color=colour)
        axes.axvline(0, color=look.ink, lw=0.8)
        name_rows(axes, [f"{row['region'].upper()} {short_title(row['column'])}" for row in rows])
        axes.set(title=title, xlabel=f"← {second} better" if distances else f"{second} better →")
        axes.locator_params(axis="x", nbins=5)

    return Chart(title, (3.6, max(2.4, 0.8 + 0.25 * len(rows))), draw, table)


def short_title(column: str) -> str:
    """A column's title in one or two words."""
    title = COLUMN_TITLES[column]
    return next((word for word in ("Dice", "NSD", "HD95") if word in title), title.removesuffix(" lesions"))
