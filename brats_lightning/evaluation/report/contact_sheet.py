"""The contact sheet of a data set: the axial slice through the largest lesion of each case, in all sequences."""

import base64
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.colors import to_rgb
from matplotlib.image import imsave
from scipy import ndimage

from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.evaluation.report.drawing import grey, region_colour

TILE = (168, 144)  # (y, x) pixels at most; about 1.3 mm a pixel
_QUALITY = {"quality": 80, "subsampling": 0}  # of JPEG; outlines keep their colours


@dataclass(frozen=True)
class CasePicture:
    """A row of tiles, one for each sequence, as a data URI."""

    case: CachedCase
    lesion_mm3: float | None  # volume of the lesion that is shown, None of a case without
    image: str


def sampled(cases: Sequence[CachedCase], count: int, always: Sequence[str]) -> list[CachedCase]:
    """The cases named in ``always`` and ``count`` of the others, evenly spread, in their order."""
    others = [case.id for case in cases if case.id not in always]
    chosen = {others[i] for i in np.linspace(0, len(others) - 1, min(count, len(others))).astype(int)}
    return [case for case in cases if case.id in chosen or case.id in always]


def case_picture(case: CachedCase, sequences: Sequence[str], scheme: LabelScheme) -> CasePicture:
    """The picture of one case; a sequence that it lacks is an empty tile. Only one slice of each array is read."""
    _, height, width = case.shape
    z, lesion = slice_to_show(case)
    spacing = np.array(case.spacing[1:])
    scale = min(TILE[0] / (height * spacing[0]), TILE[1] / (width * spacing[1]))  # pixels in a mm
    size = [max(1, round(n * step * scale)) for n, step in zip((height, width), spacing, strict=True)]
    there = [name in case.modalities for name in sequences]
    pixels = np.zeros((len(sequences), *size, 3))
    for tile, name in itertools.compress(zip(pixels, sequences, strict=True), there):
        tile[:] = resized(grey(case.image()[case.modalities.index(name), z]), size)[..., None]
    if case.has_mask:
        labels = case.mask()[z]
        for region, classes in reversed(scheme.regions.items()):
            outline = ring(resized_mask(in_classes(labels, classes), size))
            pixels[np.array(there)[:, None, None] & outline] = to_rgb(region_colour(region))
    file = io.BytesIO()
    imsave(file, _as_bytes(np.concatenate(list(pixels), axis=1)), format="jpeg", pil_kwargs=_QUALITY)
    return CasePicture(case, lesion, "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())


def slice_to_show(case: CachedCase) -> tuple[int, float | None]:
    """The slice with most of the largest lesion's stored voxels, and its volume in mm³; without lesion the middle."""
    if not case.lesions:
        return case.shape[0] // 2, None
    lesion = max(case.lesions, key=lambda each: each.volume_mm3)
    slices = case.positions()[lesion.start : lesion.stop, 2]
    return int(np.bincount(slices).argmax()), lesion.volume_mm3


def ring(mask: Bool[np.ndarray, "y x"]) -> Bool[np.ndarray, "y x"]:
    """The pixels around a mask: an outline that leaves the smallest lesion visible."""
    return ndimage.binary_dilation(mask) & ~mask


def resized(image: Float[np.ndarray, "y x"], size: Sequence[int]) -> Float[np.ndarray, "h w"]:
    """Resampled to ``size``, linearly; smoothed first where pixels would be left out."""
    factors = [want / have for want, have in zip(size, image.shape, strict=True)]
    smooth = ndimage.gaussian_filter(image, [max(0.0, 0.4 * (1 / factor - 1)) for factor in factors])
    return ndimage.zoom(smooth, factors, order=1, mode="nearest", grid_mode=True)


def resized_mask(mask: Bool[np.ndarray, "y x"], size: Sequence[int]) -> Bool[np.ndarray, "h w"]:
    """Resampled to ``size`` without losing a pixel of foreground."""
    factors = [want / have for want, have in zip(size, mask.shape, strict=True)]
    reach = [max(1, math.ceil(1 / factor)) for factor in factors]
    return ndimage.zoom(ndimage.maximum_filter(mask, reach), factors, order=0, mode="nearest", grid_mode=True)


def _as_bytes(pixels: Float[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x 3"]:
    return np.rint(pixels * 255).astype(np.uint8)
