"""Which patch of a case becomes a training sample: uniform, a random block of slices, or balanced over the lesions."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int16

from brats_lightning.core.checks import as_probability
from brats_lightning.core.geometry import Ints


@runtime_checkable
class LesionCase(Protocol):
    """What the samplers need to know of a case, such as a `CachedCase`."""

    @property
    def id(self) -> str:
        """Of the case."""

    @property
    def shape(self) -> Ints:
        """(z, y, x) in voxels."""

    @property
    def lesions(self) -> Sequence[Any]:
        """For each lesion, where its rows ``start`` … ``stop - 1`` of the positions are; none without a mask."""

    def positions(self) -> Int16[np.ndarray, "n 5"]:
        """Rows (lesion, class, z, y, x), the rows of a lesion next to each other."""


class PatchSampler:
    """Draws the size of a batch's patches, then one position for each patch: here anywhere in the volume.

    All randomness comes from the generator that is passed, so equal generators draw equal patches.

    Args:
        largest: (z, y, x) in voxels of the largest patch it may draw.
        margin: voxels between a drawn voxel and the faces of the patch, where the volume's border allows it.
    """

    def __init__(self, largest: Ints, margin: int = 0) -> None:
        if margin < 0:
            raise ValueError(f"sampling.margin must be 0 or more voxels, got {margin}")
        self.largest, self.margin = largest, int(margin)

    def prepare(self, cases: Sequence[Any]) -> None:
        """Learn about the training cases before anything is drawn; most samplers need nothing."""

    def case_weights(self, cases: Sequence[LesionCase]) -> Float64[np.ndarray, " cases"] | None:  # noqa: ARG002
        """Probability of each case to be drawn next, or None when an epoch goes once through the shuffled cases."""
        return None

    def draw_size(self, rng: np.random.Generator) -> Ints:  # noqa: ARG002
        """(z, y, x) of every patch of one batch; call it once for each batch."""
        return self.largest

    def draw_start(self, case: LesionCase, size: Ints, rng: np.random.Generator) -> Ints:
        """First voxel of a patch of ``size``, uniform over the patches that hold the drawn voxel, if one is drawn.

        The patch lies inside the volume; along an axis where the volume is smaller it is centred on the volume,
        and its start is negative.
        """
        voxel = self.draw_voxel(case, rng)
        start = []
        for axis, (extent, length) in enumerate(zip(case.shape, size, strict=True)):
            room = extent - length
            low, high = 0, room
            if voxel is not None and room >= 0:
                keep, v = min(self.margin, (length - 1) // 2), int(voxel[axis])
                # the border wins over the margin: a lesion at the edge of the volume is met at the edge of the patch
                low, high = (min(max(bound, 0), room) for bound in (v - length + 1 + keep, v - keep))
            start.append(int(rng.integers(low, high + 1)) if room >= 0 else room // 2)
        z, y, x = start
        return z, y, x

    def draw_voxel(self, case: LesionCase, rng: np.random.Generator) -> Int16[np.ndarray, "3"] | None:  # noqa: ARG002
        """A voxel (z, y, x) that the patch has to hold, or None."""
        return None


class UniformPatches(PatchSampler):
    """Every position inside the volume is equally likely.

    Args:
        size: (z, y, x) of the patch in voxels.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__(_positive("size", size, 3))


class LesionBalanced(PatchSampler):
    """A fraction of the patches holds a lesion, each lesion of the case equally likely whatever its volume.

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
        super().__init__(_positive("size", size, 3), margin)
        self.ratio, self.across_cases = as_probability("sampling.ratio", ratio), across_cases

    def draw_voxel(self, case: LesionCase, rng: np.random.Generator) -> Int16[np.ndarray, "3"] | None:
        """A voxel of a lesion, with the probability ``ratio``."""
        return _any_lesion_voxel(case, self.ratio, rng)

    def case_weights(self, cases: Sequence[LesionCase]) -> Float64[np.ndarray, " cases"] | None:
        """Proportional to the weights of each case's lesions if ``across_cases``, else None."""
        if not self.across_cases:
            return None
        weights = np.array([max(self.lesion_weights(case).sum(), 1.0) for case in cases])
        return weights / weights.sum()

    def lesion_weights(self, case: LesionCase) -> Float64[np.ndarray, " lesions"]:
        """How often each lesion of a case is drawn, relative to the others of the data set."""
        return np.ones(len(case.lesions))


class SliceBlocks(PatchSampler):
    """Random slice selection: a random contiguous block of axial slices is the training sample.

    The depth is drawn once per batch, uniformly among the multiples of ``multiple_of`` in ``depth``; the block's
    position and the in-plane crop are uniform.

    Args:
        depth: (least, most) slices of a block.
        in_plane: (y, x) of the block in voxels; a size that exceeds the slice takes the whole slice, zeros around it.
        multiple_of: the depths drawn are multiples of this, as suits the network's downsampling.
        lesion_ratio: probability of a block through a lesion, each lesion of the case equally likely; 0 ignores them.
    """

    def __init__(
        self, depth: Sequence[int], in_plane: Sequence[int], multiple_of: int = 1, lesion_ratio: float | int = 0.0
    ) -> None:
        least, most = _positive("depth", depth, 2)
        (step,) = _positive("multiple_of", [multiple_of], 1)
        self.depths = [slices for slices in range(least, most + 1) if slices % step == 0]
        if not self.depths:
            raise ValueError(
                f"sampling.depth: no multiple of {step} slices lies in [{least}, {most}]; "
                "give [least, most] with least <= most, or change sampling.multiple_of"
            )
        super().__init__((self.depths[-1], *_positive("in_plane", in_plane, 2)))
        self.lesion_ratio = as_probability("sampling.lesion_ratio", lesion_ratio)

    def draw_size(self, rng: np.random.Generator) -> Ints:
        """A random depth and the configured in-plane size."""
        return (int(rng.choice(self.depths)), *self.largest[1:])

    def draw_voxel(self, case: LesionCase, rng: np.random.Generator) -> Int16[np.ndarray, "3"] | None:
        """A voxel of a lesion, with the probability ``lesion_ratio``."""
        return _any_lesion_voxel(case, self.lesion_ratio, rng)


def _any_lesion_voxel(case: LesionCase, ratio: float, rng: np.random.Generator) -> Int16[np.ndarray, "3"] | None:
    if rng.random() >= ratio or not case.lesions:
        return None
    return lesion_voxel(case, int(rng.integers(len(case.lesions))), rng)


def lesion_voxel(case: LesionCase, index: int, rng: np.random.Generator) -> Int16[np.ndarray, "3"]:
    """A random voxel (z, y, x) of ``case.lesions[index]``, of those stored."""
    lesion = case.lesions[index]
    return case.positions()[int(rng.integers(lesion.start, lesion.stop)), 2:]


def _positive(key: str, values: Sequence[int], count: int) -> Any:
    """``values`` as a tuple of ``count`` positive integers."""
    values = tuple(values)
    if len(values) != count or any(value != int(value) or value < 1 for value in values):
        raise ValueError(f"sampling.{key} must be {count} positive whole number(s) of voxels, got {list(values)}")
    return tuple(int(value) for value in values)
