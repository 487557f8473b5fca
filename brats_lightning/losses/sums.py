"""Sums over voxels by channel: all that Dice and focal losses need of a batch, from one pass over its logits."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int32, Integer
from torch import Tensor, nn
from torch.nn import functional

from brats_lightning.losses.lesions import LesionMap, RegionLesions, check_shapes
from brats_lightning.runtime.collective import sum_over_processes
from brats_lightning.runtime.device import chunk_size, to_device

Logits = Float[Tensor, "b k z y x"]
Reference = Integer[Tensor, "b z y x"] | Integer[Tensor, "b k z y x"]  # class indices, or memberships of regions
_Gradients = tuple[RegionLesions, Tensor, Tensor]  # of a region's errors by segment, with the segments of voxels


class ClassSums(NamedTuple):
    """Sums over the voxels of each sample, by channel c, of its probabilities p.

    With class indices p is a softmax, and y marks the voxels of class c; with memberships p is a sigmoid, and y marks
    the voxels of region c. The sums are of errors, not of hits, so that a perfect prediction gives exact zeros.
    """

    reference: Float[Tensor, "b k"]  # Σ y
    false_negatives: Float[Tensor, "b k"]  # Σ 1 - p where y
    false_positives: Float[Tensor, "b k"]  # Σ p where not y
    # -(1 - q)^γ log q, q being the probability of the right answer: Σ where y of a softmax, over all voxels of a
    # sigmoid; 0 without γ
    focal: Float[Tensor, "b k"]
    voxels: Float[Tensor, "b 1"]
    exclusive: bool  # whether the channels are those of a softmax, the first one of the background
    # Of each sample and region the lesions and, by segment, Σ of the probability of what is wrong about the region
    lesions: Sequence[Sequence[tuple[RegionLesions, Float[Tensor, " _"]]]] = ()

    def over_batch(self, all_processes: bool) -> "ClassSums":
        """The sums of all samples, of this process or of all that train together, as of one; without lesions."""
        names = ("reference", "false_negatives", "false_positives", "focal", "voxels")
        parts = [getattr(self, name).sum(0, keepdim=True) for name in names]
        if all_processes:
            parts = list(sum_over_processes(torch.cat(parts, 1)).split([part.shape[1] for part in parts], 1))
        return self._replace(**dict(zip(names, parts, strict=True)), lesions=())


def class_sums(
    logits: Logits, target: Reference, gamma: float | int | None = None, lesions: LesionMap | None = None
) -> ClassSums:
    """Class sums of a batch, differentiable with respect to the logits.

    Computed in chunks of voxels, in float32 (float64 for float64 logits) whatever the logits' type and layout, and
    once more in the backward pass instead of being stored: the memory needed beyond the gradient is that of a chunk
    and of each region's segments, four bytes a voxel.

    Args:
        logits: scores of k classes, or of k regions.
        target: class index of each voxel, 0 … k - 1; or memberships of the regions, 0 or 1.
        gamma: exponent of the focal sum, None to leave it out.
        lesions: those of the target, if their errors are wanted.

    Raises:
        ValueError: shapes that do not match; on a CPU also values the target cannot have.
    """
    check_shapes(logits, target.shape)
    found = [] if lesions is None else lesions.of(logits)
    exclusive = target.ndim < logits.ndim
    values = logits.shape[1] if exclusive else 2
    # Not on a GPU, which the check would stall; there a class without a channel counts as background.
    if logits.device.type == "cpu" and not 0 <= int(target.min()) <= int(target.max()) < values:
        raise ValueError(
            f"the target holds classes {target.unique().tolist()}, the logits have channels for 0 … "
            f"{values - 1}; name every label in data.labels or map it with data.label_map"
            if exclusive
            else f"the target holds {target.unique().tolist()}, but memberships of regions are 0 or 1"
        )
    regions = [(i, region) for i, sample in enumerate(found) for region in sample.regions]
    segments = [to_device(region.segments, logits.device) for _, region in regions]
    reference, negatives, positives, focal, *errors = _ClassSums.apply(logits, target, gamma, regions, *segments)
    voxels = reference.new_full((len(logits), 1), logits[0, 0].numel())
    of_region = iter(errors)
    by_lesion = [[(region, next(of_region)) for region in sample.regions] for sample in found]
    return ClassSums(reference, negatives, positives, focal, voxels, exclusive, by_lesion)


class _ClassSums(torch.autograd.Function):
    """Forward and backward of ``class_sums``; within a chunk tensors are (k, n) by channel or (n,) by voxel."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        gamma: float | None,
        regions: Sequence[tuple[int, RegionLesions]],  # with the sample of each
        *segments: Tensor,
    ) -> tuple[Tensor, ...]:
        sums_of = _softmax_sums if target.ndim < logits.ndim else _sigmoid_sums
        sums = torch.zeros(4, *logits.shape[:2], dtype=computing_dtype(logits), device=logits.device)
        errors = [sums.new_zeros(len(region.sizes) + region.outside) for _, region in regions]
        for sample, slab in _chunks(logits):
            x, y = _flat(logits[sample, :, slab], sums.dtype), target[sample, ..., slab, :, :]
            here = [i for i, (number, _) in enumerate(regions) if number == sample]
            parts, by_segment = sums_of(x, y, gamma, [(regions[i][1], segments[i][slab]) for i in here])
            for total, part in zip(sums[:, sample], parts, strict=False):  # without γ no focal sum
                total += part
            for i, part in zip(here, by_segment, strict=True):
                errors[i] += part
        ctx.save_for_backward(logits, target, *segments)
        ctx.gamma, ctx.regions = gamma, regions
        results = (*sums.unbind(), *errors)
        ctx.mark_non_differentiable(results[0])
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, *segments = ctx.saved_tensors
        gradient_of = _softmax_gradient if target.ndim < logits.ndim else _sigmoid_gradient
        by_sums = torch.stack(gradients[1:4]).unsqueeze(-1)  # (3, b, k, 1)
        lesions = list(zip(ctx.regions, segments, gradients[4:], strict=True))
        result = torch.empty_like(logits)
        for sample, slab in _chunks(logits):
            x, y = _flat(logits[sample, :, slab], by_sums.dtype), target[sample, ..., slab, :, :]
            here = [(region, part[slab], by_segment) for (i, region), part, by_segment in lesions if i == sample]
            gradient = gradient_of(x, y, ctx.gamma, by_sums[:, sample], here)
            result[sample, :, slab].copy_(gradient.view_as(result[sample, :, slab]))
        return result, *(None for _ in ctx.needs_input_grad[1:])


def sides(region: Collection[int], channels: int) -> tuple[list[int], list[int]]:
    """A softmax's channels inside a region of these classes, and those outside."""
    inside = [channel for channel in range(channels) if channel in region]
    return inside, [channel for channel in range(channels) if channel not in region]


def check_smoothing(smooth: float | int, absent_fraction: float | int) -> None:
    """Raise a ValueError for settings of a Dice loss that are out of range."""
    if smooth < 0 or not 0 < absent_fraction < float("inf"):
        raise ValueError(f"smooth must be 0 or more and absent_fraction positive, got {smooth} and {absent_fraction}")


def computing_dtype(logits: Tensor) -> torch.dtype:
    """The type in which voxels are summed."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _chunks(logits: Tensor) -> list[tuple[int, slice]]:
    """Sample and axial slab of each chunk: slices of any layout are views."""
    batch, _, depth, height, width = logits.shape
    step = max(1, chunk_size(logits.device) // (height * width))
    return [(sample, slice(z, z + step)) for sample in range(batch) for z in range(0, depth, step)]


def _flat(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy (k, n)."""
    return torch.empty(logits.shape, dtype=dtype, device=logits.device).copy_(logits).view(len(logits), -1)


def _by_segment(
    errors: Float[Tensor, " voxels"], region: RegionLesions, segments: Int32[Tensor, "z y x"]
) -> Float[Tensor, " segments"]:
    """Errors summed by segment.

    By rows first: a float32 total of a million voxels would lose small summands, and on a GPU all voxels of a segment
    would queue to be added to one number.
    """
    rows = errors.view(-1, segments.shape[-1])
    sums = rows.new_zeros(len(rows), len(region.sizes) + region.outside)
    return sums.scatter_add_(1, segments.reshape(rows.shape).long(), rows).sum(0)


# ---- of a softmax


def _softmax_sums(
    x: Tensor, target: Tensor, gamma: float | None, lesions: Sequence[tuple[RegionLesions, Tensor]]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    p, log_p, y = _softmax(x, target)
    errors = []
    for region, segments in lesions:
        within, without = (reduce(torch.add, [p[c] for c in side]) for side in sides(region.channels, len(p)))
        wrong = torch.where(segments.reshape(-1) < len(region.sizes), without, within)
        errors.append(_by_segment(wrong, region, segments))
    others = p.sub_(p * y)
    miss = others.sum(0)  # 1 - p of the reference class, exact where that rounds to 1
    sums: tuple[Tensor, ...] = y.sum(1), (miss * y).sum(1), others.sum(1)
    if gamma is not None:
        sums = *sums, (miss.pow_(gamma).mul_(log_p) * y).sum(1).neg_()
    return sums, errors


def _softmax_gradient(
    x: Tensor, target: Tensor, gamma: float | None, by_sums: Tensor, lesions: Sequence[_Gradients]
) -> Tensor:
    by_negatives, by_positives, by_focal = by_sums
    p, log_p, y = _softmax(x, target)
    # Through the softmax a gradient g by p becomes p (g - Σ p g), and one h by log p_y becomes h (y - p).
    g = by_positives - y * (by_positives + by_negatives)
    for region, segments, by_segment in lesions:
        # 1 - p of a region's lesions falls as its channels' p rises
        n = len(region.sizes)
        by_p = torch.cat([-by_segment[:n], by_segment[n:]]).index_select(0, segments.reshape(-1))
        for channel in region.channels:
            g[channel] += by_p
    if gamma is None:
        return g.sub_((p * g).sum(0)).mul_(p)
    hit = p * y
    # h: γ (1 - p)^(γ-1) p log p - (1 - p)^γ
    miss = (p - hit).sum(0).clamp_min_(torch.finfo(p.dtype).tiny)
    h = log_p.mul_(hit.sum(0)).mul_(gamma).sub_(miss).mul_(miss.pow(gamma - 1))
    h.mul_((y * by_focal).sum(0))
    return g.sub_((p * g).sum(0).add_(h)).mul_(p).add_(y.mul_(h))


def _softmax(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (k, n) in place of x, log-probability of the reference class (n,), one-hot reference (k, n).

    One-hot numbers, since operations on booleans and indices take several times as long on a CPU.
    """
    y = target.reshape(-1).to(x.dtype).repeat(len(x), 1).eq_(torch.arange(len(x), device=x.device).unsqueeze(1))
    x.sub_(x.amax(0))
    log_p = (x * y).sum(0)
    p = x.exp_()
    total = p.sum(0)
    return p.div_(total), log_p.sub_(total.log()), y


# ---- of sigmoids: m = σ(x) where y is 0 and σ(-x) where it is 1, the probability of the wrong answer


def _sigmoid_sums(
    x: Tensor, target: Tensor, gamma: float | None, lesions: Sequence[tuple[RegionLesions, Tensor]]
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    y, _, wrong = _signed(x, target)
    miss = wrong.sigmoid()
    errors = [_by_segment(miss[region.channels[0]], region, segments) for region, segments in lesions]
    negatives = (miss * y).sum(1)
    sums: tuple[Tensor, ...] = y.sum(1), negatives, miss.sum(1).sub_(negatives)
    if gamma is not None:
        sums = *sums, miss.pow_(gamma).mul_(_softplus(wrong)).sum(1)
    return sums, errors


def _sigmoid_gradient(
    x: Tensor, target: Tensor, gamma: float | None, by_sums: Tensor, lesions: Sequence[_Gradients]
) -> Tensor:
    by_negatives, by_positives, by_focal = by_sums
    y, sign, wrong = _signed(x, target)
    miss = wrong.sigmoid()
    hit = 1 - miss
    g = y.mul_(by_negatives - by_positives).add_(by_positives)
    for region, segments, by_segment in lesions:
        g[region.channels[0]] += by_segment.index_select(0, segments.reshape(-1))
    g.mul_(miss).mul_(hit)
    if gamma is not None:
        # of m^γ softplus: m^γ (m + γ (1 - m) softplus)
        g.add_(_softplus(wrong).mul_(hit).mul_(gamma).add_(miss).mul_(miss.pow_(gamma)).mul_(by_focal))
    return g.mul_(sign)


def _signed(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memberships as numbers, 1 - 2y, and in place of x the logit (1 - 2y) x of the wrong answer; (k, n) each."""
    y = target.reshape(len(x), -1).to(x.dtype)
    sign = 1 - 2 * y
    return y, sign, x.mul_(sign)


def _softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=40)  # above, the difference is beyond float64


class ClassSumsLoss(nn.Module, ABC):
    """A loss that is a function of the class sums alone, so that several can share one pass over the voxels.

    Args:
        class_weights: one non-negative weight per class, background first, or per region; only their ratios matter.
            None: all equal.
    """

    gamma: float | None = None  # of the focal sum, for losses that read it
    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float | int] | None = None) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor([float(weight) for weight in class_weights])
        if weights is not None and not (weights.isfinite().all() and weights.min() >= 0 and weights.sum() > 0):
            raise ValueError(
                f"class_weights must be finite, none negative and not all 0, got {weights.tolist()}; "
                "give one per class, background first, or one per region"
            )
        # Not in the state dict: a checkpoint must load under other weights.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Logits, target: Reference) -> Float[Tensor, ""]:
        """The loss of a batch of logits and class indices, or memberships of regions."""
        return self.from_sums(class_sums(logits, target, self.gamma))

    @abstractmethod
    def from_sums(self, sums: ClassSums) -> Float[Tensor, ""]:
        """The loss, of sums made with this loss's ``gamma``."""

    def weights_of(self, sums: ClassSums) -> Float[Tensor, " k"]:
        """Weights of the channels, ones if none were given."""
        classes = sums.reference.shape[1]
        if self.class_weights is None:
            return sums.reference.new_ones(classes)
        if len(self.class_weights) != classes:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} entries, the logits have {classes} channels; "
                "give one per class, background first, or with target=regions one per region"
            )
        return self.class_weights.to(sums.reference)
