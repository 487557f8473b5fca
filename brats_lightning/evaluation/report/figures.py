"""Figures of the reports on segmentations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from brats_lightning.evaluation.report.drawing import FAINT, INK, as_svg, new_figure, series_colour
from brats_lightning.evaluation.summary import lower_is_better
from brats_lightning.metrics.official import headline_columns

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


def score_distribution(tables: Sequence[Mapping[str, Mapping[str, float]]], summary: Any, protocol: str) -> Markup:
    """The main score of each case by region, with the mean and its interval."""
    column = headline_columns(protocol)[0]
    regions = list(summary)
    rng = np.random.default_rng(0)  # of the jitter
    with new_figure(7.6, 0.7 + 0.55 * len(regions)) as figure:
        axes = figure.subplots()
        for i, region in enumerate(regions):
            values = np.array([table[region][column] for table in tables])
            values = values[~np.isnan(values)]
            row, colour = summary[region][column], series_colour(i)
            axes.scatter(values, i - 0.12 + rng.uniform(-0.12, 0.12, len(values)), s=16, color=colour, alpha=0.55, lw=0)
            if row["n"]:
                axes.plot([row["low"], row["high"]], [i + 0.25] * 2, color=colour, lw=2.5, solid_capstyle="butt")
                axes.plot(row["mean"], i + 0.25, "D", color=colour, ms=6)
        axes.set(xlim=(-0.02, 1.02), xlabel=f"{COLUMN_TITLES[column]}: each case (dots), mean and 95 % interval (◆)")
        axes.set_yticks(range(len(regions)), [region.upper() for region in regions])
        axes.set_ylim(len(regions) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        return as_svg(figure, "Scores of all cases by region")


def band_title(band: Mapping[str, Any]) -> str:
    """A band of volumes in words: ``27–64``."""
    lower, upper = band["from_mm3"], band["to_mm3"]
    return f"≥ {lower}" if upper is None else f"< {upper}" if not lower else f"{lower}–{upper}"


def size_figure(lesions: Mapping[str, Any]) -> Markup:
    """Sensitivity and Dice by lesion volume, regions side by side."""
    with new_figure(9.2, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        titles = {"sensitivity": "Fraction of lesions detected", "dice": "Mean Dice of all lesions (missed: 0)"}
        for axes, (name, title) in zip((left, right), titles.items(), strict=True):
            for i, (region, entry) in enumerate(lesions.items()):
                bands = entry["size_bands"]
                x = np.arange(len(bands)) + (i - (len(lesions) - 1) / 2) * 0.2
                keys = name, f"{name}_low", f"{name}_high"
                value, low, high = (np.array([band[key] for band in bands], float) for key in keys)
                error = np.maximum(np.nan_to_num(np.stack([value - low, high - value])), 0)
                axes.errorbar(
                    x, value, error, fmt="o", ms=5, lw=1.6, color=series_colour(i), label=region.upper(), clip_on=False
                )
            axes.set(title=title, ylim=(0, 1), xlabel="lesion volume (mm³)")
            axes.set_xticks(range(len(bands)), [band_title(band) for band in bands])
            axes.grid(axis="y")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=len(lesions))
        return as_svg(figure, "Detection and Dice by lesion volume")


def detection_figure(lesions: Mapping[str, Any], labelled: str) -> Markup:
    """Sensitivity against false positives per case by smallest predicted volume, written at points of ``labelled``."""
    with new_figure(6.4, 3.6) as figure:
        axes = figure.subplots()
        for i, (region, entry) in reversed(list(enumerate(lesions.items()))):  # the first on top
            curve = entry["detection_curve"]
            x, y = ([point[key] for point in curve] for key in ("false_positives_per_case", "sensitivity"))
            axes.plot(x, y, "o-", color=series_colour(i), ms=4, lw=1.4, label=region.upper(), clip_on=False)
            axes.plot(x[0], y[0], "o", color=series_colour(i), ms=9, clip_on=False)
            placed: list[tuple[float, float]] = []
            for point, a, b in zip(curve, x, y, strict=True):
                span = max(max(x), 1e-9)
                far = all(abs(a - c) > 0.09 * span or abs(b - d) > 0.07 for c, d in placed)
                if region == labelled and not np.isnan(b) and far:
                    shown = "all" if not point["smallest_mm3"] else f"≥ {point['smallest_mm3']:g}"
                    axes.annotate(shown, (a, b), (-4, 6), textcoords="offset points", fontsize=8, ha="right")
                    placed.append((a, b))
        axes.set(xlabel="false positives per case", ylabel="fraction of lesions detected", ylim=(0, 1.0))
        axes.set_xlim(left=-0.1 * axes.get_xlim()[1])  # room for the labels
        axes.grid()
        axes.legend(loc="lower right", reverse=True)
        return as_svg(figure, "Detection against false positives")


def difference_figure(
    differences: Sequence[Mapping[str, Any]], scores: Mapping[tuple[str, str], np.ndarray], pair: tuple[int, int]
) -> Markup:
    """The main scores of two methods in each case, and their mean differences with intervals.

    Args:
        differences: of this pair.
        scores: (region, column) → a row per case, a column per method.
        pair: the columns of the two methods.
    """
    a, b = pair
    first, second = differences[0]["first"], differences[0]["second"]
    regions = list(dict.fromkeys(row["region"] for row in differences))
    main = differences[0]["column"]
    groups = [[row for row in differences if lower_is_better(row["column"]) == distance] for distance in (False, True)]
    with new_figure(10.4, 3.4) as figure:
        axes = figure.subplots(1, 3, width_ratios=(1, 1.05, 0.9))
        axes[0].plot([0, 1], [0, 1], color=FAINT, lw=1.2)
        for i, region in enumerate(regions):
            values = scores[region, main]
            colour = series_colour(i)
            axes[0].scatter(values[:, a], values[:, b], s=20, color=colour, alpha=0.65, lw=0, label=region.upper())
        axes[0].set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", xlabel=first, ylabel=second)
        axes[0].set_title(f"{COLUMN_TITLES[main]}, each case")
        axes[0].legend(loc="lower right", handletextpad=0, borderpad=0)
        titles = ("Mean difference", f"{second} better →"), ("HD95 difference in mm", f"← {second} better")
        for panel, rows, (title, label) in zip(axes[1:], groups, titles, strict=True):
            ticks = [f"{row['region'].upper()} {short_title(row['column'])}" for row in rows]
            for y, row in enumerate(rows):
                colour = series_colour(regions.index(row["region"]))
                panel.plot([row["low"], row["high"]], [y, y], color=colour, lw=2)
                panel.plot(row["mean"], y, "D", ms=5, color=colour)
            panel.axvline(0, color=INK, lw=0.8)
            panel.set_yticks(range(len(rows)), ticks)
            panel.set_ylim(len(rows) - 0.5, -0.5)
            panel.tick_params(axis="y", length=0)
            panel.set(title=title, xlabel=label)
            panel.grid(axis="x")
        return as_svg(figure, "Differences between two methods")


def short_title(column: str) -> str:
    """A column's title in one or two words."""
    title = COLUMN_TITLES[column]
    return next((word for word in ("Dice", "NSD", "HD95") if word in title), title.removesuffix(" lesions"))
