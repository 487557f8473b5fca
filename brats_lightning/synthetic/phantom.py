"""Synthetic metastasis cases on disk, in the layout of BraTS-METS: data to develop, test and demonstrate with."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Int16, UInt8
from scipy import ndimage

from brats_lightning.core.labels import MODALITIES
from brats_lightning.data.cases import Case
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.nifti import write_nifti
from brats_lightning.synthetic.anatomy import SIGNAL, Brain, Frame, make_brain, smooth_field
from brats_lightning.synthetic.case_set import PhantomError, check, generator, make_once, own_folder
from brats_lightning.synthetic.lesions import GOLDEN, Metastasis, lesion_volumes, place_lesions

log = logging.getLogger(__name__)

VERSION = 2  # of the generator: phantoms of another version are other phantoms
_FIRST_PATIENT = 90001
_ET_SIGNAL, _NETC_SIGNAL, _SNFH_SIGNAL = (0.84, 0.82, 1.00, 1.10), (0.62, 0.50, 1.05, 0.85), (0.84, 0.70, 1.30, 1.50)
_BLUR = 0.55  # the scanner's point spread: standard deviation of a Gaussian, in voxels
_FRACTIONS = ("without_t2w", "unlabelled", "empty")
_SCANNER_UNITS = {"t1n": 420.0, "t1c": 330.0, "t2w": 700.0, "t2f": 380.0}


@dataclass(frozen=True)
class PhantomSettings:
    """What a set of phantoms depends on; case ``k`` does not depend on ``cases``.

    Attributes:
        cases: number of cases. Every fourth is the second timepoint of the patient before.
        shape: voxels (x, y, z); the brain fills them. Lesion counts and volumes are capped to what fits, which below
            about 100 voxels per axis leaves fewer and smaller ones than real patients have.
        spacing: voxel size (x, y, z) in mm.
        seed: of everything random.
        lesions: mean number per case, 1 … 2·mean − 1 in each; None for the field's distribution: 0 to 60, mean 7.8.
        resection_cavity: fraction of the cases with a resection cavity, label 4.
        modalities: the images to write; none for masks alone.
        spacings: voxel sizes (x, y, z) in mm, each of about as many patients, instead of ``spacing``; brains keep the
            extent that ``shape`` and ``spacing`` give.
        without_t2w: fraction of the cases without a T2w image.
        unlabelled: fraction of the cases without a mask.
        empty: fraction of the cases with neither lesion nor cavity, whose mask is empty. No case is of more than one of
            the three kinds: empty, unlabelled, with a cavity.
    """

    cases: int = 48
    shape: Sequence[int] = (128, 144, 112)
    spacing: Sequence[int | float] = (1.0, 1.0, 1.0)
    seed: int = 0
    lesions: int | float | None = None
    resection_cavity: int | float = 0.0
    modalities: Sequence[str] = MODALITIES
    spacings: Sequence[Sequence[int | float]] | None = None
    without_t2w: int | float = 0.0
    unlabelled: int | float = 0.0
    empty: int | float = 0.0

    def __post_init__(self) -> None:
        for name, kind in (("shape", int), ("spacing", float), ("modalities", str)):  # a YAML's [1, 1, 1] is (1.0, …)
            object.__setattr__(self, name, tuple(map(kind, getattr(self, name))))
        for name in ("resection_cavity", *_FRACTIONS):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "lesions", None if self.lesions is None else float(self.lesions))
        sizes = None if self.spacings is None else tuple(tuple(map(float, size)) for size in self.spacings)
        object.__setattr__(self, "spacings", sizes)
        rules = {
            "cases": (self.cases >= 1, "at least 1"),
            "shape": (len(self.shape) == 3 and min(self.shape) >= 24, "three sizes of at least 24 voxels"),
            "spacing": (len(self.spacing) == 3 and min(self.spacing) > 0, "three positive sizes in mm"),
            "seed": (self.seed >= 0, "0 or more"),
            "lesions": (self.lesions is None or self.lesions >= 1, "null or a mean of at least 1"),
            "resection_cavity": (0 <= self.resection_cavity <= 1, "a fraction from 0 to 1"),
            "modalities": (set(self.modalities) <= set(MODALITIES), f"some of {', '.join(MODALITIES)}"),
            "spacings": (
                sizes is None or (bool(sizes) and all(len(size) == 3 and min(size) > 0 for size in sizes)),
                "null or a list of voxel sizes, each three positive numbers in mm",
            ),
            "without_t2w": (0 <= self.without_t2w <= 1, "a fraction from 0 to 1"),
            "unlabelled": (0 <= self.unlabelled <= 1, "a fraction from 0 to 1"),
            "empty": (
                0 <= self.empty <= 1 - self.unlabelled - self.resection_cavity,
                "a fraction that leaves room for unlabelled and resection_cavity",
            ),
        }
        check("phantom", self, rules)
        for size in sizes or ():
            if min(self._shape(size)) < 24:
                raise PhantomError(f"phantom spacings must leave at least 24 voxels along each axis, got {sizes}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the generator's version.

        What most sets do without enters only where it is set: their folders keep the name they always had.
        """
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        if self.spacings is not None:
            values["spacings"] = [list(size) for size in self.spacings]
        unset = [name for name in ("spacings", *_FRACTIONS) if not values[name]]
        return {"version": VERSION, **{name: v for name, v in values.items() if name not in unset}}

    def grid(self, case: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Shape (x, y, z) of a case in voxels and their size in mm, the same at all timepoints of a patient."""
        if self.spacings is None:
            return tuple(self.shape), tuple(self.spacing)
        patient, _ = _patient(case)
        size = tuple(self.spacings[int((0.5 + 3**0.5 * patient) % 1 * len(self.spacings))])  # spread evenly
        return self._shape(size), size

    def _shape(self, size: Sequence[float]) -> tuple[int, ...]:
        return tuple(round(n * a / b) for n, a, b in zip(self.shape, self.spacing, size, strict=True))

    def kind(self, case: int) -> str:
        """``cavity``, ``unlabelled``, ``empty`` or ``plain``, spread evenly over the cases, like the counts."""
        place = (0.5 + GOLDEN * case) % 1
        if place < self.resection_cavity:
            return "cavity"
        if place < 1 - self.empty - self.unlabelled:
            return "plain"
        return "unlabelled" if place < 1 - self.empty else "empty"

    def modalities_of(self, case: int) -> tuple[str, ...]:
        """The images of a case."""
        bare = (0.75 + 2**0.5 * case) % 1 < self.without_t2w
        return tuple(name for name in self.modalities if not (bare and name == "t2w"))


def phantom_folder(parent: Path | str, settings: PhantomSettings) -> Path:
    """A folder of these settings' own under ``parent``: its name carries their hash."""
    return own_folder(parent, "phantom", settings.to_dict())


def make_phantoms(
    root: Path | str, settings: PhantomSettings | None = None, *, workers: int | None = None, **fields: Any
) -> Path:
    """Writes a set of synthetic cases into ``root``, once, and returns ``root``.

    If ``root`` holds the set already it is left as it is; otherwise it appears whole or not at all.

    Args:
        root: folder to make: ``BraTS-MET-90001-000/BraTS-MET-90001-000-t1n.nii.gz`` … and ``phantom.json``.
        settings: the defaults if None.
        workers: processes; one per CPU if None; 0 or 1 works in this one.
        **fields: replace fields of the settings, e.g. ``cases=3, seed=1``.

    Raises:
        PhantomError: bad settings, or ``root`` holds anything else.
    """
    settings = replace(settings or PhantomSettings(), **fields)
    return make_once(Path(root), settings.to_dict(), settings.cases, partial(_write_case, settings=settings), workers)


def case_name(case: int) -> str:
    """``BraTS-MET-90001-000``: every fourth case is the second timepoint of the patient before."""
    patient, timepoint = _patient(case)
    return f"BraTS-MET-{_FIRST_PATIENT + patient:05d}-{timepoint:03d}"


def _patient(case: int) -> tuple[int, int]:
    block, place = divmod(case, 4)
    return 3 * block + min(place, 2), int(place == 3)


def make_case(
    settings: PhantomSettings, case: int
) -> tuple[dict[str, Int16[np.ndarray, "z y x"]], UInt8[np.ndarray, "z y x"]]:
    """The images by modality and the labels of case ``case`` in LPS; background is exactly 0."""
    patient, _ = _patient(case)
    shape, spacing = settings.grid(case)
    frame = Frame(shape[::-1], spacing[::-1])
    brain = make_brain(generator(settings.seed, 0, patient), frame, look_alikes=bool(settings.modalities))
    rng = generator(settings.seed, 1, case)
    kind = settings.kind(case)
    volumes = [] if kind == "empty" else lesion_volumes(settings.seed, case, settings.lesions)
    sites = generator(settings.seed, 0, patient, 1)
    labels, lesions, cavity_coverage = place_lesions(rng, sites, brain, volumes, kind == "cavity")
    images = {}
    for modality in settings.modalities_of(case):
        rng = generator(settings.seed, 1, case, MODALITIES.index(modality))
        images[modality] = _acquire(rng, brain, lesions, cavity_coverage, modality)
    return images, labels


def _acquire(
    rng: np.random.Generator,
    brain: Brain,
    lesions: list[Metastasis],
    cavity: Float32[np.ndarray, "z y x"],
    modality: str,
) -> Int16[np.ndarray, "z y x"]:
    """One sequence's image: tissues, lesions, the scanner's blur, coil shading, Rician noise, the scanner's units."""
    channel = MODALITIES.index(modality)
    white = SIGNAL["white"][channel]
    image = np.full(brain.frame.shape, white, np.float32)
    for name, coverage in brain.layers.items():
        signal = np.float32(SIGNAL[name][channel] * rng.uniform(0.93, 1.07))
        image += coverage * (signal - image)
    if cavity.any():
        image += cavity * (np.float32(SIGNAL["csf"][channel] * 1.2) - image)
    for lesion in lesions:
        view = image[lesion.box]
        strength = np.float32(lesion.oedema * rng.uniform(0.8, 1.0))
        view += lesion.halo * strength * (np.float32(_SNFH_SIGNAL[channel]) - view)
    for lesion in lesions:
        view = image[lesion.box]
        solid = white + lesion.density * (_ET_SIGNAL[channel] * rng.uniform(0.92, 1.08) - white)
        solid += lesion.enhancement * (modality == "t1c")
        core = _NETC_SIGNAL[channel] * rng.uniform(0.85, 1.15) + 0.9 * lesion.core_t2 * (modality == "t2w")
        view += lesion.whole * (np.float32(solid) - view)
        view += lesion.core * (np.float32(core) - view)
    image = ndimage.gaussian_filter(image, _BLUR)
    shading = np.float32(rng.uniform(0.06, 0.18)) * smooth_field(rng, brain.frame, 150 * brain.frame.scale)
    shading += np.float32(0.03) * smooth_field(rng, brain.frame, 10.0)  # tissue is not quite even either
    voxels = image[brain.inside] * np.exp(shading[brain.inside])
    noise = np.float32(rng.uniform(0.04, 0.08) * white)
    voxels += noise * rng.standard_normal(voxels.size, dtype=np.float32)
    voxels = np.hypot(voxels, noise * rng.standard_normal(voxels.size, dtype=np.float32))
    units = np.float32(_SCANNER_UNITS[modality] * np.exp(rng.normal(0, 0.5)))
    scanned = np.zeros(brain.frame.shape, np.int16)
    scanned[brain.inside] = np.clip(np.rint(voxels * units), 1, 32767)  # 0 is outside the brain
    return scanned


def _write_case(folder: Path, case: int, settings: PhantomSettings) -> None:
    images, labels = make_case(settings, case)
    name = case_name(case)
    (folder / name).mkdir()
    volumes = images if settings.kind(case) == "unlabelled" else images | {"seg": labels}
    for suffix, volume in volumes.items():
        _write_nifti(folder / name / f"{name}-{suffix}.nii.gz", volume, settings.grid(case)[1], ras=case % 3 == 2)


def _write_nifti(path: Path, volume: np.ndarray, spacing: Sequence[float], ras: bool) -> None:
    """The field's files come in two conventions, both with the origin (0, last y, 0): LPS, and RAS."""
    voxels = volume.T  # (x, y, z)
    if ras:
        voxels = voxels[::-1, ::-1]
    sign = 1 if ras else -1
    affine = np.diag([sign * spacing[0], sign * spacing[1], spacing[2], 1.0])
    affine[1, 3] = (volume.shape[1] - 1) * spacing[1]
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    write_nifti(path, image, level=1)


def phantom_cases(parent: str | Path, **settings: Any) -> list[Case]:
    """The cases of a set with these `PhantomSettings`, made on first use in a folder of its own below ``parent``."""
    wanted = PhantomSettings(**settings)
    folder = phantom_folder(Path(parent), wanted)
    if not folder.exists():
        log.info("making %d phantoms, once, in %s", wanted.cases, folder)
    return find_cases(make_phantoms(folder, wanted))


def made_phantoms(parent: str | Path, **settings: Any) -> list[Case]:
    """The cases of `phantom_cases`, which must be there already: nothing is written.

    Raises:
        FileNotFoundError: the set was not made, or is elsewhere.
    """
    return find_cases(phantom_folder(Path(parent), PhantomSettings(**settings)))
