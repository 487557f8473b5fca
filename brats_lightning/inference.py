"""Whole volumes from a network that sees patches: overlapping windows, blended by a Gaussian."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Network = Callable[[Tensor], Tensor]


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Starts of the windows along one axis: evenly stepped, the last one moved back to end at the border."""
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((length - window) / step) + 1
    return [min(i * step, length - window) for i in range(count)]


def gaussian_importance(window: Sequence[int], sigma_scale: float = 0.125) -> Float[Tensor, "z y x"]:
    """Weight of each voxel of a window: a Gaussian, 1 at the centre, σ being ``sigma_scale`` of the window's length.

    Never below 0.001 (as in MONAI), so that a corner seen by one window alone keeps its precision.
    """
    axes = []
    for length in window:
        position = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
        axes.append(torch.exp(-0.5 * (position / (length * sigma_scale)) ** 2))
    importance = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    return importance.clamp_(min=1e-3)


@dataclass(frozen=True)
class SlidingWindow:
    """How a whole volume is predicted.

    Args:
        window: voxels (z, y, x) the network sees at once; best the size it was trained on.
        overlap: share of a window that neighbouring windows share, 0 ≤ overlap < 1.
        batch_size: windows per forward pass.
        mirror_axes: spatial axes (0 = z, 1 = y, 2 = x) of mirroring test-time augmentation: logits are averaged over
            all combinations of flips, 2ⁿ forward passes for n axes.
    """

    window: Sequence[int]
    overlap: int | float = 0.5
    batch_size: int = 1
    mirror_axes: Sequence[int] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", tuple(self.window))
        object.__setattr__(self, "mirror_axes", tuple(self.mirror_axes))
        if len(self.window) != 3 or min(self.window) < 1:
            raise ValueError(f"inference.window must be three positive lengths (z, y, x), got {list(self.window)}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"inference.overlap must be at least 0 and below 1, got {self.overlap}")
        if self.batch_size < 1:
            raise ValueError(f"inference.batch_size must be at least 1, got {self.batch_size}")
        if not set(self.mirror_axes) <= {0, 1, 2}:
            raise ValueError(f"inference.mirror_axes may hold 0 (z), 1 (y) and 2 (x), got {list(self.mirror_axes)}")

    def __call__(self, network: Network, image: Float[Tensor, "c z y x"]) -> Float[Tensor, "k z y x"]:
        """Blended logits of a volume, float32, on the volume's device.

        Windows in which every channel is 0 (nothing of the brain) are not computed; a voxel that only such windows
        cover gets the logit 0 for the background (class 0) and -1000 for all other classes.

        A volume smaller than the window is padded with zeros on both sides, as far as needed.
        """
        size = image.shape[1:]
        missing = [max(0, w - n) for w, n in zip(self.window, size, strict=True)]
        before = [m // 2 for m in missing]
        if any(missing):
            # F.pad takes the last axis first.
            pads = [(b, m - b) for b, m in zip(before, missing, strict=True)]
            image = F.pad(image, [p for pair in reversed(pads) for p in pair])
        padded = image.shape[1:]

        starts = itertools.product(*map(window_starts, padded, self.window, itertools.repeat(self.overlap)))
        places = [tuple(slice(s, s + w) for s, w in zip(start, self.window, strict=True)) for start in starts]
        inside = image.any(dim=0)
        places = [place for place in places if inside[place].any()]

        importance = gaussian_importance(self.window).to(image.device)
        weight = torch.zeros(padded, dtype=torch.float32, device=image.device)
        total: Tensor | None = None
        for first in range(0, len(places), self.batch_size):
            group = places[first : first + self.batch_size]
            logits = self._mirrored(network, torch.stack([image[(slice(None), *place)] for place in group]))
            if total is None:
                total = torch.zeros((logits.shape[1], *padded), dtype=torch.float32, device=image.device)
            for place, window_logits in zip(group, logits, strict=True):
                total[(slice(None), *place)] += window_logits.float() * importance
                weight[place] += importance
        if total is None:  # no brain anywhere: one forward pass tells how many classes there are
            classes = network(torch.zeros((1, image.shape[0], *self.window), device=image.device)).shape[1]
            total = torch.zeros((classes, *padded), dtype=torch.float32, device=image.device)
        total /= weight.clamp(min=1e-3)
        total[1:, weight == 0] = -1000.0
        return total[(slice(None), *(slice(b, b + n) for b, n in zip(before, size, strict=True)))]

    def _mirrored(self, network: Network, windows: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k z y x"]:
        logits = network(windows)
        combinations = [
            [axis + 2 for axis in axes]
            for n in range(1, len(self.mirror_axes) + 1)
            for axes in itertools.combinations(self.mirror_axes, n)
        ]
        for dims in combinations:
            logits = logits + network(windows.flip(dims)).flip(dims)
        return logits / (len(combinations) + 1)
