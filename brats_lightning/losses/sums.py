"""Sums over voxels by class: all that Dice and focal losses need of a batch, from one pass over its logits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

# Voxels worked on at a time. On a CPU the temporaries of a chunk stay in the cache; on a GPU few launches matter more.
_CHUNK_CPU, _CHUNK_GPU = 1 << 17, 1 << 22


class ClassSums(NamedTuple):
    """Sums over the voxels of each sample, by class, of the softmax p; y is a voxel's reference class.

    Written with what is wrong rather than what is right, so that a perfect prediction gives exact zeros.
    """

    reference: Float[Tensor, "b k"]  # voxels with y = c
    false_negatives: Float[Tensor, "b k"]  # Σ 1 - p_c where y = c
    false_positives: Float[Tensor, "b k"]  # Σ p_c where y ≠ c
    focal: Float[Tensor, "b k"]  # Σ -(1 - p_c)^γ log p_c where y = c; 0 without γ


def class_sums(
    logits: Float[Tensor, "b k z y x"], target: Integer[Tensor, "b z y x"], gamma: float | int | None = None
) -> ClassSums:
    """Class sums of a batch, differentiable with respect to the logits.

    Computed in chunks of voxels, in float32 (float64 for float64 logits) whatever the logits' type and layout, and
    once more in the backward pass instead of being stored: the memory needed beyond the gradient is that of a chunk.

    Args:
        logits: scores of k classes.
        target: class index of each voxel, 0 … k - 1.
        gamma: exponent of the focal sum, None to leave it out.

    Raises:
        ValueError: shapes that do not match; on a CPU also a class index the logits have no channel for.
    """
    if logits.shape[:1] + logits.shape[2:] != target.shape:
        raise ValueError(
            f"logits (b, k, z, y, x) and target (b, z, y, x) must agree, got {tuple(logits.shape)} and "
            f"{tuple(target.shape)}; the target holds class indices without a channel"
        )
    # Not on a GPU, which the check would stall; there a class without a channel counts as none.
    if logits.device.type == "cpu" and not 0 <= int(target.min()) <= int(target.max()) < logits.shape[1]:
        raise ValueError(
            f"the target holds classes {target.unique().tolist()}, the logits have channels for 0 … "
            f"{logits.shape[1] - 1}; name every label in data.labels or map it with data.label_map"
        )
    return ClassSums(*_ClassSums.apply(logits, target, gamma))


class _ClassSums(torch.autograd.Function):
    """Forward and backward of ``class_sums``; within a chunk tensors are (k, n) by class or (n,) by voxel."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, gamma: float | None) -> tuple[Tensor, ...]:
        sums = torch.zeros(4, *logits.shape[:2], dtype=_computing_dtype(logits), device=logits.device)
        for sample, slab in _chunks(logits):
            p, log_p, y = _softmax(logits[sample, :, slab], target[sample, slab], sums.dtype)
            others = p.sub_(p * y)
            miss = others.sum(0)  # 1 - p of the reference class, exact where that rounds to 1
            sums[0, sample] += y.sum(1)
            sums[1, sample] += (miss * y).sum(1)
            sums[2, sample] += others.sum(1)
            if gamma is not None:
                sums[3, sample] -= (miss.pow_(gamma).mul_(log_p) * y).sum(1)
        ctx.save_for_backward(logits, target)
        ctx.gamma = gamma
        results = sums.unbind()
        ctx.mark_non_differentiable(results[0])
        return results

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, target = ctx.saved_tensors
        _, by_negatives, by_positives, by_focal = (gradient.unsqueeze(2) for gradient in gradients)  # (b, k, 1)
        result = torch.empty_like(logits)
        for sample, slab in _chunks(logits):
            p, log_p, y = _softmax(logits[sample, :, slab], target[sample, slab], by_positives.dtype)
            # Through the softmax a gradient g by p becomes p (g - Σ p g), and one h by log p_y becomes h (y - p).
            g = by_positives[sample] - y * (by_positives[sample] + by_negatives[sample])
            if ctx.gamma is None:
                g.sub_((p * g).sum(0)).mul_(p)
            else:
                hit = p * y
                # h: γ (1 - p)^(γ-1) p log p - (1 - p)^γ
                miss = (p - hit).sum(0).clamp_min_(torch.finfo(p.dtype).tiny)
                h = log_p.mul_(hit.sum(0)).mul_(ctx.gamma).sub_(miss).mul_(miss.pow(ctx.gamma - 1))
                h.mul_((y * by_focal[sample]).sum(0))
                g.sub_((p * g).sum(0).add_(h)).mul_(p).add_(y.mul_(h))
            result[sample, :, slab].copy_(g.view_as(result[sample, :, slab]))
        return result, None, None


def _computing_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _chunks(logits: Tensor) -> list[tuple[int, slice]]:
    """Sample and axial slab of each chunk: slices of any layout are views."""
    batch, _, depth, height, width = logits.shape
    voxels = _CHUNK_CPU if logits.device.type == "cpu" else _CHUNK_GPU
    step = max(1, voxels // (height * width))
    return [(sample, slice(z, z + step)) for sample in range(batch) for z in range(0, depth, step)]


def _softmax(logits: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (k, n), log-probability of the reference class (n,), one-hot reference (k, n) as numbers.

    One-hot numbers, since operations on booleans and indices take several times as long on a CPU.
    """
    classes = logits.shape[0]
    x = torch.empty(logits.shape, dtype=dtype, device=logits.device).copy_(logits).view(classes, -1)
    y = target.reshape(-1).to(dtype).repeat(classes, 1).eq_(torch.arange(classes, device=x.device).unsqueeze(1))
    x.sub_(x.amax(0))
    log_p = (x * y).sum(0)
    p = x.exp_()
    total = p.sum(0)
    return p.div_(total), log_p.sub_(total.log()), y


class ClassSumsLoss(nn.Module):
    """A loss that is a function of the class sums alone, so that several can share one pass over the voxels.

    Args:
        class_weights: one non-negative weight per class, background first; only their ratios matter. None: all equal.
    """

    gamma: float | None = None  # of the focal sum, for losses that read it
    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float | int] | None = None) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor([float(weight) for weight in class_weights])
        if weights is not None and not (weights.isfinite().all() and weights.min() >= 0 and weights.sum() > 0):
            raise ValueError(
                f"class_weights must be finite, none negative and not all 0, got {weights.tolist()}; "
                "give one per class, background first"
            )
        # Not in the state dict: a checkpoint must load under other weights.
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Float[Tensor, "b k z y x"], target: Integer[Tensor, "b z y x"]) -> Float[Tensor, ""]:
        """The loss of a batch of logits and class indices."""
        return self.from_sums(class_sums(logits, target, self.gamma))

    def from_sums(self, sums: ClassSums) -> Float[Tensor, ""]:
        """The loss, of sums made with this loss's ``gamma``."""
        raise NotImplementedError

    def weights_of(self, sums: ClassSums) -> Float[Tensor, " k"]:
        """Weights of the classes, ones if none were given."""
        classes = sums.reference.shape[1]
        if self.class_weights is None:
            return sums.reference.new_ones(classes)
        if len(self.class_weights) != classes:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} entries, the logits have {classes} channels; "
                "give one per class, background first"
            )
        return self.class_weights.to(sums.reference)
