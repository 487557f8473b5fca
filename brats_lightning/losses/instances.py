"""Instance-aware losses: every lesion weighs the same, however small."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, reduce
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32, Integer
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from brats_lightning.components import label_components
from brats_lightning.labels import BRATS_METS, LabelScheme, in_classes
from brats_lightning.losses.sums import computing_dtype

Lesions = TypeVar("Lesions")  # what a loss keeps of a region's lesions


class InstanceLoss(nn.Module, ABC, Generic[Lesions]):
    """A loss of lesions: what the losses below share.

    A lesion is a 26-connected component of a region in the reference. Of class indices the regions are those of the
    label scheme, a region's probability being the sum of its classes' softmax; of memberships each channel is a region,
    and its probability the sigmoid.

    The reference's components are found on the CPU, beside the network's work if `prepare` is called before it; from a
    GPU the target is copied there, and what a subclass needs of the lesions back. Sums are made in float32 (float64 for
    float64 logits).

    Args:
        labels: foreground classes in index order, from which the regions follow; unused with memberships.

    Raises:
        ValueError: in use, a target that does not fit the logits.
    """

    def __init__(self, labels: Sequence[str] = BRATS_METS.names) -> None:
        super().__init__()
        self.scheme = LabelScheme(tuple(labels))
        self._prepared: tuple[Tensor, list[Future[list[Lesions]]]] | None = None

    def prepare(self, target: Tensor) -> None:
        """Begin to find the components of a target that will be asked for; see ``forward``."""
        self._prepared = target, [_threads().submit(self._find, sample) for sample in target.cpu().numpy()]

    def forward(
        self,
        logits: Float[Tensor, "b k z y x"],
        target: Integer[Tensor, "b z y x"] | Integer[Tensor, "b k z y x"],
    ) -> Float[Tensor, ""]:
        """The loss of a batch of logits and class indices, or memberships (0 or 1) of regions: the samples' mean."""
        self._check(logits, target)
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] is target:
            found = [sample.result() for sample in prepared[1]]
        else:
            found = [self._find(sample) for sample in target.cpu().numpy()]
        exclusive = target.ndim < logits.ndim
        losses = [self._loss(*sample, exclusive) for sample in zip(logits.unbind(), found, strict=True)]
        return torch.stack(losses).mean()

    def _find(self, target: np.ndarray) -> list[Lesions]:
        """Of each region of a sample: class indices (z, y, x) or memberships (k, z, y, x)."""
        exclusive = target.ndim == 3
        masks = [in_classes(target, classes) for classes in self.scheme.regions.values()] if exclusive else target > 0
        return [self._lesions(mask) for mask in masks]

    @abstractmethod
    def _lesions(self, mask: Bool[np.ndarray, "z y x"]) -> Lesions:
        """What the loss needs of a region's lesions."""

    @abstractmethod
    def _loss(self, logits: Tensor, found: Sequence[Lesions], exclusive: bool) -> Tensor:
        """The loss of a sample: logits (k, z, y, x), of a softmax if ``exclusive``; the lesions of each region."""

    def _check(self, logits: Tensor, target: Tensor) -> None:
        exclusive = target.ndim < logits.ndim
        if exclusive and logits.shape[1] != self.scheme.num_classes:
            raise ValueError(
                f"logits have {logits.shape[1]} channels, but labels={list(self.scheme.names)} with the background "
                f"make {self.scheme.num_classes}; give the loss the data's labels"
            )
        if target.shape != (logits[:, 0] if exclusive else logits).shape:
            raise ValueError(
                f"logits (b, k, z, y, x) and class indices (b, z, y, x) or memberships (b, k, z, y, x) must agree, got "
                f"{tuple(logits.shape)} and {tuple(target.shape)}"
            )


@dataclass(frozen=True)
class Segments:
    """One region's lesions in a sample: lesion i is segment i, the territories of the background follow.

    Attributes:
        segments: of each voxel.
        sizes: voxels of each lesion.
        territories: into which the background falls.
    """

    segments: Int32[np.ndarray, "z y x"]
    sizes: Int[np.ndarray, " n"]
    territories: int


class InstanceDiceLoss(InstanceLoss[Segments]):
    """Instance-aware Dice loss: every lesion weighs the same, however small.

    The Dice loss of each lesion of each region, their mean, and the mean over regions. With R a lesion's voxels,
    FN = Σ 1 - p over them and FP = Σ p over the background charged to it (which is where the losses differ), p being
    the region's probability::

        lesion:                   cost = (FN + FP) / (2R - FN + FP + smooth)     = 1 - Dice, up to smooth
        region without a lesion:  cost = FP / (FP + absent_fraction · V)         V voxels in the sample

        loss of a sample = mean over regions with lesions of the mean cost of their lesions
                         + sum over the others of their cost / number of regions

    the latter as in ``WeightedDiceLoss``, which this loss equals (of regions, with equal weights) where no region has
    more than one lesion. It lies in [0, 2) and is 0 for a perfect prediction. The sums are made from one pass over the
    voxels, however many lesions there are. Lesions, regions and ``labels`` as in ``InstanceLoss``.

    Args:
        labels: foreground classes in index order.
        smooth: added to the denominator only.
        absent_fraction: fraction of the volume at which false positives of a region without a lesion cost ½.

    Raises:
        ValueError: settings out of range.
    """

    def __init__(
        self,
        labels: Sequence[str] = BRATS_METS.names,
        *,
        smooth: float | int = 1e-5,
        absent_fraction: float | int = 1e-3,
    ) -> None:
        super().__init__(labels)
        if smooth < 0 or not 0 < absent_fraction < float("inf"):
            raise ValueError(
                f"smooth must be 0 or more and absent_fraction positive, got {smooth} and {absent_fraction}"
            )
        self.smooth, self.absent_fraction = smooth, absent_fraction

    def _lesions(self, mask: Bool[np.ndarray, "z y x"]) -> Segments:
        labels, sizes = _components(mask)
        segments, territories = self._background(labels, len(sizes))
        segments += len(sizes)
        np.subtract(labels, 1, out=segments, where=mask)
        return Segments(segments, sizes, territories)

    def _loss(self, logits: Tensor, found: Sequence[Segments], exclusive: bool) -> Tensor:
        logits = logits.to(computing_dtype(logits), memory_format=torch.contiguous_format)
        present, absent = [], []
        for region, (right, wrong) in zip(found, self._probabilities(logits, exclusive), strict=True):
            n = len(region.sizes)
            segments = torch.from_numpy(region.segments).to(logits.device)
            error = torch.where(segments < n, wrong, right)
            sums = _segment_sums(error, segments, n + region.territories)
            negatives, positives = sums[:n], sums[n:]
            if n:
                size = torch.from_numpy(region.sizes).to(sums)
                costs = (negatives + positives) / (2 * size - negatives + positives + self.smooth)
                present.append(costs.mean())
            else:
                absent.append((positives / (positives + self.absent_fraction * region.segments.size)).sum())
        loss = torch.stack(present).mean() if present else logits.new_zeros(())
        return loss + sum(absent) / (len(present) + len(absent))

    def _probabilities(self, logits: Tensor, exclusive: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each region its probability p, and 1 - p without the rounding of a difference."""
        if not exclusive:
            for x in logits.unbind():
                yield x.sigmoid(), (-x).sigmoid()
            return
        p = logits.softmax(0).unbind()
        for classes in self.scheme.regions.values():
            inside, outside = _sides(classes, len(p))
            yield reduce(torch.add, [p[c] for c in inside]), reduce(torch.add, [p[c] for c in outside])

    @abstractmethod
    def _background(self, labels: Int32[np.ndarray, "z y x"], n: int) -> tuple[Int32[np.ndarray, "z y x"], int]:
        """A new array of each background voxel's territory (0, 1, …; of lesions anything), and how many there are."""


class ComponentDiceLoss(InstanceDiceLoss):
    """Connected-component Dice loss: each lesion's Dice in its cell, the voxels nearer to it than to any other.

    False positives are charged to the nearest lesion alone. The Dice part of CC-DiceCE (Bouteille et al. 2025,
    https://arxiv.org/abs/2511.17146), after the CC-metrics of Jaus et al. 2024 (https://arxiv.org/abs/2410.18684);
    formula, regions and settings as in ``InstanceDiceLoss``, cells by ``nearest_component``.
    """

    def _background(self, labels: Int32[np.ndarray, "z y x"], n: int) -> tuple[Int32[np.ndarray, "z y x"], int]:
        if n < 2:
            return np.zeros_like(labels), 1
        cells = nearest_component(labels)
        cells -= 1
        return cells, n


class BlobLoss(InstanceDiceLoss):
    """Blob loss: each lesion's Dice over the volume without the other lesions (Kofler et al. 2022).

    https://arxiv.org/abs/2205.08209. All false positives are charged to every lesion, so that they weigh most beside
    the smallest. Of the paper's loss ``α global + β blob`` this is the blob term, to be added to a global loss with
    ``CompositeLoss``; formula, regions and settings as in ``InstanceDiceLoss``. Other than in the paper, samples
    without a lesion count.
    """

    def _background(self, labels: Int32[np.ndarray, "z y x"], n: int) -> tuple[Int32[np.ndarray, "z y x"], int]:  # noqa: ARG002
        return np.zeros_like(labels), 1


class Voxels(NamedTuple):
    """One region's lesion voxels in a sample.

    Attributes:
        place: their coordinates (z, y, x).
        weight: of each, one over its lesion's size and the number of lesions; sum 1.
    """

    place: Int[np.ndarray, "3 n"]
    weight: Float[np.ndarray, " n"]


class LesionFocalLoss(InstanceLoss[Voxels]):
    """Focal loss of the reference's lesions, each of which weighs the same, however small.

    With p the region's probability::

        loss of a sample = mean over regions with lesions, over their lesions, over the voxels of each of
                           (1 - p)^γ (-log p)

    Voxels weighted by their lesion's inverse size are the proposal of Shirokikh et al. 2020
    (https://arxiv.org/abs/2007.10033). Unlike a Dice loss its gradient by the logits does not vanish where a lesion is
    missed for certain. It knows no false positives and must be added to a loss that does. Only lesion voxels are
    worked on. Lesions, regions and ``labels`` as in ``InstanceLoss``.

    Args:
        labels: foreground classes in index order.
        gamma: how strongly voxels that are found are discounted, 0 or more.

    Raises:
        ValueError: a negative gamma.
    """

    def __init__(self, labels: Sequence[str] = BRATS_METS.names, *, gamma: float | int = 2.0) -> None:
        super().__init__(labels)
        if gamma < 0:
            raise ValueError(f"gamma must be 0 or more, got {gamma}")
        self.gamma = float(gamma)

    def _lesions(self, mask: Bool[np.ndarray, "z y x"]) -> Voxels:
        labels, sizes = _components(mask)
        flat = np.flatnonzero(mask)
        place = np.stack(np.unravel_index(flat, mask.shape))
        return Voxels(place, 1 / (len(sizes) * sizes[labels.reshape(-1)[flat] - 1]))

    def _loss(self, logits: Tensor, found: Sequence[Voxels], exclusive: bool) -> Tensor:
        place = torch.from_numpy(np.concatenate([voxels.place for voxels in found], 1)).to(logits.device)
        x = logits.to(computing_dtype(logits))[:, *place]
        losses = []
        for number, (voxels, part) in enumerate(zip(found, x.split([len(v.weight) for v in found], 1), strict=True)):
            if part.numel():
                log_p, log_q = self._log_probabilities(part, number, exclusive)
                weight = torch.from_numpy(voxels.weight).to(part)
                losses.append((weight * (self.gamma * log_q).exp() * -log_p).sum())
        return torch.stack(losses).mean() if losses else x.sum()

    def _log_probabilities(self, x: Tensor, number: int, exclusive: bool) -> tuple[Tensor, Tensor]:
        """Logarithms of a region's p and 1 - p; logits (k, n)."""
        if not exclusive:
            return functional.logsigmoid(x[number]), functional.logsigmoid(-x[number])
        classes = list(self.scheme.regions.values())[number]
        total = x.logsumexp(0)
        inside, outside = _sides(classes, len(x))
        return x[inside].logsumexp(0) - total, x[outside].logsumexp(0) - total


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
    """Shared by all losses; numpy and scipy let go of the interpreter in most of what is done to an array."""
    return ThreadPoolExecutor(thread_name_prefix="components")


def _sides(classes: Collection[int], channels: int) -> tuple[list[int], list[int]]:
    """A softmax's channels inside a region of these classes, and those outside."""
    inside = [channel for channel in range(channels) if channel in classes]
    return inside, [channel for channel in range(channels) if channel not in classes]


def _components(mask: Bool[np.ndarray, "z y x"]) -> tuple[Int32[np.ndarray, "z y x"], Int[np.ndarray, " n"]]:
    """The components of a mask, numbered from 1, and their voxels."""
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32), np.zeros(0, dtype=np.int64)
    labels, _ = label_components(mask)
    return labels, np.bincount(labels[mask])[1:]


def _segment_sums(values: Float[Tensor, "z y x"], segments: Int[Tensor, "z y x"], number: int) -> Float[Tensor, " n"]:
    """Sums of the values of each segment.

    By rows first: a float32 total of a million voxels would lose small summands, and a GPU wait for its turns at it.
    """
    rows = values.reshape(-1, values.shape[-1])
    sums = rows.new_zeros(len(rows), number)
    return sums.scatter_add(1, segments.reshape(rows.shape).long(), rows).sum(0)
