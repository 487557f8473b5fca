"""Which patch of a case becomes a training sample: uniform, a random block of slices, or balanced over the lesions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int16, Shaped

Triple = tuple[int, int, int]  # (z, y, x) in voxels


class LesionRows(Protocol):
    """One lesion: rows ``start`` … ``stop - 1`` of the case's positions."""

    start: int
    stop: int


@runtime_checkable
class LesionCase(Protocol):
    """What the samplers need to know of a case; ``brats_lightning.data.cache.store.CachedCase`` has it."""

    @property
    def id(self) -> str:
        """Of the case."""

    @property
    def shape(self) -> Triple:
        """(z, y, x) in voxels."""

    @property
    def lesions(self) -> Sequence[Any]:
        """One entry with ``start`` and ``stop`` for each lesion; empty without lesions or without a mask."""

    def positions(self) -> Int16[np.ndarray, "n 5"]:
        """Rows (lesion, class, z, y, x), the rows of a lesion next to each other."""


Array = TypeVar("Array", bound=np.ndarray)


class PatchSampler(ABC):
    """Draws the size of a batch's patches, then one position for each patch.

    All randomness comes from the generator that is passed, so equal generators draw equal patches.
    """

    @property
    @abstractmethod
    def largest(self) -> Triple:
        """(z, y, x) of the largest patch it may draw."""

    @abstractmethod
    def draw_size(self, rng: np.random.Generator) -> Triple:
        """(z, y, x) of every patch of one batch; call it once for each batch."""

    @abstractmethod
    def draw_start(self, case: LesionCase, size: Triple, rng: np.random.Generator) -> Triple:
        """First voxel of a patch of ``size``.

        The patch lies inside the volume; along an axis where the volume is smaller it is centred on the volume,
        and its start is negative.
        """

    def prepare(self, cases: Sequence[Any]) -> None:  # noqa: B027
        """Learn what there is to know of the training cases before anything is drawn; for most samplers nothing."""

    def case_weights(self, cases: Sequence[LesionCase]) -> Float64[np.ndarray, " cases"] | None:  # noqa: ARG002
        """Probability of each case to be drawn next, or None when an epoch goes once through the shuffled cases."""
        return None


class UniformPatches(PatchSampler):
    """Every position inside the volume is equally likely.

    Args:
        size: (z, y, x) of the patch in voxels.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size = _positive("size", size, 3)

    @property
    def largest(self) -> Triple:
        """The configured size."""
        return self.size

    def draw_size(self, rng: np.random.Generator) -> Triple:  # noqa: ARG002
        """The configured size."""
        return self.size

    def draw_start(self, case: LesionCase, size: Triple, rng: np.random.Generator) -> Triple:
        """See `PatchSampler.draw_start`."""
        return uniform_start(case.shape, size, rng)


class LesionBalanced(PatchSampler):
    """A share of the patches holds a lesion, each lesion of the case equally likely whatever its volume.

    A lesion is drawn, then one of its voxels, then a patch uniformly among those that hold this voxel, so that a lesion
    is met anywhere in a patch and not just at its centre. The other patches, and all of a case without lesion, are
    uniform.

    Args:
        size: (z, y, x) of the patch in voxels.
        ratio: probability of a patch around a lesion.
        margin: the drawn voxel keeps this many voxels from the faces of the patch, where the volume's border allows it.
        across_cases: make each lesion of the *data set* equally likely: a case with 40 lesions is drawn 40 times as
            often as one with a single lesion. A case without lesion counts as one with a single lesion.
    """

    def __init__(
        self, size: Sequence[int], ratio: float | int = 0.67, margin: int = 8, across_cases: bool = False
    ) -> None:
        self.size = _positive("size", size, 3)
        self.ratio = as_ratio("ratio", ratio)
        self.margin = _margin(margin)
        self.across_cases = across_cases

    @property
    def largest(self) -> Triple:
        """The configured size."""
        return self.size

    def draw_size(self, rng: np.random.Generator) -> Triple:  # noqa: ARG002
        """The configured size."""
        return self.size

    def draw_start(self, case: LesionCase, size: Triple, rng: np.random.Generator) -> Triple:
        """See `PatchSampler.draw_start`."""
        if rng.random() < self.ratio and case.lesions:
            return _lesion_start(case, size, self.margin, rng)
        return uniform_start(case.shape, size, rng)

    def case_weights(self, cases: Sequence[LesionCase]) -> Float64[np.ndarray, " cases"] | None:
        """Proportional to the lesions of each case if ``across_cases``, else None."""
        if not self.across_cases:
            return None
        lesions = np.array([max(len(case.lesions), 1) for case in cases], dtype=np.float64)
        return lesions / lesions.sum()


class SliceBlocks(PatchSampler):
    """Random slice selection: a random contiguous block of axial slices is the training sample.

    The depth is drawn once per batch, uniformly among the multiples of ``multiple_of`` in ``depth``; the block's
    position and the in-plane crop are uniform.

    Args:
        depth: (least, most) slices of a block.
        in_plane: (y, x) of the block in voxels; a size that exceeds the slice takes the whole slice, zeros around it.
        multiple_of: the depths drawn are multiples of this, as the network's downsampling likes them.
        lesion_ratio: share of the blocks laid through a lesion, each lesion of the case equally likely; 0 ignores them.
    """

    def __init__(
        self, depth: Sequence[int], in_plane: Sequence[int], multiple_of: int = 1, lesion_ratio: float | int = 0.0
    ) -> None:
        least, most = _positive("depth", depth, 2)
        self.in_plane: tuple[int, int] = _positive("in_plane", in_plane, 2)
        (step,) = _positive("multiple_of", [multiple_of], 1)
        self.depths = [slices for slices in range(least, most + 1) if slices % step == 0]
        if not self.depths:
            raise ValueError(
                f"sampling.depth: no multiple of {step} slices lies in [{least}, {most}]; "
                "give [least, most] with least <= most, or change sampling.multiple_of"
            )
        self.lesion_ratio = as_ratio("lesion_ratio", lesion_ratio)

    @property
    def largest(self) -> Triple:
        """The deepest block."""
        return (self.depths[-1], *self.in_plane)

    def draw_size(self, rng: np.random.Generator) -> Triple:
        """A random depth and the configured in-plane size."""
        return (int(rng.choice(self.depths)), *self.in_plane)

    def draw_start(self, case: LesionCase, size: Triple, rng: np.random.Generator) -> Triple:
        """See `PatchSampler.draw_start`."""
        if rng.random() < self.lesion_ratio and case.lesions:
            return _lesion_start(case, size, 0, rng)
        return uniform_start(case.shape, size, rng)


def read_patch(
    volume: Shaped[np.ndarray, "*c z y x"],
    start: Sequence[int],
    size: Sequence[int],
    out: Shaped[np.ndarray, "*k pz py px"] | None = None,
    channels: Sequence[int] | None = None,
) -> Shaped[np.ndarray, "*k pz py px"]:
    """Copy of a patch, zero where it passes the volume; of a memory map only the patch is read.

    Args:
        volume: image (C, Z, Y, X) or mask (Z, Y, X), never written.
        start: first voxel (z, y, x); may be negative.
        size: (z, y, x) of the patch.
        out: array of the patch's shape and the volume's type to fill; a reused buffer saves the page faults of a new
            one, which cost several times the copy.
        channels: indices of the channels to read, in the order wanted; None reads all of them.

    Raises:
        ValueError: channels of a volume without channels, or an ``out`` of another shape or type.
    """
    if channels is None:
        leading: tuple[int, ...] = volume.shape[:-3]
        pairs: list[tuple[Any, Any]] = [(..., ...)]
    elif volume.ndim == 4:
        leading = (len(channels),)
        pairs = list(enumerate(channels))
    else:
        raise ValueError(f"channels {list(channels)} asked of a volume without channels, shape {volume.shape}")

    source, target = [], []
    for first, length, extent in zip(start, size, volume.shape[-3:], strict=True):
        low = min(max(first, 0), extent)
        high = max(min(first + length, extent), low)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    inside = all(piece.stop - piece.start == length for piece, length in zip(source, size, strict=True))

    shape = (*leading, *size)
    if out is None:
        out = np.empty(shape, volume.dtype)
    elif out.shape != shape or out.dtype != volume.dtype:
        raise ValueError(f"out is {out.dtype} {out.shape}, the patch is {volume.dtype} {shape}")
    if not inside:
        out[...] = 0
    for into, channel in pairs:
        out[into, *target] = volume[channel, *source]
    return out


def uniform_start(shape: Triple, size: Triple, rng: np.random.Generator) -> Triple:
    """Uniform over the positions inside the volume, centred where the volume is smaller than the patch."""
    z, y, x = (
        int(rng.integers(room + 1)) if room >= 0 else room // 2
        for room in (extent - length for extent, length in zip(shape, size, strict=True))
    )
    return z, y, x


def _lesion_start(case: LesionCase, size: Triple, margin: int, rng: np.random.Generator) -> Triple:
    """Uniform over the patches that hold a random voxel of a random lesion."""
    voxel = lesion_voxel(case, int(rng.integers(len(case.lesions))), rng)
    return start_around(voxel, case.shape, size, margin, rng)


def lesion_voxel(case: LesionCase, index: int, rng: np.random.Generator) -> Int16[np.ndarray, "3"]:
    """A random voxel (z, y, x) of ``case.lesions[index]``, of those stored."""
    lesion = case.lesions[index]
    return case.positions()[int(rng.integers(lesion.start, lesion.stop)), 2:]


def start_around(
    voxel: Int16[np.ndarray, "3"], shape: Triple, size: Triple, margin: int, rng: np.random.Generator
) -> Triple:
    """Uniform over the patches inside the volume that hold a voxel, ``margin`` voxels from their faces if possible."""
    start = []
    for extent, length, v in zip(shape, size, voxel.tolist(), strict=True):
        room = extent - length
        if room < 0:
            start.append(room // 2)
            continue
        keep = min(margin, (length - 1) // 2)
        # the border wins over the margin: a lesion at the edge of the volume is met at the edge of the patch
        low, high = (min(max(bound, 0), room) for bound in (v - length + 1 + keep, v - keep))
        start.append(int(rng.integers(low, high + 1)))
    z, y, x = start
    return z, y, x


def _positive(key: str, values: Sequence[int], count: int) -> Any:
    """``values`` as a tuple of ``count`` positive integers."""
    values = tuple(values)
    if len(values) != count or any(value != int(value) or value < 1 for value in values):
        raise ValueError(f"sampling.{key} must be {count} positive whole number(s) of voxels, got {list(values)}")
    return tuple(int(value) for value in values)


def as_ratio(key: str, value: float | int) -> float:
    """``value``, or a ValueError that names the key."""
    if not 0 <= value <= 1:
        raise ValueError(f"sampling.{key} is a probability in [0, 1], got {value}")
    return float(value)


def _margin(value: int) -> int:
    if value < 0:
        raise ValueError(f"sampling.margin must be 0 or more voxels, got {value}")
    return int(value)
