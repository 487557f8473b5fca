"""One case as a picture: scan, reference, and prediction with its errors; or a scan and its mask."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import Triple
from brats_lightning.core.labels import IGNORE, LabelScheme, in_classes, known_part
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.evaluation.report.drawing import as_pixels, grey, region_colour
from brats_lightning.evaluation.report.wording import number, sequence_title
from brats_lightning.metrics.voxel import confusion_matrix, voxel_scores

# Fills of the prediction's errors; outlines have the colours of the regions.
ERRORS = {"missed": "#ff3b8d", "invented": "#3d7bff", "wrong class": "#ffa21a"}
FIELD = 60.0  # mm along the side of an enlarged part, at least
_UNKNOWN = "#b0b0b0"
_SIZE, _DPI = (11.4, 8.2), 90  # inches, pixels in an inch


@dataclass(frozen=True)
class Shown:
    """What a picture is of."""

    title: str
    sequence: str
    image: Shaped[np.ndarray, "z y x"]
    mask: UInt8[np.ndarray, "z y x"] | None  # the reference, `IGNORE` where the class is unknown; None: there is none
    prediction: UInt8[np.ndarray, "z y x"]
    spacing: Triple  # (z, y, x) in mm
    scheme: LabelScheme

    @classmethod
    def of(cls, title: str, case: CachedCase, prediction: UInt8[np.ndarray, "z y x"], scheme: LabelScheme) -> "Shown":
        """A case and its labels on the working grid, on T1c or else the first sequence."""
        sequence = "t1c" if "t1c" in case.modalities else case.modalities[0]
        image = case.image()[case.modalities.index(sequence)]
        return cls(f"{case.id} · {title}", sequence, image, np.asarray(case.mask()), prediction, case.spacing, scheme)


@dataclass(frozen=True)
class Finding:
    """A slice, or the part of it around a lesion, and why it is shown."""

    z: int
    why: str
    lesion: Bool[np.ndarray, "y x"] | None = None


def draw_case(shown: Shown) -> UInt8[np.ndarray, "h w 3"]:
    """The slice with the largest error, and the surroundings of the smallest lesion.

    From left to right the scan, the reference, and the prediction. Anterior is up, the patient's right on the left.
    """
    mask = shown.prediction if shown.mask is None else shown.mask
    reference, prediction = known_part(mask, shown.prediction)
    rows = findings(reference, prediction, math.prod(shown.spacing))
    names = [sequence_title(shown.sequence), "mask"]
    if shown.mask is not None:
        names[1:] = ["reference", "prediction and its errors"]
    width, height = _SIZE
    figure = Figure(figsize=(width * len(names) / 3, height), dpi=_DPI, facecolor="black")
    panels = figure.subplots(
        2, len(names), gridspec_kw={"wspace": 0.02, "hspace": 0.02, "left": 0, "right": 1, "bottom": 0.07, "top": 0.89}
    )
    spacing = shown.spacing
    for line, found in zip(panels, rows, strict=True):
        for panel, name in zip(line, names, strict=True):
            panel.imshow(grey(shown.image[found.z]), cmap="gray", vmin=0, vmax=1, aspect=spacing[1] / spacing[2])
            if found.lesion is not None:
                _zoom(panel, found.lesion, spacing[1:])
            panel.axis("off")
            _write(panel, 0.03, 0.96, name, va="top")
        _write(line[0], 0.03, 0.04, found.why, va="bottom")
        _write(line[0], 0.03, 0.5, "R")
        _write(line[0], 0.97, 0.5, "L", ha="right")
        _fill(line[-1], errors(reference[found.z], prediction[found.z]))
        _outlines(line[1], reference[found.z], shown.scheme)
        _outlines(line[-1], prediction[found.z], shown.scheme)
        for panel in line[1:]:
            _contour(panel, mask[found.z] == IGNORE, _UNKNOWN)
    figure.text(0.01, 0.975, shown.title, color="white", fontsize=13, va="top", weight="bold")
    if shown.mask is not None:
        figure.text(0.01, 0.935, summary(reference, prediction, shown.scheme), color="white", va="top")
    handles = [
        Patch(fc="none", ec=region_colour(region), lw=2, label=region.upper()) for region in shown.scheme.regions
    ]
    handles += [Patch(fc=colour, label=name) for name, colour in ERRORS.items() if shown.mask is not None]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, labelcolor="white")
    return as_pixels(figure)


def findings(
    reference: UInt8[np.ndarray, "z y x"], prediction: UInt8[np.ndarray, "z y x"], voxel_mm3: float
) -> tuple[Finding, Finding]:
    """The slice with most wrong voxels, or without an error most tumour; and that through the smallest lesion."""
    wrong = (reference != prediction).sum(axis=(1, 2))
    lesions, n = label_components(reference > 0)
    most = Finding(int(wrong.argmax()), f"largest error: {wrong.max():,} voxels")
    if not wrong.any():
        most = Finding(int((reference > 0).sum(axis=(1, 2)).argmax()), "most tumour")
    if not n:
        return most, Finding(len(reference) // 2, "no lesion; the middle")
    sizes = np.bincount(lesions.reshape(-1))[1:]
    smallest = lesions == sizes.argmin() + 1
    z = int(smallest.sum(axis=(1, 2)).argmax())
    state = "found" if (prediction[smallest] > 0).any() else "missed"
    return most, Finding(z, f"smallest lesion, {sizes.min() * voxel_mm3:,.0f} mm³: {state}", smallest[z])


def errors(
    reference: UInt8[np.ndarray, "*shape"], prediction: UInt8[np.ndarray, "*shape"]
) -> dict[str, Bool[np.ndarray, "*shape"]]:
    """The kinds of `ERRORS`: what is tumour in one mask alone, and what is of another class in both."""
    return {
        "missed": (reference > 0) & (prediction == 0),
        "invented": (reference == 0) & (prediction > 0),
        "wrong class": (reference > 0) & (prediction > 0) & (reference != prediction),
    }


def summary(reference: UInt8[np.ndarray, "z y x"], prediction: UInt8[np.ndarray, "z y x"], scheme: LabelScheme) -> str:
    """Dice by region, and how many lesions (connected components of all classes) were found and invented."""
    pair = torch.from_numpy(np.array(reference)), torch.from_numpy(np.array(prediction))
    scores = voxel_scores(confusion_matrix(*pair, scheme.num_classes), scheme)
    dice = ", ".join(f"{region.upper()} {number(scores[f'dice_{region}'], 2)}" for region in scheme.regions)
    (lesions, n), (predicted, m) = label_components(reference > 0), label_components(prediction > 0)
    found = len(np.unique(lesions[(lesions > 0) & (prediction > 0)]))
    invented = m - len(np.unique(predicted[(predicted > 0) & (reference > 0)]))
    return f"Dice {dice} · {found} of {n} lesions found, {invented} invented"


def _outlines(panel: Axes, labels: UInt8[np.ndarray, "y x"], scheme: LabelScheme) -> None:
    for region, classes in reversed(scheme.regions.items()):  # the outer ones first
        _contour(panel, in_classes(labels, classes), region_colour(region))


def _contour(panel: Axes, mask: Bool[np.ndarray, "y x"], colour: str) -> None:
    if mask.any():
        padded = np.pad(mask, 1).astype(float)
        y, x = (np.arange(-1, n + 1) for n in mask.shape)
        panel.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.3)


def _zoom(panel: Axes, lesion: Bool[np.ndarray, "y x"], spacing: Sequence[float]) -> None:
    """A square of at least `FIELD` mm around a lesion."""
    edges = [(int(at.min()), int(at.max())) for at in np.nonzero(lesion)]
    extents = [(high - low + 1) * step for (low, high), step in zip(edges, spacing, strict=True)]
    half = max(FIELD, 1.3 * max(extents)) / 2
    (top, bottom), (left, right) = (
        ((low + high) / 2 - half / step, (low + high) / 2 + half / step)
        for (low, high), step in zip(edges, spacing, strict=True)
    )
    panel.set(xlim=(left, right), ylim=(bottom, top))


def _fill(panel: Axes, masks: Mapping[str, Bool[np.ndarray, "y x"]]) -> None:
    layer = np.zeros((*next(iter(masks.values())).shape, 4))
    for name, mask in masks.items():
        layer[mask] = to_rgba(ERRORS[name], 0.55)
    panel.imshow(layer, aspect=panel.get_aspect(), interpolation="nearest")


def _write(panel: Axes, x: float, y: float, text: str, ha: str = "left", va: str = "center") -> None:
    edge = [withStroke(linewidth=2, foreground="black")]  # legible on white matter, too
    panel.text(x, y, text, color="white", fontsize=11, ha=ha, va=va, transform=panel.transAxes, path_effects=edge)
