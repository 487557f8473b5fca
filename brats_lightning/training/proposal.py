"""Patch, depth and batch that suit a data set and a memory, after nnU-Net's planner (Isensee et al. 2021).

The patch is as large as fits with two patches in a batch, in the proportions of the median scan. The network halves an
axis as long as at least `BOTTLENECK` voxels are left of it, first those along which the voxels are small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from brats_lightning.core.geometry import Ints
from brats_lightning.data.preprocessing import rounded_spacing

BOTTLENECK = 4  # voxels along each axis of the deepest level, at least
LEVELS = 6  # of a network, at most
LARGEST = 256  # voxels along an axis of a patch, at most
ANISOTROPIC = 3  # a scan's longest voxel edge relative to its shortest one from which it counts as anisotropic
BATCH = 2  # patches in a batch, at least
SHARE = 0.05  # of the data set's voxels that one batch may hold


@dataclass(frozen=True)
class Topology:
    """A patch, and a network that halves it."""

    patch: Ints  # (z, y, x) in voxels
    strides: tuple[Ints, ...]  # of each step from a level to the next
    kernels: tuple[Ints, ...]  # of each level

    def widths(self, first: int, most: int) -> list[int]:
        """Channels of each level, doubled from one to the next."""
        return [min(most, first * 2**level) for level in range(len(self.kernels))]


@dataclass(frozen=True)
class Proposal:
    """What is tried, or fits."""

    topology: Topology
    batch: int
    first_width: int


def target_spacing(spacings: Float[np.ndarray, "cases 3"]) -> list[float] | None:
    """The spacing (z, y, x) in mm to resample to, rounded to 0.05 mm; None where all scans have the same within 2 %.

    The median of each axis; of an axis whose median is `ANISOTROPIC` times that of another, the tenth percentile, which
    keeps what the better scans show.
    """
    if (spacings.max(axis=0) <= 1.02 * spacings.min(axis=0)).all():
        return None
    target = np.median(spacings, axis=0)
    coarse = target >= ANISOTROPIC * target.min()
    target[coarse] = np.percentile(spacings[:, coarse], 10, axis=0)
    return list(rounded_spacing(target.tolist()))


def topology(size: Sequence[int], spacing: Sequence[int | float]) -> Topology:
    """The network for a patch of at least ``size`` voxels (z, y, x), rounded up to what it can halve.

    Along an axis whose voxels are more than twice as long as the shortest ones nothing is halved, and kernels are flat,
    until the others have caught up.
    """
    edges, left = np.array(spacing, dtype=float), np.array(size)
    strides: list[Ints] = []
    kernels = [_kernel(edges)]
    while len(strides) < LEVELS - 1:
        room = left // 2 >= BOTTLENECK
        if not room.any():
            break
        halved = room & (edges <= 2 * edges[room].min())
        strides.append(_triple(np.where(halved, 2, 1)))
        edges, left = np.where(halved, edges * 2, edges), np.where(halved, left // 2, left)
        kernels.append(_kernel(edges))
    factor = _multiple(strides)
    return Topology(_triple(-(-np.array(size) // factor) * factor), tuple(strides), tuple(kernels))


def propose(
    shape: Sequence[int | float],
    spacing: Sequence[int | float],
    cases: int,
    widths: Sequence[int],
    fits: Callable[[Proposal], bool],
) -> Proposal | None:
    """The largest patch that fits with a batch of two, then the largest batch; None where nothing does.

    Args:
        shape: (z, y, x) of the median scan in voxels, at the spacing of training.
        spacing: (z, y, x) in mm.
        cases: of the data set; a batch holds at most `SHARE` of their voxels.
        widths: channels of the first level, in the order to be tried: the next only where none of a size of patch fits.
        fits: whether a proposal fits.
    """
    whole = np.clip(np.ceil(np.array(shape, dtype=float)).astype(int), 2 * BOTTLENECK, LARGEST)
    for first in widths:
        size = whole.copy()
        while True:
            found = Proposal(topology(_triple(size), spacing), BATCH, first)
            patch = np.array(found.topology.patch)
            if fits(found):
                most = int(SHARE * cases * np.prod(np.array(shape, dtype=float)) / float(np.prod(patch)))
                while found.batch < most and fits(larger := replace(found, batch=found.batch + 1)):
                    found = larger
                return found
            smaller = patch - _multiple(found.topology.strides)
            allowed = smaller >= 4 * BOTTLENECK
            if not allowed.any():
                break
            axis = int(np.argmax(np.where(allowed, patch / whole, -1)))
            size = patch
            size[axis] = smaller[axis]
    return None


def _multiple(strides: Sequence[Ints]) -> np.ndarray:
    """Voxels of which a patch has a multiple along each axis."""
    return np.prod([(1, 1, 1), *strides], axis=0)


def _kernel(edges: np.ndarray) -> Ints:
    return _triple(np.where(edges > 2 * edges.min(), 1, 3))


def _triple(values: np.ndarray) -> Ints:
    z, y, x = (int(value) for value in values)
    return z, y, x
