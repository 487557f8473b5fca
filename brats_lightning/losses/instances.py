"""Instance-aware Dice losses: every lesion weighs the same, however small."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32, Integer
from scipy import ndimage
from torch import Tensor, nn

from brats_lightning.components import label_components
from brats_lightning.labels import BRATS_METS, LabelScheme, in_classes


class InstanceDiceLoss(nn.Module, ABC):
    """What the losses below share: a Dice loss of each lesion of each region, their mean, and the mean over regions.

    A lesion is a 26-connected component of a region in the reference. With R its voxels, FN = Σ 1 - p over them and
    FP = Σ p over the background charged to it (which is where the losses differ), p being the region's probability::

        lesion:                   cost = (FN + FP) / (2R - FN + FP + smooth)     = 1 - Dice, up to smooth
        region without a lesion:  cost = FP / (FP + absent_fraction · V)         V voxels in the sample

        loss of a sample = mean over regions with lesions of the mean cost of their lesions
                         + sum over the others of their cost / number of regions

    the latter as in ``WeightedDiceLoss``, which this loss equals (of regions, with equal weights) where no region has
    more than one lesion. It lies in [0, 2) and is 0 for a perfect prediction.

    Of class indices the regions are those of the label scheme, a region's p being the sum of its classes' softmax;
    of memberships each channel is a region, and p its sigmoid.

    The reference's components are found on the CPU; on a GPU the target is copied there, and a 32-bit number per voxel
    and region back. The sums are made in float32 (float64 for float64 logits) from one pass over the voxels, however
    many lesions there are.

    Args:
        labels: foreground classes in index order, from which the regions follow; unused with memberships.
        smooth: added to the denominator only.
        absent_fraction: fraction of the volume at which false positives of a region without a lesion cost ½.

    Raises:
        ValueError: settings out of range; in use, a target that does not fit the logits.
    """

    def __init__(
        self,
        labels: Sequence[str] = BRATS_METS.names,
        *,
        smooth: float | int = 1e-5,
        absent_fraction: float | int = 1e-3,
    ) -> None:
        super().__init__()
        if smooth < 0 or not 0 < absent_fraction < float("inf"):
            raise ValueError(
                f"smooth must be 0 or more and absent_fraction positive, got {smooth} and {absent_fraction}"
            )
        self.scheme = LabelScheme(tuple(labels))
        self.smooth, self.absent_fraction = smooth, absent_fraction

    def forward(
        self,
        logits: Float[Tensor, "b k z y x"],
        target: Integer[Tensor, "b z y x"] | Integer[Tensor, "b k z y x"],
    ) -> Float[Tensor, ""]:
        """The loss of a batch of logits and class indices, or memberships (0 or 1) of regions: the samples' mean."""
        self._check(logits, target)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        samples = logits.to(dtype, memory_format=torch.contiguous_format).unbind()
        losses = [self._loss(*sample) for sample in zip(samples, target.cpu().numpy(), strict=True)]
        return torch.stack(losses).mean()

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

    def _loss(self, logits: Tensor, target: np.ndarray) -> Tensor:
        """The loss of a sample; logits (k, z, y, x)."""
        present, absent = [], []
        for mask, right, wrong in self._regions(logits, target):
            labels, sizes = _components(mask)
            n = len(sizes)
            background, territories = self._background(labels, n)
            # Lesions are segments 0 … n - 1, the territories into which the background falls follow.
            numbers = np.where(labels > 0, labels - 1, n + background)
            segments = torch.from_numpy(numbers).to(logits.device)
            error = torch.where(segments < n, wrong, right)
            sums = _segment_sums(error, segments, n + territories)
            negatives, positives = sums[:n], sums[n:]
            if n:
                size = torch.from_numpy(sizes).to(sums)
                costs = (negatives + positives) / (2 * size - negatives + positives + self.smooth)
                present.append(costs.mean())
            else:
                absent.append((positives / (positives + self.absent_fraction * mask.size)).sum())
        loss = torch.stack(present).mean() if present else logits.new_zeros(())
        return loss + sum(absent) / (len(present) + len(absent))

    def _regions(self, logits: Tensor, target: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Reference mask of each region, its probability p, and 1 - p without the rounding of a difference."""
        if target.ndim == logits.ndim:
            for x, member in zip(logits.unbind(), target > 0, strict=True):
                yield member, x.sigmoid(), (-x).sigmoid()
            return
        p = logits.softmax(0).unbind()
        for classes in self.scheme.regions.values():
            inside, outside = ([p[c] for c in range(len(p)) if (c in classes) == member] for member in (True, False))
            yield in_classes(target, classes), reduce(torch.add, inside), reduce(torch.add, outside)

    @abstractmethod
    def _background(self, labels: Int32[np.ndarray, "z y x"], n: int) -> tuple[np.ndarray | int, int]:
        """Territory of each background voxel (0, 1, …) and their number: one for each lesion, or one for all."""


class ComponentDiceLoss(InstanceDiceLoss):
    """Connected-component Dice loss: each lesion's Dice in its cell, the voxels nearer to it than to any other.

    False positives are charged to the nearest lesion alone. The Dice part of CC-DiceCE (Bouteille et al. 2025,
    https://arxiv.org/abs/2511.17146), after the CC-metrics of Jaus et al. 2024 (https://arxiv.org/abs/2410.18684);
    formula, regions and settings as in ``InstanceDiceLoss``, cells by ``nearest_component``.
    """

    def _background(self, labels: Int32[np.ndarray, "z y x"], n: int) -> tuple[np.ndarray | int, int]:
        return (nearest_component(labels) - 1, n) if n > 1 else (0, 1)


class BlobLoss(InstanceDiceLoss):
    """Blob loss: each lesion's Dice over the volume without the other lesions (Kofler et al. 2022).

    https://arxiv.org/abs/2205.08209. All false positives are charged to every lesion, so that they weigh most beside
    the smallest. Of the paper's loss ``α global + β blob`` this is the blob term, to be added to a global loss with
    ``CompositeLoss``; formula, regions and settings as in ``InstanceDiceLoss``. Other than in the paper, samples
    without a lesion count.
    """

    def _background(self, labels: Int32[np.ndarray, "z y x"], n: int) -> tuple[np.ndarray | int, int]:  # noqa: ARG002
        return 0, 1


def nearest_component(labels: Int32[np.ndarray, "z y x"]) -> Int32[np.ndarray, "z y x"]:
    """Number of the component nearest to each voxel (its Voronoi cell), distances in voxels.

    Outside the components found at half the resolution, in an eighth of the time: the centres of 2×2×2 blocks stand
    for their voxels. No component is lost, since voxels of two never share a block (they would be 26-connected). Each
    distance compared is off by √3 at most and usually by far less, so that only voxels about as near to one component
    as to another can come to the wrong one.

    Args:
        labels: components numbered from 1, at least one; 0 is background.
    """
    foreground = np.nonzero(labels)
    half = np.zeros([(size + 1) // 2 for size in labels.shape], dtype=np.int32)
    half[tuple(index // 2 for index in foreground)] = labels[foreground]
    nearest = ndimage.distance_transform_edt(half == 0, return_distances=False, return_indices=True)
    depth, height, width = labels.shape
    cells = half[tuple(nearest)].repeat(2, 0).repeat(2, 1).repeat(2, 2)[:depth, :height, :width]
    return np.where(labels > 0, labels, cells)


def _components(mask: Bool[np.ndarray, "z y x"]) -> tuple[Int32[np.ndarray, "z y x"], Int[np.ndarray, " n"]]:
    """The components of a mask, numbered from 1, and their voxels."""
    labels = np.zeros(mask.shape, dtype=np.int32)
    sizes = np.zeros(0, dtype=np.int64)
    for box in ndimage.find_objects(mask.view(np.uint8)):  # one, or none: lesions fill a small part of most volumes
        labels[box], _ = label_components(mask[box])
        sizes = np.bincount(labels[box].ravel())[1:]
    return labels, sizes


def _segment_sums(values: Float[Tensor, "z y x"], segments: Int[Tensor, "z y x"], number: int) -> Float[Tensor, " n"]:
    """Sums of the values of each segment.

    By rows first: a float32 total of a million voxels would lose small summands, and a GPU wait for its turns at it.
    """
    rows = values.reshape(-1, values.shape[-1])
    sums = rows.new_zeros(len(rows), number)
    return sums.scatter_add(1, segments.reshape(rows.shape).long(), rows).sum(0)
