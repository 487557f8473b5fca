"""The lesions of a batch's reference: found once for all losses, on the CPU while the network computes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32, Integer
from scipy import ndimage
from torch import Tensor, nn

from brats_lightning.core.components import label_components
from brats_lightning.core.labels import BRATS_METS, LabelScheme, in_classes
from brats_lightning.runtime.device import begin_on_host
from brats_lightning.runtime.workers import cpu_count


class RegionLesions(NamedTuple):
    """The n lesions of a region in a sample, which divide its volume: lesion i is segment i, the background follows.

    The background is one segment, or n of them: the voxels nearest to each lesion.
    """

    channels: tuple[int, ...]  # of a softmax, those that make up the region; of memberships the region's own
    segments: Int32[np.ndarray, "z y x"]  # of each voxel
    sizes: Int[np.ndarray, " n"]  # voxels of each lesion
    outside: int  # segments of the background


class SampleLesions(NamedTuple):
    """The lesions of a sample."""

    voxels: Int[np.ndarray, " m"]  # in any region's lesions: indices in the flattened volume
    regions: list[RegionLesions]


class LesionMap:
    """The lesions of a batch's reference, found by other threads while the network computes.

    A lesion is a 26-connected component of a region. Of class indices the regions are those of the label scheme; of
    memberships each channel is one. A target on a GPU is copied to the host without waiting for it.

    Args:
        target: class indices (b, z, y, x) or memberships (b, k, z, y, x); not to be changed until the lesions are used.
        scheme: the classes.
        nearest: whether the background is divided by the nearest lesion.
    """

    def __init__(self, target: Integer[Tensor, "*b z y x"], scheme: LabelScheme, nearest: bool = False) -> None:
        self._shape, self._scheme, self._nearest = target.shape, scheme, nearest
        array = begin_on_host(target)
        self._samples = [_threads().submit(lambda i: self._find(array()[i]), i) for i in range(len(target))]

    def of(self, logits: Tensor) -> list[SampleLesions]:
        """The lesions of each sample, once they are found.

        Raises:
            ValueError: logits (b, k, z, y, x) of another shape than the target, or of other classes.
        """
        check_shapes(logits, self._shape)
        if len(self._shape) < logits.ndim and logits.shape[1] != self._scheme.num_classes:
            raise ValueError(
                f"logits have {logits.shape[1]} channels, but labels={list(self._scheme.names)} with the background "
                f"make {self._scheme.num_classes}; give the loss the data's labels"
            )
        return [sample.result() for sample in self._samples]

    def _find(self, target: np.ndarray) -> SampleLesions:
        """The lesions of a sample: class indices (z, y, x) or memberships (k, z, y, x)."""
        if target.ndim == 3:
            masks = {classes: in_classes(target, classes) for classes in self._scheme.regions.values()}
        else:
            masks = {(channel,): mask > 0 for channel, mask in enumerate(target)}
        voxels = np.flatnonzero(reduce(np.logical_or, masks.values()))
        return SampleLesions(voxels, [self._divide(channels, mask) for channels, mask in masks.items()])

    def _divide(self, channels: tuple[int, ...], mask: Bool[np.ndarray, "z y x"]) -> RegionLesions:
        if not mask.any():
            return RegionLesions(channels, np.zeros(mask.shape, np.int32), np.zeros(0, np.int64), outside=1)
        labels, n = label_components(mask)
        if self._nearest and n > 1:
            segments, outside = nearest_component(labels), n
            segments += n - 1
        else:
            segments, outside = np.full(mask.shape, n, np.int32), 1
        np.subtract(labels, 1, out=segments, where=mask)
        return RegionLesions(channels, segments, np.bincount(labels[mask])[1:], outside)


class LesionLoss(nn.Module):
    """A loss that is called with the map of the target's lesions, ``(logits, target, lesions)``.

    Args:
        labels: foreground classes in index order, from which the regions follow; unused with memberships.
    """

    nearest = False  # whether the background must be divided by the nearest lesion

    def __init__(self, labels: Sequence[str] = BRATS_METS.names) -> None:
        super().__init__()
        self.scheme = LabelScheme(tuple(labels))

    def find_lesions(self, target: Tensor) -> LesionMap:
        """Start finding what the loss takes beside logits and target."""
        return LesionMap(target, self.scheme, self.nearest)


def check_shapes(logits: Tensor, target: torch.Size) -> None:
    """Raise a ValueError unless logits (b, k, z, y, x) and the target's shape agree."""
    if target not in (logits.shape, logits[:, 0].shape):
        raise ValueError(
            f"logits (b, k, z, y, x) and target (b, z, y, x) must agree, got {tuple(logits.shape)} and "
            f"{tuple(target)}; the target holds class indices without a channel, or memberships, one channel a region"
        )


def nearest_component(labels: Int32[np.ndarray, "z y x"]) -> Int32[np.ndarray, "z y x"]:
    """Number of the component nearest to each voxel (its Voronoi cell), distances in voxels.

    Outside the components found at half the resolution, in an eighth of the time: the centres of 2×2×2 blocks stand
    for their voxels. No component is lost, since voxels of two never share a block (they would be 26-connected). Each
    distance compared is off by √3 at most and usually by far less, so that only voxels about as near to one component
    as to another can come to the wrong one.

    Args:
        labels: components numbered from 1, at least one; 0 is background.
    """
    depth, height, width = labels.shape
    foreground = np.flatnonzero(labels > 0)
    numbers = labels.reshape(-1)[foreground]
    plane, x = np.divmod(foreground, width)
    z, y = np.divmod(plane, height)
    half = np.zeros([(size + 1) // 2 for size in labels.shape], dtype=np.int32)
    half[z // 2, y // 2, x // 2] = numbers
    z, y, x = ndimage.distance_transform_edt(half == 0, return_distances=False, return_indices=True)
    cells = half[z, y, x].repeat(2, 2)
    # Each row of blocks is written four times, into rows that lie together.
    blocks = np.empty((len(half), 2, half.shape[1], 2, cells.shape[2]), dtype=np.int32)
    blocks[:] = cells[:, None, :, None]
    cells = np.ascontiguousarray(blocks.reshape(2 * len(half), -1, cells.shape[2])[:depth, :height, :width])
    cells.reshape(-1)[foreground] = numbers
    return cells


@cache
def _threads() -> ThreadPoolExecutor:
    """Shared by all maps; numpy and scipy release the GIL in most of their work on arrays."""
    return ThreadPoolExecutor(cpu_count(), thread_name_prefix="lesions")
