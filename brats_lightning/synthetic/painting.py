"""How a metastasis changes a scan: a difference image per modality, relative to the healthy tissue around it."""

import numpy as np
from jaxtyping import Shaped
from scipy import ndimage

from brats_lightning.core.geometry import widened
from brats_lightning.core.labels import MODALITIES
from brats_lightning.synthetic.anatomy import smooth_field
from brats_lightning.synthetic.lesions import STRONGEST, Metastasis
from brats_lightning.synthetic.scan import Scan

# Grey levels as multiples of the healthy tissue's around, in T1n, T1c, T2w and T2-FLAIR.
_SOLID = (0.92, 1.0, 1.5, 1.45)  # solid tumour before contrast medium
_CORE = (0.78, 0.68, 2.3, 1.45)  # necrosis: between tissue and fluid
_OEDEMA = (0.9, 0.92, 1.75, 1.9)
_ENHANCED = 1.2 / 0.82  # what `Metastasis.enhancement`, in multiples of white matter's 0.82, adds to T1c
# A reference holds only what a reader saw: a lesion stands out from its surroundings by 5 standard deviations of a mean
# over its voxels (Rose 1948), as far as tumours enhance at all.
_ROSE = 5.0
# Standard deviations in mm of the blur at the edges: partial volume, and oedema that thins out.
_EDGE = {"t1n": 0.6, "t1c": 0.6, "t2w": 0.7, "t2f": 0.9}
_OEDEMA_EDGE = 1.3
_REACH_MM = 5.0  # further than this from a lesion's box nothing changes


def paint(
    scan: Scan, lesions: list[Metastasis], modality: str, rng: np.random.Generator
) -> Shaped[np.ndarray, "z y x"]:
    """The scan's image of one modality with the lesions in it, in the file's own type.

    Inside a lesion the smooth part of the image gives way to the lesion's level and the fine part stays, so noise looks
    as everywhere else. Voxels without signal, and all that no lesion reaches, keep their value bit for bit.
    """
    stored = scan.images[modality]
    before = stored.astype(np.float32)
    image = before.copy()
    frame, channel = scan.brain.frame, MODALITIES.index(modality)
    pads = [int(np.ceil(_REACH_MM / step)) for step in frame.spacing]
    for lesion in lesions:
        box, inner = widened(lesion.box, pads)
        view, tissue, detail = image[box], scan.tissue[modality][box], scan.detail[modality][box]
        strength = np.float32(lesion.oedema * rng.uniform(0.8, 1.0))
        uneven = 1 + np.float32(0.15) * smooth_field(rng, frame, 14.0, view.shape)
        oedema = tissue * (1 + strength * uneven * np.float32(_OEDEMA[channel] - 1))
        _blend(view, oedema + detail, _soft(lesion.halo, inner, view.shape, _OEDEMA_EDGE, scan))
    for lesion in lesions:
        box, inner = widened(lesion.box, pads)
        view, tissue, detail = image[box], scan.tissue[modality][box], scan.detail[modality][box]
        solid = 1 + lesion.density * (_SOLID[channel] * rng.uniform(0.95, 1.05) - 1)
        uneven = np.exp(np.float32(0.12 if modality == "t1c" else 0.05) * smooth_field(rng, frame, 7.0, view.shape))
        core = _CORE[channel] * rng.uniform(0.85, 1.15) * (1 + (lesion.core_t2 - 0.5) * (modality == "t2w"))
        whole, dead = (_soft(part, inner, view.shape, _EDGE[modality], scan) for part in (lesion.whole, lesion.core))
        level = tissue * np.float32(solid) * uneven
        if modality == "t1c":
            added = tissue * uneven * np.float32(_ENHANCED)
            level += added * _enhancement(lesion, inner, view, level + detail, added, whole, scan.brain.inside[box])
        _blend(view, level + detail, whole)
        _blend(view, tissue * np.float32(core) + detail, dead)
    changed = (image != before) & (stored != 0) & scan.brain.inside
    if stored.dtype.kind in "iu":
        image = np.clip(np.rint(image), 1, np.iinfo(stored.dtype).max)  # 0 is outside the brain
    return np.where(changed, image, stored).astype(stored.dtype)


def _enhancement(
    lesion: Metastasis,
    inner: tuple[slice, ...],  # the lesion's box in the arrays
    view: np.ndarray,  # T1c before
    level: np.ndarray,  # what the lesion would be without enhancement
    added: np.ndarray,  # what an enhancement of 1 would add
    coverage: np.ndarray,  # of each voxel by the lesion
    brain: np.ndarray,  # voxels that are compared with
) -> np.float32:
    """The lesion's enhancement, or of a faint one as much as it takes to be seen; all arrays are (z, y, x)."""
    mask = np.zeros(view.shape, bool)
    mask[inner] = lesion.whole >= 0.5
    around = view[brain & (coverage < 0.01)]
    if not around.size:
        return np.float32(lesion.enhancement)
    wanted = _ROSE * around.std() / np.sqrt(mask.sum())
    given = (coverage * (level - view))[mask].mean()
    return np.float32(max(lesion.enhancement, min((wanted - given) / (coverage * added)[mask].mean(), STRONGEST)))


def _soft(coverage: np.ndarray, inner: tuple[slice, ...], shape: tuple[int, ...], mm: float, scan: Scan) -> np.ndarray:
    """A coverage in its wider box, blurred."""
    wide = np.zeros(shape, np.float32)
    wide[inner] = coverage
    return ndimage.gaussian_filter(wide, [mm / step for step in scan.brain.frame.spacing], mode="constant", truncate=3)


def _blend(view: np.ndarray, target: np.ndarray, coverage: np.ndarray) -> None:
    view += coverage * (target - view)
