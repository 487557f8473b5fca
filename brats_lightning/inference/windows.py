"""Predicting whole volumes with networks trained on patches: overlapping windows with Gaussian weights."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor
from torch.nn import functional as F

from brats_lightning.runtime.device import on_host

Network = Callable[[Tensor], Tensor]
Advance = Callable[[float], None]  # is called with the fraction of the work done since the last call


def window_starts(length: int, window: int, overlap: int | float) -> list[int]:
    """Starts of the windows along one axis, at equal steps; the last one is moved back to end at the border."""
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((length - window) / step) + 1
    return [min(i * step, length - window) for i in range(count)]


def gaussian_importance(window: Sequence[int], sigma_scale: float = 0.125) -> Float[Tensor, "z y x"]:
    """Weight of each voxel of a window: a Gaussian, 1 at the centre, with σ = ``sigma_scale`` · the window's length.

    Never below 0.001 (as in MONAI), so that a corner covered by a single window keeps its precision.
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
        window: voxels (z, y, x) the network sees at once; ideally the patch size it was trained with.
        overlap: fraction of a window that overlaps its neighbours, 0 ≤ overlap < 1.
        batch_size: windows per forward pass.
        mirror_axes: spatial axes (0 = z, 1 = y, 2 = x) of test-time augmentation by mirroring: logits are averaged over
            all combinations of flips, which takes 2ⁿ forward passes for n axes.
        stretch: fraction by which a window may grow along an axis to span the whole volume, which saves a second window
            in almost the same place. Lengths stay multiples of 16, which networks can halve four times.
    """

    window: Sequence[int]
    overlap: int | float = 0.5
    batch_size: int = 1
    mirror_axes: Sequence[int] = ()
    stretch: int | float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", tuple(self.window))
        object.__setattr__(self, "mirror_axes", tuple(self.mirror_axes))
        if len(self.window) != 3 or not all(isinstance(n, int) and n > 0 for n in self.window):
            raise ValueError(
                f"inference.window must be three positive whole lengths (z, y, x), got {list(self.window)}"
            )
        if not 0 <= self.overlap < 1:
            raise ValueError(f"inference.overlap must be at least 0 and below 1, got {self.overlap}")
        if self.batch_size < 1:
            raise ValueError(f"inference.batch_size must be at least 1, got {self.batch_size}")
        if not set(self.mirror_axes) <= {0, 1, 2} or len(set(self.mirror_axes)) < len(self.mirror_axes):
            raise ValueError(
                f"inference.mirror_axes may hold 0 (z), 1 (y) and 2 (x) once, got {list(self.mirror_axes)}"
            )
        if self.stretch < 0:
            raise ValueError(f"inference.stretch must be 0 or more, got {self.stretch}")

    def __call__(
        self,
        network: Network,
        image: Shaped[Tensor, "c z y x"],
        advance: Advance | None = None,
        background: Sequence[int | float] | None = None,
    ) -> Float32[Tensor, "k z y x"]:
        """Weighted mean of the windows' logits, on the volume's device; needs one more float32 per voxel.

        Windows keep the image's type, so that the network can normalise them one by one.

        Windows with 0 in every channel (no brain) are not computed. A voxel in no other window gets the logits
        ``background``, by default 0 in the first channel and -1000 in all others.

        A volume smaller than the window is padded with zeros on both sides.
        """
        size = image.shape[1:]
        window = [self._stretched(w, n) for w, n in zip(self.window, size, strict=True)]
        missing = [max(0, w - n) for w, n in zip(window, size, strict=True)]
        before = [m // 2 for m in missing]
        if any(missing):
            # F.pad expects the last axis first.
            pads = [(b, m - b) for b, m in zip(before, missing, strict=True)]
            image = F.pad(image, [p for pair in reversed(pads) for p in pair])
        padded = image.shape[1:]

        starts = itertools.product(*map(window_starts, padded, window, itertools.repeat(self.overlap)))
        places = [tuple(slice(s, s + w) for s, w in zip(start, window, strict=True)) for start in starts]
        inside = on_host(image.any(dim=0))  # one copy instead of one for each window
        places = [place for place in places if inside[place].any()]

        importance = gaussian_importance(window).to(image.device)
        weight = torch.zeros(padded, dtype=torch.float32, device=image.device)
        total: Tensor | None = None
        for first in range(0, len(places), self.batch_size):
            group = places[first : first + self.batch_size]
            logits = self._mirrored(network, torch.stack([image[(slice(None), *place)] for place in group]))
            if total is None:
                total = torch.zeros((logits.shape[1], *padded), dtype=torch.float32, device=image.device)
            for place, window_logits in zip(group, logits, strict=True):
                total[(slice(None), *place)].addcmul_(window_logits.float(), importance)
                weight[place] += importance
            if advance is not None:
                advance(len(group) / len(places))
        if total is None:  # no brain anywhere: one forward pass gives the number of channels
            channels = network(image.new_zeros((1, image.shape[0], *window))).shape[1]
            total = torch.zeros((channels, *padded), dtype=torch.float32, device=image.device)
        unseen = weight == 0
        total /= weight.clamp_(min=1e-3)
        for channel, logit in enumerate(background or (0, *[-1000] * (len(total) - 1))):
            total[channel].masked_fill_(unseen, logit)
        return total[(slice(None), *(slice(b, b + n) for b, n in zip(before, size, strict=True)))]

    def _stretched(self, window: int, length: int) -> int:
        spanning = -(-length // 16) * 16
        return spanning if window < length and spanning <= window * (1 + self.stretch) else window

    def _mirrored(self, network: Network, windows: Shaped[Tensor, "b c z y x"]) -> Float[Tensor, "b k z y x"]:
        logits = network(windows)
        combinations = [
            [axis + 2 for axis in axes]
            for n in range(1, len(self.mirror_axes) + 1)
            for axes in itertools.combinations(self.mirror_axes, n)
        ]
        for dims in combinations:
            logits = logits + network(windows.flip(dims)).flip(dims)
        return logits / (len(combinations) + 1) if combinations else logits
