"""Instance-aware losses: every lesion weighs the same, however small."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from brats_lightning.core.labels import BRATS_METS
from brats_lightning.losses.lesions import LesionLoss, LesionMap, RegionLesions, SampleLesions
from brats_lightning.losses.sums import (
    ClassSums,
    ClassSumsLoss,
    Logits,
    Reference,
    check_smoothing,
    class_sums,
    computing_dtype,
    sides,
)
from brats_lightning.runtime.device import take, to_device


class InstanceDiceLoss(LesionLoss, ClassSumsLoss):
    """Dice loss of each lesion of each region, their mean, and the mean over regions.

    With R a lesion's voxels, FN = Σ 1 - p over them and FP = Σ p over the background charged to it (which is where the
    losses differ), p being the region's probability: the sum of its classes' softmax or, of memberships, a sigmoid::

        lesion:                   cost = (FN + FP) / (2R - FN + FP + smooth)     = 1 - Dice, up to smooth
        region without a lesion:  cost = FP / (FP + absent_fraction · V)         V voxels in the sample

        loss of a sample = mean over regions with lesions of the mean cost of their lesions
                         + sum over the others of their cost / number of regions

    the latter as in ``WeightedDiceLoss``, which this loss equals (of regions, with equal weights) where no region has
    more than one lesion. It lies in [0, 2) and is 0 for a perfect prediction. The sums are made in one pass over the
    voxels, however many lesions there are, and in a ``CompositeLoss`` in that of its other parts.

    Args:
        labels: as of ``LesionLoss``.
        smooth: added to the denominator only.
        absent_fraction: fraction of the volume at which false positives of a region without a lesion cost ½.

    Raises:
        ValueError: settings out of range; in use, a target or labels that do not fit the logits.
    """

    def __init__(
        self,
        labels: Sequence[str] = BRATS_METS.names,
        *,
        smooth: float | int = 1e-5,
        absent_fraction: float | int = 1e-3,
    ) -> None:
        super().__init__(labels)
        check_smoothing(smooth, absent_fraction)
        self.smooth, self.absent_fraction = smooth, absent_fraction

    def forward(self, logits: Logits, target: Reference, lesions: LesionMap | None = None) -> Float[Tensor, ""]:
        """The samples' mean; lesions not given are found first."""
        return self.from_sums(class_sums(logits, target, None, lesions or self.find_lesions(target)))

    def from_sums(self, sums: ClassSums) -> Float[Tensor, ""]:
        """The loss, from the errors of each lesion of a batch."""
        return torch.stack([self._loss(sample) for sample in sums.lesions]).mean()

    def _loss(self, regions: Sequence[tuple[RegionLesions, Float[Tensor, " _"]]]) -> Tensor:
        """The loss of a sample."""
        present, absent = [], []
        for region, sums in regions:
            n = len(region.sizes)
            negatives, positives = sums[:n], sums[n:]
            if n:
                size, positives = to_device(region.sizes, sums.device, sums.dtype), self._charged(positives)
                present.append(((negatives + positives) / (2 * size - negatives + positives + self.smooth)).mean())
            else:
                absent.append((positives / (positives + self.absent_fraction * region.segments.size)).sum())
        loss = torch.stack(present).mean() if present else torch.zeros_like(absent[0])
        return loss + sum(absent) / len(regions)

    def _charged(self, positives: Float[Tensor, " segments"]) -> Float[Tensor, "..."]:
        """The false positives charged to each lesion, from those of each segment of the background."""
        return positives


class ComponentDiceLoss(InstanceDiceLoss):
    """Connected-component Dice loss: each lesion's Dice in its cell, the voxels nearer to it than to any other.

    False positives are charged to the nearest lesion alone. The Dice part of CC-DiceCE (Bouteille et al. 2025,
    https://arxiv.org/abs/2511.17146), after the CC-metrics of Jaus et al. 2024 (https://arxiv.org/abs/2410.18684);
    formula and settings as in ``InstanceDiceLoss``, cells by ``nearest_component``.
    """

    nearest = True


class BlobLoss(InstanceDiceLoss):
    """Blob loss: each lesion's Dice over the volume without the other lesions (Kofler et al. 2022).

    https://arxiv.org/abs/2205.08209. All false positives are charged to every lesion, so that they weigh most beside
    the smallest. Of the paper's loss ``α global + β blob`` this is the blob term, to be added to a global loss with
    ``CompositeLoss``; formula and settings as in ``InstanceDiceLoss``. Other than in the paper, samples without a
    lesion count.
    """

    def _charged(self, positives: Float[Tensor, " segments"]) -> Float[Tensor, "..."]:
        return positives.sum()


class LesionFocalLoss(LesionLoss):
    """Focal loss of the reference's lesions, each of which weighs the same, however small.

    With p the region's probability::

        loss of a sample = mean over regions with lesions, over their lesions, over the voxels of each of
                           (1 - p)^γ (-log p)

    Voxels weighted by their lesion's inverse size are the proposal of Shirokikh et al. 2020
    (https://arxiv.org/abs/2007.10033). Unlike a Dice loss its gradient by the logits does not vanish where a lesion is
    missed with certainty. It ignores false positives and must be added to a loss that punishes them. Only lesion
    voxels are computed.

    Args:
        labels: as of ``LesionLoss``.
        gamma: how strongly voxels that are found are discounted, 0 or more.

    Raises:
        ValueError: a negative gamma; in use, a target or labels that do not fit the logits.
    """

    def __init__(self, labels: Sequence[str] = BRATS_METS.names, *, gamma: float | int = 2.0) -> None:
        super().__init__(labels)
        if gamma < 0:
            raise ValueError(f"gamma must be 0 or more, got {gamma}")
        self.gamma = float(gamma)

    def forward(self, logits: Logits, target: Reference, lesions: LesionMap | None = None) -> Float[Tensor, ""]:
        """The samples' mean; lesions not given are found first."""
        found, exclusive = (lesions or self.find_lesions(target)).of(logits), target.ndim < logits.ndim
        sizes = [len(sample.voxels) for sample in found]
        sample = to_device(np.repeat(np.arange(len(found)), sizes), logits.device)
        place = to_device(np.concatenate([sample.voxels for sample in found]), logits.device)
        # Each voxel is taken once, though regions share them: its gradient is rounded but once to the logits' type.
        x = logits.flatten(2).transpose(1, 2)[sample, place].to(computing_dtype(logits))
        losses = [self._loss(part, sample, exclusive) for part, sample in zip(x.split(sizes), found, strict=True)]
        return torch.stack(losses).mean()

    def _loss(self, x: Float[Tensor, "m k"], sample: SampleLesions, exclusive: bool) -> Tensor:
        """The loss of a sample from the logits of its lesion voxels, of a softmax if ``exclusive``."""
        losses = []
        for channels, segments, sizes, _ in sample.regions:
            if n := len(sizes):
                lesion = segments.reshape(-1)[sample.voxels]
                index = np.flatnonzero(lesion < n)
                log_p, log_q = _log_probabilities(x[to_device(index, x.device)], channels, exclusive)
                weights = to_device(1 / (n * sizes[lesion[index]]), x.device, log_p.dtype)
                losses.append((weights * (self.gamma * log_q).exp() * -log_p).sum())
        return torch.stack(losses).mean() if losses else x.sum()


def _log_probabilities(x: Float[Tensor, "n k"], channels: tuple[int, ...], exclusive: bool) -> tuple[Tensor, Tensor]:
    """Logarithms of a region's p and 1 - p."""
    if not exclusive:
        return functional.logsigmoid(x[:, channels[0]]), functional.logsigmoid(-x[:, channels[0]])
    inside, outside = sides(channels, x.shape[1])
    total = x.logsumexp(1)
    return take(x, inside).logsumexp(1) - total, take(x, outside).logsumexp(1) - total
