"""A real scan as ground for metastases: where its healthy tissue lies, how bright that is, and what to keep off.

Nothing is segmented exactly. What is asked for are places where a metastasis could lie, and the grey level it would
have to differ from; thresholds relative to the scan's own median tissue answer both, on any scanner.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import GridTransform
from brats_lightning.core.labels import MODALITIES
from brats_lightning.data.cases import Case, CaseError, check_files, examine
from brats_lightning.data.preprocessing import brain_box
from brats_lightning.synthetic.anatomy import Brain, FloatVolume, Frame
from brats_lightning.synthetic.case_set import PhantomError
from brats_lightning.synthetic.lesions import SCHEME

Mask = Bool[np.ndarray, "z y x"]

SURFACE_MM = 1.5  # no lesion grows this near to the skull-stripped surface
TUMOUR_MM = 8.0  # nor this near to the scan's own tumour
_LOCAL_MM = 20.0  # healthy tissue is averaged over cubes of about this size


@dataclass(frozen=True)
class Scan:
    """One case in the box of its brain, oriented to LPS."""

    transform: GridTransform  # of the box in the files' own grid
    images: dict[str, np.ndarray]  # intensities as stored, by modality
    labels: UInt8[np.ndarray, "z y x"]  # the scan's own tumour in this project's classes; 0 of an unlabelled scan
    brain: Brain  # where lesions may grow, as in a phantom
    tissue: dict[str, FloatVolume]  # local mean of healthy tissue by modality
    detail: dict[str, FloatVolume]  # the image without its smooth part, where that is of the size of noise


def read_scan(case: Case, label_map: Mapping[int, int] | None, tolerance: float = 0.1) -> Scan:
    """Read and understand a case with all four modalities, labelled or not.

    Args:
        case: what to read.
        label_map: label in its mask → class index, e.g. ``{4: 3}``.
        tolerance: as in `examine`.

    Raises:
        CaseError: a file is missing or at fault.
        PhantomError: no healthy tissue is left.
    """
    found = examine(case, SCHEME, label_map, tolerance)
    if problems := check_files(case, MODALITIES, need_mask=False) + found.problems:
        raise CaseError(problems)
    transform = brain_box([found.images["t1c"], *found.images.values()])
    images = {name: transform.sample(v.values, v.start) for name, v in found.images.items()}
    labels = np.zeros(transform.shape, np.uint8)
    if found.mask is not None:
        labels = transform.sample(found.mask.values, found.mask.start)

    frame = Frame(transform.shape, transform.spacing)
    inside = ndimage.binary_fill_holes(np.logical_and.reduce([image != 0 for image in images.values()]))
    typical = {name: np.float32(np.median(image[inside])) if inside.any() else 0 for name, image in images.items()}
    if dark := [name for name, value in typical.items() if value <= 0]:
        raise PhantomError(f"{case.id}: no brain of positive intensities in {', '.join(dark)}; implant into raw scans")
    level = {name: image / typical[name] for name, image in images.items()}
    fluid = _without_specks(inside & ((level["t2f"] < 0.6) | ((level["t1n"] < 0.75) & (level["t2w"] > 1.5))), 8)
    tumour = labels > 0 if case.mask is not None else _likely_tumour(level, inside & ~fluid, frame)
    taken = _within(tumour, TUMOUR_MM, frame)
    vessels = level["t1c"] > 1.5 * np.maximum(level["t1n"], 0.8)
    brain = _brain(frame, inside, fluid, vessels, taken)
    healthy = inside & ~(fluid | taken | vessels)
    if not (healthy & brain.room).any():
        raise PhantomError(f"{case.id}: no healthy tissue to grow a metastasis in; take it out of data.background")
    return Scan(
        transform=transform,
        images=images,
        labels=labels,
        brain=brain,
        tissue={name: _local_mean(image, healthy, frame) for name, image in images.items()},
        detail={name: _detail(image, healthy, frame) for name, image in images.items()},
    )


def _brain(frame: Frame, inside: Mask, fluid: Mask, vessels: Mask, taken: Mask) -> Brain:
    """What `place_lesions` needs to know; sulci and fine vessels may be overgrown, wide ones not."""
    depth = ndimage.distance_transform_edt(inside, sampling=frame.spacing)
    pia = np.minimum(depth, ndimage.distance_transform_edt(~fluid, sampling=frame.spacing)).astype(np.float32)
    wide = _within(_opened(fluid, 2.0, frame) | _opened(vessels, 1.5, frame), 2.0, frame)
    room = inside & (depth > SURFACE_MM) & ~wide & ~taken
    return Brain(frame, inside, room, pia, {"csf": (fluid | vessels).astype(np.float32)})


def _likely_tumour(level: Mapping[str, np.ndarray], tissue: Mask, frame: Frame) -> Mask:
    """An unlabelled scan's own lesions, generously: what is bright in FLAIR, or enhances and is no vessel."""
    oedema = tissue & (ndimage.gaussian_filter(level["t2f"], 1.0) > 1.35)
    enhancing = tissue & (level["t1c"] > 1.4 * np.maximum(level["t1n"], 0.8))
    deep = ndimage.distance_transform_edt(ndimage.binary_fill_holes(tissue), sampling=frame.spacing) > 6.0
    seen = _without_specks(_opened(oedema, 1.5, frame), 200) | _opened(enhancing & deep, 1.5, frame)
    return ~_within(~_within(seen, 8.0, frame), 8.0, frame)  # closed: with the core that the rim surrounds


def _within(mask: Mask, mm: float, frame: Frame) -> Mask:
    """Voxels at most ``mm`` from the mask."""
    if not mask.any():
        return mask
    return ndimage.distance_transform_edt(~mask, sampling=frame.spacing) <= mm


def _opened(mask: Mask, mm: float, frame: Frame) -> Mask:
    """Without what is thinner than about ``2·mm``."""
    return _within(ndimage.distance_transform_edt(mask, sampling=frame.spacing) > mm, mm, frame)


def _without_specks(mask: Mask, voxels: int) -> Mask:
    """Without components of fewer voxels."""
    labels, _ = label_components(mask)
    keep = np.bincount(labels.ravel()) >= voxels
    keep[0] = False
    return keep[labels]


def _local_mean(image: np.ndarray, healthy: Mask, frame: Frame) -> FloatVolume:
    """Mean of the healthy tissue around each voxel; of all of it where there is none around."""
    size = [max(1, round(_LOCAL_MM / step)) for step in frame.spacing]

    def smooth(volume: np.ndarray) -> np.ndarray:
        for _ in range(2):  # a cube twice is nearly round
            volume = ndimage.uniform_filter(volume, size, mode="constant")
        return volume

    few = np.float32(1e-3)
    values = np.where(healthy, image, 0).astype(np.float32)
    return (smooth(values) + few * np.float32(image[healthy].mean())) / (smooth(healthy.astype(np.float32)) + few)


def _detail(image: np.ndarray, healthy: Mask, frame: Frame) -> FloatVolume:
    """The fine part of an image; 0 where it exceeds what is usual in healthy tissue, at edges that a lesion hides."""
    image = image.astype(np.float32)
    fine = image - ndimage.gaussian_filter(image, [1.0 / step for step in frame.spacing])
    fine[np.abs(fine) > 2.5 * 1.4826 * np.median(np.abs(fine[healthy]))] = 0
    return fine
