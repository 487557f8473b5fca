"""From volumes to a working array: orient to LPS, crop to the brain, resample, fit a size, quantise to 16 bits."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped, UInt8, UInt16
from scipy import ndimage

from brats_lightning.core.components import lesion_components
from brats_lightning.core.geometry import GridTransform, Triple
from brats_lightning.core.labels import BRATS_METS, LabelScheme, known_classes
from brats_lightning.data.cases import Case, CaseError, Problem
from brats_lightning.data.nifti import UnreadableFile, Volume, read_header
from brats_lightning.runtime.workers import cpu_count

FITS = ("none", "crop_or_pad", "resize")

# 0 … 1 and 99 … 100 % by 0.1 %, 1 … 99 % by 1 %: what a percentile normalisation may ask for.
QUANTILE_LEVELS = tuple([i / 10 for i in range(10)] + list(range(1, 99)) + [99 + i / 10 for i in range(11)])


@dataclass(frozen=True)
class Preprocessing:
    """The settings that change voxels, and so the cache.

    Attributes:
        spacing: voxel size (z, y, x) in mm to resample to; None keeps each case's own. The setting ``median`` must have
            been replaced by numbers, see `median_spacing`.
        fit: what makes sizes equal after the crop to the brain: nothing, a centred ``crop_or_pad``, or ``resize``.
        size: (z, y, x) in voxels that ``fit`` aims at.
    """

    spacing: Sequence[int | float] | None = None
    fit: str = "none"
    size: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit is {self.fit!r}; expected one of {', '.join(FITS)}")
        if (self.fit == "none") != (self.size is None):
            raise ValueError(f"fit={self.fit} with size={self.size}; give both fit and size, or neither")
        for name, kind in (("spacing", float), ("size", int)):
            if (value := getattr(self, name)) is not None:
                if isinstance(value, str) or len(value) != 3 or min(value) <= 0:
                    median = ", or median" * (name == "spacing")
                    raise ValueError(f"{name} is {value}; expected three positive numbers (z, y, x){median}")
                object.__setattr__(self, name, tuple(kind(v) for v in value))

    def place(self, brain: GridTransform) -> GridTransform:
        """The working array of a case whose brain box is ``brain``."""
        transform = brain.resample(self.spacing) if self.spacing else brain
        if self.size is None:
            return transform
        return transform.centred(self.size) if self.fit == "crop_or_pad" else transform.resize(self.size)


@dataclass(frozen=True)
class Intensities:
    """How to decode one modality's quantised intensities, and its statistics over its brain (non-zero) voxels.

    A quantised 0 is a voxel outside the brain, of value 0. Any other: ``value = quantised · scale + offset``.
    """

    scale: float  # value of one step; 1 for whole-numbered input, which is kept without loss
    offset: float
    mean: float
    std: float  # of the population
    minimum: float
    maximum: float
    quantiles: tuple[float, ...]  # values at `QUANTILE_LEVELS` per cent, linear between order statistics

    def quantile(self, level: float | int) -> float:
        """Value at ``level`` per cent."""
        return float(np.interp(level, QUANTILE_LEVELS, self.quantiles))


@dataclass(frozen=True)
class Prepared:
    """A preprocessed case in memory."""

    modalities: tuple[str, ...]  # of the image's channels
    image: UInt16[np.ndarray, "c z y x"]  # quantised, see `Intensities`
    intensities: dict[str, Intensities]
    transform: GridTransform  # of the working array in the original grid
    mask: UInt8[np.ndarray, "z y x"] | None
    brain: GridTransform  # of the box of the brain and the whole mask, voxel for voxel
    reference: UInt8[np.ndarray, "d h w"] | None  # on that box, if the mask lost voxels to resampling or cropping


def median_spacing(cases: Sequence[Case]) -> Triple:
    """Voxel size (z, y, x) in mm: the median of the cases along each axis, rounded to 0.05 mm.

    Only headers are read: of each case the first that can be. A case without any is left out; who reads its files
    reports it.

    Raises:
        CaseError: there is none in any case.
    """

    def spacing(case: Case) -> Triple | list[Problem]:
        problems = []
        for file, path in case.files.items():
            try:
                return GridTransform.whole(read_header(path).grid).spacing
            except UnreadableFile as error:
                problems.append(Problem(case.id, file, error.found, error.expected, error.remedy))
        return problems

    with ThreadPoolExecutor(cpu_count()) as pool:  # over a network, each file is waited for
        found = list(pool.map(spacing, cases))
    if not (sizes := [size for size in found if isinstance(size, tuple)]):
        raise CaseError([problem for problems in found for problem in problems if isinstance(problem, Problem)])
    return rounded_spacing(np.median(sizes, axis=0).tolist())


def rounded_spacing(spacing: Sequence[int | float]) -> Triple:
    """To 0.05 mm, and no less, so that data sets which hardly differ share a cache."""
    z, y, x = (max(1, round(20 * size)) / 20 for size in spacing)
    return z, y, x


def prepare(
    images: Mapping[str, Volume], mask: Volume | None, settings: Preprocessing, scheme: LabelScheme = BRATS_METS
) -> Prepared:
    """Preprocess one case, whose volumes lie on one grid; ``scheme`` has the mask's classes."""
    # Unlabelled slices reach beyond the brain; the working array needs not.
    known = [mask.trimmed(known_classes(mask.values))] if mask else []
    brain = brain_box([*images.values(), *([mask] if mask else [])])
    transform = settings.place(brain_box([*images.values(), *known]))
    image = np.empty((len(images), *transform.shape), dtype=np.uint16)
    intensities = {}
    for channel, (modality, volume) in zip(image, images.items(), strict=True):
        intensities[modality] = quantise(transform.sample(volume.values, volume.start), channel)
    working = reference = None
    if mask:
        working = working_mask(mask, transform, scheme)
        if transform != brain:
            reference = brain.sample(mask.values, mask.start)
    return Prepared(tuple(images), image, intensities, transform, working, brain, reference)


def working_mask(mask: Volume, transform: GridTransform, scheme: LabelScheme) -> UInt8[np.ndarray, "z y x"]:
    """A mask on the working grid, in which no lesion is smaller than it was, and none is lost.

    `GridTransform.sample_labels` rounds corners off, which costs the smallest lesions most of their volume. Each lesion
    therefore has the voxels of which it covers most, as many as fill its volume; what it gains gets its most frequent
    class.
    """
    working = transform.sample_labels(mask.values, mask.start)
    if transform.exact:
        return working
    lesions, n = lesion_components(known_classes(mask.values), scheme)
    for number, box in enumerate(ndimage.find_objects(lesions) if n else (), 1):
        own = lesions[box] == number
        place, share = transform.sample_reached(own, [a + b.start for a, b in zip(mask.start, box, strict=True)])
        there, voxels = working[place], np.bincount(mask.values[box][own])
        chosen = np.argsort(-share, axis=None, kind="stable")[: max(1, round(float(share.sum())))]
        gained = (share.flat[chosen] > 0) & ~np.isin(there.flat[chosen], np.flatnonzero(voxels))
        there.flat[chosen[gained]] = voxels.argmax()
    return working


def brain_box(volumes: Sequence[Volume]) -> GridTransform:
    """The smallest box, in LPS order, that holds every non-zero voxel of every volume, masks too."""
    filled = [volume for volume in volumes if volume.values.size]
    low = np.min([volume.start for volume in filled], axis=0)
    high = np.max([np.add(volume.start, volume.values.shape) for volume in filled], axis=0)
    return GridTransform.whole(volumes[0].grid).crop(low.tolist(), (high - low).tolist())


def quantise(values: Shaped[np.ndarray, "z y x"], out: UInt16[np.ndarray, "z y x"]) -> Intensities:
    """Write ``values`` into ``out`` as 16-bit steps and return how to decode them; 0 stays 0.

    Whole numbers that span less than 65,535 are kept exactly, anything else is rounded to 65,535 steps of its range.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    whole = values.dtype.kind in "iu" or bool(np.array_equal(np.rint(values), values))
    if whole and low >= 0 and high <= 65535:
        scale, offset = 1.0, 0.0
        out[...] = values
    else:
        inside = values != 0
        brain = values[inside].astype(np.float64)
        low, high = float(brain.min()), float(brain.max())
        scale = 1.0 if whole and high - low <= 65534 else (high - low) / 65534 or 1.0
        offset = low - scale  # the lowest value is step 1
        out[...] = 0
        out[inside] = np.clip(np.rint((brain - offset) / scale), 1, 65535)
    counts = np.zeros(int(out.max(initial=0)) + 1, dtype=np.int64)  # voxels of each step
    for slab in np.array_split(out.reshape(-1), max(1, out.size >> 18)):  # bincount's wide copy stays in the cache
        counts += np.bincount(slab, minlength=len(counts))
    counts[0] = 0  # outside
    return Intensities(scale, offset, *_statistics(counts, scale, offset))


def _statistics(
    counts: Int[np.ndarray, " steps"], scale: float, offset: float
) -> tuple[float, float, float, float, tuple[float, ...]]:
    """Mean, standard deviation, minimum, maximum and quantiles from a histogram; zeros if it is empty."""
    used = np.flatnonzero(counts)
    if not len(used):
        return 0.0, 0.0, 0.0, 0.0, (0.0,) * len(QUANTILE_LEVELS)
    values, counts = used * scale + offset, counts[used]
    below = np.cumsum(counts)
    n = int(below[-1])
    mean = float(values @ counts / n)
    std = float(np.sqrt(np.square(values - mean) @ counts / n))
    at = np.array(QUANTILE_LEVELS) / 100 * (n - 1)
    lower = values[np.searchsorted(below, np.floor(at), side="right")]
    upper = values[np.searchsorted(below, np.ceil(at), side="right")]
    quantiles = lower + (upper - lower) * (at - np.floor(at))
    return mean, std, float(values[0]), float(values[-1]), tuple(float(q) for q in quantiles)
