"""Pictures of single lesions: the axial slice through each, with outlines of reference and prediction."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from brats_lightning.core.geometry import Grid, GridTransform
from brats_lightning.core.labels import IGNORE, in_classes, known_part
from brats_lightning.data.nifti import UnreadableFile, Volume, read_volume
from brats_lightning.evaluation.pairing import Pair, find_images
from brats_lightning.evaluation.scoring import Evaluation, ScoredCase, Scoring
from brats_lightning.metrics.lesions import LesionRow

# Of what is not labelled, of the reference and the prediction; distinguishable by everyone, on grey.
COLOURS = ("#b0b0b0", "#35d0ff", "#ff9a3c")
FIELD = 50.0  # side of the enlarged part in mm
_TITLES = {"t1c": "T1c", "t2f": "FLAIR"}


@dataclass(frozen=True)
class LesionPicture:
    """A missed lesion or a false positive, and its picture as a data URI."""

    case: str
    lesion: LesionRow
    image: str


def worst_lesions(cases: Sequence[ScoredCase], region: str, count: int) -> list[tuple[str, LesionRow]]:
    """The largest missed lesions and the largest false positives with their cases, about as many of each.

    Cases without a prediction are left out: there is nothing to show.
    """
    rows = [(case.case, row) for case in cases if not case.missing for row in case.lesions[region] if not row.detected]
    rows.sort(key=lambda item: (-item[1].volume, item[0], item[1].lesion))
    missed, invented = ([item for item in rows if item[1].false_positive == kind] for kind in (False, True))
    first = max(count - count // 2, count - len(invented))
    chosen = missed[:first]
    return chosen + invented[: count - len(chosen)]


def lesion_pictures(evaluation: Evaluation, count: int) -> list[LesionPicture]:
    """Pictures of the `worst_lesions`, on the case's T1c and FLAIR if these lie beside the reference."""
    chosen = worst_lesions(evaluation.cases, evaluation.scoring.lesion_region, count)
    pairs = {pair.case: pair for pair in evaluation.pairs}
    drawn = {}
    for case in dict.fromkeys(case for case, _ in chosen):  # each case is read once
        view = _View.read(pairs[case], evaluation.scoring)
        for i, (other, row) in enumerate(chosen):
            if other == case:
                drawn[i] = LesionPicture(case, row, view.draw(row))
    return [drawn[i] for i in range(len(chosen))]


@dataclass(frozen=True)
class _View:
    """One case in (z, y, x) LPS order: row 0 is the forehead, column 0 the patient's right."""

    masks: tuple[Volume, Volume]
    classes: tuple[int, ...]
    images: Mapping[str, Volume]

    @classmethod
    def read(cls, pair: Pair, scoring: Scoring) -> "_View":
        reference, _ = scoring.read_mask(pair.reference, predicted=False)
        prediction, _ = scoring.read_mask(pair.prediction, predicted=True) if pair.prediction else (None, [])
        if reference is None or prediction is None:
            raise ValueError(f"{pair.case}: its masks have changed since they were scored")
        found = find_images(pair.reference) if pair.images is None else pair.images
        images = {m: _sound_image(found[m], reference.grid) for m in _TITLES if m in found}
        sound = {modality: image for modality, image in images.items() if image is not None}
        return cls((reference, prediction), scoring.scheme.regions[scoring.lesion_region], sound)

    def draw(self, row: LesionRow) -> str:
        """The whole slice, then the part around the lesion in each image; without images on black."""
        transform = GridTransform.whole(self.masks[0].grid)
        z, y, x = (
            transform.original.shape[axis] - 1 - row.centre[axis] if flip else row.centre[axis]
            for axis, flip in zip(transform.axes, transform.flips, strict=True)
        )
        spacing = transform.spacing[1:]
        reference, prediction = (axial_slice(volume, z) for volume in self.masks)
        unknown = reference == IGNORE
        reference, prediction = known_part(reference, prediction)  # what was scored
        masks = unknown, in_classes(reference, self.classes), in_classes(prediction, self.classes)
        backgrounds = [(_TITLES[m], grey(axial_slice(volume, z))) for m, volume in self.images.items()]
        backgrounds = backgrounds or [("no image", np.where(reference > 0, 0.25, 0.0))]
        half = FIELD / 2
        left, right = x - half / spacing[1], x + half / spacing[1]
        top, bottom = y - half / spacing[0], y + half / spacing[0]

        figure = Figure(figsize=(2.4 * (1 + len(backgrounds)), 2.4), dpi=110, facecolor="black")
        axes = figure.subplots(1, 1 + len(backgrounds), gridspec_kw={"wspace": 0.02}).flat
        figure.subplots_adjust(0, 0, 1, 1)
        for panel, (title, image) in zip(axes, [backgrounds[0], *backgrounds], strict=True):
            panel.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=spacing[0] / spacing[1], interpolation="nearest")
            panel.axis("off")
            zoomed = panel is not figure.axes[0]
            for mask, colour in zip(masks, COLOURS, strict=True):
                width = 1.6 if zoomed else 0.9
                panel.add_collection(LineCollection(list(outline(mask)), colors=colour, linewidths=width))
            if zoomed:
                panel.set(xlim=(left, right), ylim=(bottom, top))
                _scale_bar(panel)
            else:
                panel.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec="white", lw=0.8))
                _write(panel, 0.03, 0.5, "R")
                _write(panel, 0.97, 0.5, "L", ha="right")
            _write(panel, 0.03, 0.95, title, va="top")
        file = io.BytesIO()
        FigureCanvasAgg(figure).print_png(file)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _sound_image(path: Path, grid: Grid) -> Volume | None:
    """An image if it can be read and lies on the reference's grid; otherwise the picture does without it."""
    try:
        volume = read_volume(path)
    except UnreadableFile:
        return None
    return volume if volume.grid.shape == grid.shape and volume.grid.distance(grid) < 1 else None


def axial_slice(volume: Volume, z: int) -> Shaped[np.ndarray, "y x"]:
    """Slice ``z`` of the oriented volume, including the margin that `Volume` leaves out."""
    whole = GridTransform.whole(volume.grid)
    return whole.crop((z, 0, 0), (1, *whole.shape[1:])).sample(volume.values, volume.start)[0]


def grey(image: Shaped[np.ndarray, "y x"]) -> Float[np.ndarray, "y x"]:
    """Intensities scaled to 0 … 1 from the 1st to the 99.5th percentile of the non-zero pixels."""
    values = np.nan_to_num(image.astype(np.float64))
    inside = values[values != 0]
    low, high = np.percentile(inside, (1, 99.5)) if len(inside) else (0.0, 1.0)
    return np.where(values == 0, 0.0, np.clip((values - low) / max(high - low, 1e-6), 0, 1))


def outline(mask: Bool[np.ndarray, "y x"]) -> Float[np.ndarray, "n 2 2"]:
    """The outline of a mask as line segments between points (x, y); pixel (0, 0) reaches from −0.5 to 0.5."""
    padded = np.pad(mask, 1)
    y, x = np.nonzero(padded[1:, :] != padded[:-1, :])  # edges between two rows
    rows = np.stack([np.stack([x - 1.5, y - 0.5], 1), np.stack([x - 0.5, y - 0.5], 1)], 1)
    y, x = np.nonzero(padded[:, 1:] != padded[:, :-1])
    columns = np.stack([np.stack([x - 0.5, y - 1.5], 1), np.stack([x - 0.5, y - 0.5], 1)], 1)
    return np.concatenate([rows, columns])


def _scale_bar(panel: Axes) -> None:
    part = 10 / FIELD
    panel.plot([0.95 - part, 0.95], [0.05, 0.05], color="white", lw=2, transform=panel.transAxes)
    _write(panel, 0.95 - part / 2, 0.07, "1 cm", ha="center", va="bottom")


def _write(panel: Axes, x: float, y: float, text: str, ha: str = "left", va: str = "center") -> None:
    edge = [withStroke(linewidth=2, foreground="black")]  # legible on white matter, too
    panel.text(x, y, text, color="white", fontsize=10, ha=ha, va=va, transform=panel.transAxes, path_effects=edge)
