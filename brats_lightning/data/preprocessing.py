"""From volumes to a working array: orient to LPS, crop to the brain, resample, fit a size, store as 16-bit codes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Shaped, UInt8, UInt16

from brats_lightning.core.geometry import Placement
from brats_lightning.data.nifti import Volume

FITS = ("none", "crop_or_pad", "resize")

# 0 … 1 and 99 … 100 % by 0.1 %, 1 … 99 % by 1 %: what a percentile normalisation may ask for.
QUANTILE_LEVELS = tuple([i / 10 for i in range(10)] + list(range(1, 99)) + [99 + i / 10 for i in range(11)])


@dataclass(frozen=True)
class Preprocessing:
    """The settings that change voxels, and so the cache.

    Attributes:
        spacing: voxel size (z, y, x) in mm to resample to; None keeps each case's own.
        fit: what makes sizes equal after the crop to the brain: nothing, a centred ``crop_or_pad``, or ``resize``.
        size: (z, y, x) in voxels that ``fit`` aims at.
    """

    spacing: Sequence[int | float] | None = None
    fit: str = "none"
    size: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"preprocessing.fit is {self.fit!r}; expected one of {', '.join(FITS)}")
        if (self.fit == "none") != (self.size is None):
            raise ValueError(f"preprocessing.fit={self.fit} with size={self.size}; give both fit and size, or neither")
        for name, kind in (("spacing", float), ("size", int)):
            if (value := getattr(self, name)) is not None:
                if len(value) != 3 or min(value) <= 0:
                    raise ValueError(f"preprocessing.{name} is {value}; expected three positive numbers (z, y, x)")
                object.__setattr__(self, name, tuple(kind(v) for v in value))

    def place(self, brain: Placement) -> Placement:
        """The working array of a case whose brain box is ``brain``."""
        placement = brain.resample(self.spacing) if self.spacing else brain
        if self.size is None:
            return placement
        return placement.centred(self.size) if self.fit == "crop_or_pad" else placement.resize(self.size)


@dataclass(frozen=True)
class Intensities:
    """How the 16-bit codes of one modality read, and its statistics over its brain (non-zero) voxels.

    Code 0 is a voxel outside the brain, of value 0. Any other: ``value = code · code_scale + code_offset``.

    Attributes:
        code_scale: value of one code step; 1 for whole-numbered input, which is kept without loss.
        code_offset: value of code 0, if it were not reserved.
        mean: of the values.
        std: population standard deviation.
        minimum: of the values.
        maximum: of the values.
        quantiles: values at `QUANTILE_LEVELS` per cent, linear between order statistics.
    """

    code_scale: float
    code_offset: float
    mean: float
    std: float
    minimum: float
    maximum: float
    quantiles: tuple[float, ...]

    def quantile(self, level: float | int) -> float:
        """Value at ``level`` per cent."""
        return float(np.interp(level, QUANTILE_LEVELS, self.quantiles))


@dataclass(frozen=True)
class Prepared:
    """A preprocessed case in memory.

    Attributes:
        modalities: of the image's channels.
        image: codes (C, Z, Y, X), see `Intensities`.
        intensities: by modality.
        placement: of the working array in the original grid.
        mask: class indices (Z, Y, X), if there is a mask.
        brain: placement of the brain's box, voxel for voxel.
        reference: the mask on that box, where the working mask has lost voxels to resampling or cropping; else None.
    """

    modalities: tuple[str, ...]
    image: UInt16[np.ndarray, "c z y x"]
    intensities: dict[str, Intensities]
    placement: Placement
    mask: UInt8[np.ndarray, "z y x"] | None
    brain: Placement
    reference: UInt8[np.ndarray, "d h w"] | None


def prepare(images: Mapping[str, Volume], mask: Volume | None, settings: Preprocessing) -> Prepared:
    """Preprocess one case.

    Args:
        images: modality → volume, on one common grid.
        mask: class indices on the same grid.
        settings: what to do.
    """
    volumes = [*images.values(), *([mask] if mask else [])]
    brain = brain_box(volumes)
    placement = settings.place(brain)
    image = np.empty((len(images), *placement.shape), dtype=np.uint16)
    intensities = {}
    for codes, (modality, volume) in zip(image, images.items(), strict=True):
        values = placement.sample(volume.values, volume.start, order=1)
        intensities[modality] = encode(values, codes)
    working = reference = None
    if mask:
        working = placement.sample(mask.values, mask.start, order=0)
        if placement != brain:
            reference = brain.sample(mask.values, mask.start, order=0)
    return Prepared(tuple(images), image, intensities, placement, working, brain, reference)


def brain_box(volumes: Sequence[Volume]) -> Placement:
    """The smallest box, in LPS order, that holds every non-zero voxel of every volume, masks too."""
    whole = Placement.whole(volumes[0].grid)
    filled = [volume for volume in volumes if volume.values.size]
    low = np.min([volume.start for volume in filled], axis=0)
    high = np.max([np.add(volume.start, volume.values.shape) for volume in filled], axis=0)
    return whole.crop(low.tolist(), (high - low).tolist())


def encode(values: Shaped[np.ndarray, "z y x"], codes: UInt16[np.ndarray, "z y x"]) -> Intensities:
    """Write the codes of ``values`` into ``codes`` and return how they read; 0 stays 0.

    Whole numbers that span less than 65,535 are kept exactly, anything else is rounded to 65,535 steps of its range.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    whole = values.dtype.kind in "iu" or bool(np.array_equal(np.rint(values), values))
    if whole and low >= 0 and high <= 65535:
        scale, offset = 1.0, 0.0
        codes[...] = values
    else:
        inside = values != 0
        brain = values[inside].astype(np.float64)
        low, high = float(brain.min()), float(brain.max())
        scale = 1.0 if whole and high - low <= 65534 else (high - low) / 65534 or 1.0
        offset = low - scale  # the lowest value is code 1
        codes[...] = 0
        codes[inside] = np.clip(np.rint((brain - offset) / scale), 1, 65535)
    return Intensities(scale, offset, *_statistics(_histogram(codes), scale, offset))


def _histogram(codes: UInt16[np.ndarray, "z y x"]) -> Int[np.ndarray, " codes"]:
    """Voxels of each code, the outside's set to 0."""
    length = int(codes.max(initial=0)) + 1
    counts = np.zeros(length, dtype=np.int64)
    for slab in np.array_split(codes.reshape(-1), max(1, codes.size >> 18)):  # bincount's wide copy stays in the cache
        counts += np.bincount(slab, minlength=length)
    counts[0] = 0
    return counts


def _statistics(
    counts: Int[np.ndarray, " codes"], scale: float, offset: float
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


def normalisation(
    intensities: Intensities, method: str = "zscore", low: float | int = 0.5, high: float | int = 99.5
) -> Float32[np.ndarray, "4"]:
    """(scale, offset, lowest, highest) of a modality: ``clip(code · scale + offset, lowest, highest)``; code 0 stays 0.

    Args:
        intensities: of the modality.
        method: ``zscore`` (value − mean) / std; ``minmax`` (value − min) / (max − min), in 0 … 1; ``percentile`` the
            same between two quantiles, values beyond clipped. All over the brain. A constant brain becomes 0.
        low: lower percentile, in %.
        high: upper percentile, in %.
    """
    bounds = {
        "zscore": (intensities.mean, intensities.mean + intensities.std, -np.inf, np.inf),
        "minmax": (intensities.minimum, intensities.maximum, 0.0, 1.0),
        "percentile": (intensities.quantile(low), intensities.quantile(high), 0.0, 1.0),
    }
    if method not in bounds:
        raise ValueError(f"the normalisation is {method!r}; expected one of {', '.join(bounds)}")
    if not 0 <= low < high <= 100:
        raise ValueError(f"percentiles {low} … {high}; expected 0 ≤ low < high ≤ 100")
    zero, one, lowest, highest = bounds[method]
    gain = 1 / (one - zero) if one > zero else 0.0
    return np.array(
        [intensities.code_scale * gain, (intensities.code_offset - zero) * gain, lowest, highest], dtype=np.float32
    )
