"""Instance-aware losses: every lesion weighs the same, however small."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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

from brats_lightning.core.components import label_components
from brats_lightning.core.labels import BRATS_METS, LabelScheme, in_classes
from brats_lightning.losses.sums import Partition, class_sums, computing_dtype, sides
from brats_lightning.runtime.device import begin_on_host, on_host, take, to_device

Lesions = TypeVar("Lesions")  # what a loss keeps of a sample's lesions


class InstanceLoss(nn.Module, ABC, Generic[Lesions]):
    """A loss of lesions: what the losses below share.

    A lesion is a 26-connected component of a region in the reference. Of class indices the regions are those of the
    label scheme, a region's probability being the sum of its classes' softmax; of memberships each channel is a region,
    and its probability the sigmoid.

    The reference's components are found on the CPU, beside the network's work if `prepare` is called before it; from a
    GPU the target is copied there, and what a subclass needs of the lesions back: all that a training step waits for.
    Sums are made in float32 (float64 for float64 logits).

    Args:
        labels: foreground classes in index order, from which the regions follow; unused with memberships.

    Raises:
        ValueError: in use, a target that does not fit the logits.
    """

    def __init__(self, labels: Sequence[str] = BRATS_METS.names) -> None:
        super().__init__()
        self.scheme = LabelScheme(tuple(labels))
        self._prepared: list[tuple[Tensor, list[Future[Lesions]]]] = []

    def prepare(self, *targets: Tensor) -> None:
        """Begin to find the lesions of targets whose losses will be asked for next; those of before are forgotten."""
        self._prepared = [(target, self._begin(target)) for target in targets]

    def _begin(self, target: Tensor) -> list[Future[Lesions]]:
        array = begin_on_host(target)

        def find(sample: int) -> Lesions:
            return self._find(array()[sample])

        return [_threads().submit(find, sample) for sample in range(len(target))]

    def _found(self, logits: Tensor, target: Tensor) -> list[Lesions]:
        """The lesions of each sample: once those that `prepare` has begun to find, else found now."""
        self._check(logits, target)
        for index, (prepared, samples) in enumerate(self._prepared):
            if prepared is target:
                del self._prepared[index]
                return [sample.result() for sample in samples]
        return [self._find(sample) for sample in on_host(target)]

    @abstractmethod
    def forward(
        self,
        logits: Float[Tensor, "b k z y x"],
        target: Integer[Tensor, "b z y x"] | Integer[Tensor, "b k z y x"],
    ) -> Float[Tensor, ""]:
        """The loss of a batch of logits and class indices, or memberships (0 or 1) of regions: the samples' mean."""

    def _find(self, target: np.ndarray) -> Lesions:
        """The lesions of a sample: class indices (z, y, x) or memberships (k, z, y, x)."""
        exclusive = target.ndim == 3
        masks = [in_classes(target, classes) for classes in self.scheme.regions.values()] if exclusive else target > 0
        return self._lesions(list(masks))

    @abstractmethod
    def _lesions(self, masks: Sequence[Bool[np.ndarray, "z y x"]]) -> Lesions:
        """What the loss needs of the lesions of all regions."""

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


class Asked(NamedTuple):
    """What an `InstanceDiceLoss` wants of class sums, and the loss that it makes of them."""

    partitions: list[Partition]
    loss: Callable[[Sequence[Tensor]], Tensor]  # of the partitions' errors


class InstanceDiceLoss(InstanceLoss[list[Segments]]):
    """Instance-aware Dice loss: every lesion weighs the same, however small.

    The Dice loss of each lesion of each region, their mean, and the mean over regions. With R a lesion's voxels,
    FN = Σ 1 - p over them and FP = Σ p over the background charged to it (which is where the losses differ), p being
    the region's probability::

        lesion:                   cost = (FN + FP) / (2R - FN + FP + smooth)     = 1 - Dice, up to smooth
        region without a lesion:  cost = FP / (FP + absent_fraction · V)         V voxels in the sample

        loss of a sample = mean over regions with lesions of the mean cost of their lesions
                         + sum over the others of their cost / number of regions

    the latter as in ``WeightedDiceLoss``, which this loss equals (of regions, with equal weights) where no region has
    more than one lesion. It lies in [0, 2) and is 0 for a perfect prediction. The sums are made in one pass over the
    voxels, however many lesions there are, and in a ``CompositeLoss`` in that of its other parts. Lesions, regions and
    ``labels`` as in ``InstanceLoss``.

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

    def forward(
        self,
        logits: Float[Tensor, "b k z y x"],
        target: Integer[Tensor, "b z y x"] | Integer[Tensor, "b k z y x"],
    ) -> Float[Tensor, ""]:
        """The loss of a batch of logits and class indices, or memberships (0 or 1) of regions: the samples' mean."""
        asked = self.ask(logits, target)
        return asked.loss(class_sums(logits, target, None, asked.partitions).errors)

    def ask(self, logits: Tensor, target: Tensor) -> Asked:
        """The loss but for the sums over voxels, which others may need as well."""
        found = self._found(logits, target)
        if target.ndim < logits.ndim:
            channels = [tuple(classes) for classes in self.scheme.regions.values()]
        else:
            channels = [(channel,) for channel in range(logits.shape[1])]
        partitions = [
            Partition(
                sample,
                channels[number],
                to_device(region.segments, logits.device),
                len(region.sizes),
                len(region.sizes) + region.territories,
            )
            for sample, regions in enumerate(found)
            for number, region in enumerate(regions)
        ]

        def loss(errors: Sequence[Tensor]) -> Tensor:
            samples = [errors[i : i + len(channels)] for i in range(0, len(errors), len(channels))]
            return torch.stack([self._loss(*sample) for sample in zip(found, samples, strict=True)]).mean()

        return Asked(partitions, loss)

    def _loss(self, regions: Sequence[Segments], errors: Sequence[Tensor]) -> Tensor:
        """The loss of a sample, from each region's errors by segment."""
        present, absent = [], []
        for region, sums in zip(regions, errors, strict=True):
            n = len(region.sizes)
            negatives, positives = sums[:n], sums[n:]
            if n:
                size = to_device(region.sizes, sums.device, sums.dtype)
                costs = (negatives + positives) / (2 * size - negatives + positives + self.smooth)
                present.append(costs.mean())
            else:
                absent.append((positives / (positives + self.absent_fraction * region.segments.size)).sum())
        loss = torch.stack(present).mean() if present else torch.zeros_like(absent[0])
        return loss + sum(absent) / len(regions)

    def _lesions(self, masks: Sequence[Bool[np.ndarray, "z y x"]]) -> list[Segments]:
        return [self._segments(mask) for mask in masks]

    def _segments(self, mask: Bool[np.ndarray, "z y x"]) -> Segments:
        labels, sizes = _components(mask)
        segments, territories = self._background(labels, len(sizes))
        segments += len(sizes)
        np.subtract(labels, 1, out=segments, where=mask)
        return Segments(segments, sizes, territories)

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
    """A sample's lesion voxels.

    Attributes:
        place: indices in the flattened volume of the voxels in any region's lesions.
        regions: which of these are each region's, and the weight of each: one over its lesion's size and the number of
            lesions; sum 1.
    """

    place: Int[np.ndarray, " m"]
    regions: list[tuple[Int[np.ndarray, " _"], Float[np.ndarray, " _"]]]


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

    def forward(
        self,
        logits: Float[Tensor, "b k z y x"],
        target: Integer[Tensor, "b z y x"] | Integer[Tensor, "b k z y x"],
    ) -> Float[Tensor, ""]:
        """The loss of a batch of logits and class indices, or memberships (0 or 1) of regions: the samples' mean."""
        found, exclusive = self._found(logits, target), target.ndim < logits.ndim
        sizes = [len(voxels.place) for voxels in found]
        sample = to_device(np.repeat(np.arange(len(found)), sizes), logits.device)
        place = to_device(np.concatenate([voxels.place for voxels in found]), logits.device)
        # Each voxel is taken once, though regions share them: its gradient is rounded but once to the logits' type.
        x = logits.flatten(2).transpose(1, 2)[sample, place].to(computing_dtype(logits))
        losses = [self._loss(part, voxels, exclusive) for part, voxels in zip(x.split(sizes), found, strict=True)]
        return torch.stack(losses).mean()

    def _lesions(self, masks: Sequence[Bool[np.ndarray, "z y x"]]) -> Voxels:
        place = np.flatnonzero(reduce(np.logical_or, masks))
        regions = []
        for mask in masks:
            labels, sizes = _components(mask)
            numbers = labels.reshape(-1)[place]
            index = np.flatnonzero(numbers)
            regions.append((index, 1 / (len(sizes) * sizes[numbers[index] - 1])))
        return Voxels(place, regions)

    def _loss(self, x: Float[Tensor, "m k"], voxels: Voxels, exclusive: bool) -> Tensor:
        """The loss of a sample from the logits of its lesion voxels, of a softmax if ``exclusive``."""
        losses = []
        for number, (index, weight) in enumerate(voxels.regions):
            if len(index):
                log_p, log_q = self._log_probabilities(x[to_device(index, x.device)], number, exclusive)
                weights = to_device(weight, x.device, log_p.dtype)
                losses.append((weights * (self.gamma * log_q).exp() * -log_p).sum())
        return torch.stack(losses).mean() if losses else x.sum()

    def _log_probabilities(self, x: Tensor, number: int, exclusive: bool) -> tuple[Tensor, Tensor]:
        """Logarithms of a region's p and 1 - p; logits (n, k)."""
        if not exclusive:
            return functional.logsigmoid(x[:, number]), functional.logsigmoid(-x[:, number])
        classes = list(self.scheme.regions.values())[number]
        inside, outside = sides(classes, x.shape[1])
        total = x.logsumexp(1)
        return take(x, inside).logsumexp(1) - total, take(x, outside).logsumexp(1) - total


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


def _components(mask: Bool[np.ndarray, "z y x"]) -> tuple[Int32[np.ndarray, "z y x"], Int[np.ndarray, " n"]]:
    """The components of a mask, numbered from 1, and their voxels."""
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32), np.zeros(0, dtype=np.int64)
    labels, _ = label_components(mask)
    return labels, np.bincount(labels[mask])[1:]
