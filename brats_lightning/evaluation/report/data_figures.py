"""Figures of a data set's page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.fingerprint import BINS, histogram
from brats_lightning.evaluation.report.drawing import PAGE, as_svg, new_figure
from brats_lightning.evaluation.report.figures import band_title
from brats_lightning.evaluation.report.wording import sequence_title

_AXES = ("z", "y", "x")


def geometry_figure(cases: Sequence[CachedCase]) -> Markup:
    """Spacing and size of each scan along each axis."""
    spacing = np.array([case.brain.spacing for case in cases])
    size = np.array([case.brain.shape for case in cases])
    rng = np.random.default_rng(0)  # of the jitter
    with new_figure(9.2, 2.2) as figure:
        panels = figure.subplots(1, 2)
        titles = ("Voxel size (mm)", spacing), ("Size of the brain's box (voxels)", size)
        for panel, (title, values) in zip(panels, titles, strict=True):
            for axis in range(3):
                jitter = rng.uniform(-0.25, 0.25, len(values))
                panel.scatter(values[:, axis], axis + jitter, s=14, color=PAGE.colour(axis), alpha=0.5, lw=0)
            panel.set(title=title, ylim=(2.6, -0.6), xlim=(0, 1.05 * values.max()))
            panel.set_yticks(range(3), _AXES)
            panel.tick_params(axis="y", length=0)
            panel.grid(axis="x")
        return as_svg(figure, "Voxel sizes and sizes of all scans")


def intensity_figure(cases: Sequence[CachedCase], sequences: Sequence[str], suspects: Mapping[str, set[str]]) -> Markup:
    """Distribution of each sequence's z-scored intensities: the cases' median and middle 80 %, and suspects alone.

    Args:
        cases: of the data set.
        sequences: to be shown, a panel each.
        suspects: case → sequences of it that are drawn as single lines.
    """
    centres = (BINS[1:] + BINS[:-1]) / 2
    with new_figure(9.2, 2.2) as figure:
        panels = figure.subplots(1, len(sequences), squeeze=False)[0]
        for i, (panel, name) in enumerate(zip(panels, sequences, strict=True)):
            own = [case for case in cases if name in case.intensities]
            if own:
                low, middle, high = np.percentile([histogram(c.intensities[name]) for c in own], (10, 50, 90), axis=0)
                panel.fill_between(centres, low, high, color=PAGE.colour(i), alpha=0.25, lw=0)
                panel.plot(centres, middle, color=PAGE.colour(i), lw=1.6)
            for case in own:
                if name in suspects.get(case.id, ()):
                    panel.plot(centres, histogram(case.intensities[name]), color=PAGE.colour(5), lw=0.8, ls="--")
            panel.set(title=sequence_title(name), xlim=(BINS[0], BINS[-1]), yticks=[])
            panel.set_ylim(bottom=0)
        panels[0].set_ylabel("fraction of voxels")
        figure.supxlabel("intensity in the brain, as z-score", fontsize="medium")
        return as_svg(figure, "Intensities by sequence")


def lesion_figure(lesions: Mapping[str, Any], counts: Mapping[str, Sequence[int]]) -> Markup:
    """Lesions by band of volume and region, and how many a case has.

    Args:
        lesions: of the fingerprint, region → its numbers.
        counts: region → number of lesions of each case.
    """
    edges = [0, 1, 2, 3, 5, 10, 20, 50]
    names = ["0", "1", "2", "3–4", "5–9", "10–19", "20–49", "≥ 50"]
    width = 0.8 / max(1, len(lesions))
    with new_figure(9.2, 2.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
        for i, (region, row) in enumerate(lesions.items()):
            colour, shift = PAGE.colour(i), (i - (len(lesions) - 1) / 2) * width
            by_band = [band["lesions"] for band in row["bands"]]
            left.bar(np.arange(len(by_band)) + shift, by_band, width, color=colour, label=region.upper())
            by_count = np.histogram(counts[region], [*edges, np.inf])[0]
            right.bar(np.arange(len(edges)) + shift, by_count, width, color=colour)
        bands = next(iter(lesions.values()))["bands"]
        left.set_xticks(range(len(bands)), [band_title(band) for band in bands])
        left.set(title="Lesions by volume", xlabel="mm³")
        right.set_xticks(range(len(edges)), names)
        right.set(title="Cases by number of lesions", xlabel="lesions in the case")
        for panel in (left, right):
            panel.grid(axis="y")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=len(lesions))
        return as_svg(figure, "Lesions by volume, and cases by number of lesions")
