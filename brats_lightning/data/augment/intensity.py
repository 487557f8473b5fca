"""Random changes of a patch's intensities, channel by channel, in place.

Voxels that are exactly 0 lie outside the brain (or outside the volume) and stay exactly 0 through every change, so that
augmented patches look like real ones; means, deviations and extremes are those of the other voxels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn import functional as F

from brats_lightning.core.checks import Number, as_probability, as_range
from brats_lightning.data.augment.randomness import happens, log_uniform, on_device, uniform


@dataclass
class IntensityChange(ABC):
    """A change drawn for a sample with probability ``p``, and then for each of its channels with ``p_channel``.

    Its strength, a range [least, most], is drawn anew for each channel.
    """

    p: Number
    p_channel: Number = field(default=1.0, kw_only=True)
    above: ClassVar[Number] = 0  # what both ends of the range must exceed

    def __post_init__(self) -> None:
        for name, value in vars(self).copy().items():
            key = f"augmentation: {type(self).__name__}.{name}"
            if name in ("p", "p_channel"):
                setattr(self, name, as_probability(key, value))
            elif not isinstance(value, bool):
                setattr(self, name, as_range(key, value, self.above))

    def __call__(self, image: Float32[Tensor, "c z y x"], generator: torch.Generator) -> None:
        """Change the image of one sample **in place**."""
        if not happens(self.p, generator):
            return
        for channel in image:
            if happens(self.p_channel, generator):
                brain = channel.sign().abs_()  # in float32, made and applied faster than a bool mask
                self.change(channel, brain, generator)
                channel.mul_(brain)

    @abstractmethod
    def change(
        self, channel: Float32[Tensor, "z y x"], brain: Float32[Tensor, "z y x"], generator: torch.Generator
    ) -> None:
        """Change one channel in place; ``brain`` is 1 inside and 0 outside, where the result is set to 0 afterwards."""


@dataclass
class GaussianNoise(IntensityChange):
    """Adds white noise; ``std``: [least, most] standard deviation, uniform, in units of the normalised image."""

    std: Sequence[Number] = (0.0, 0.1)
    above = -math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std[0] < 0:
            raise ValueError(f"augmentation: GaussianNoise.std must not be negative, got {list(self.std)}")

    def change(self, channel: Tensor, brain: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002
        """``v + std · N(0, 1)``"""
        std = uniform(self.std, generator)
        noise = torch.randn(channel.shape, generator=on_device(generator, channel.device), device=channel.device)
        channel.add_(noise, alpha=std)


@dataclass
class GaussianBlur(IntensityChange):
    """Smooths; ``sigma``: [least, most] standard deviation in voxels, uniform, drawn for each axis."""

    sigma: Sequence[Number] = (0.5, 1.0)

    def change(self, channel: Tensor, brain: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002
        """A normalised Gaussian cut at 3 sigma along each axis; the faces of the patch are continued."""
        for axis in range(3):
            blur_axis(channel, axis, uniform(self.sigma, generator))


@dataclass
class Brightness(IntensityChange):
    """Multiplies; ``factor``: [least, most], log-uniform."""

    factor: Sequence[Number] = (0.75, 1.25)

    def change(self, channel: Tensor, brain: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002
        """``factor · v``"""
        channel.mul_(log_uniform(self.factor, generator))


@dataclass
class Shift(IntensityChange):
    """Adds a constant; ``offset``: [least, most], uniform, in units of the normalised image."""

    offset: Sequence[Number] = (-0.1, 0.1)
    above = -math.inf

    def change(self, channel: Tensor, brain: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002
        """``v + offset``"""
        channel.add_(uniform(self.offset, generator))


@dataclass
class Contrast(IntensityChange):
    """Stretches around the mean, which stays; ``factor``: [least, most], log-uniform."""

    factor: Sequence[Number] = (0.75, 1.25)

    def change(self, channel: Tensor, brain: Tensor, generator: torch.Generator) -> None:
        """``mean + factor · (v − mean)``"""
        factor = log_uniform(self.factor, generator)
        mean = channel.sum() / brain.sum().clamp(min=1)
        channel.mul_(factor).add_(mean * (1 - factor))


@dataclass
class LowResolution(IntensityChange):
    """Takes a channel to a coarser grid by nearest neighbour and back by linear interpolation.

    ``zoom``: [least, most] ratio of the coarse grid's length to the patch's, uniform, the same along all axes.
    """

    zoom: Sequence[Number] = (0.5, 1.0)

    def change(self, channel: Tensor, brain: Tensor, generator: torch.Generator) -> None:  # noqa: ARG002
        """Down and up again."""
        zoom = uniform(self.zoom, generator)
        coarse = [max(1, round(length * zoom)) for length in channel.shape]
        small = F.interpolate(channel[None, None], coarse, mode="nearest-exact")
        channel.copy_(F.interpolate(small, channel.shape, mode="trilinear")[0, 0])


@dataclass
class Gamma(IntensityChange):
    """Raises the channel, taken to 0 … 1 by its extremes, to a power; its mean and standard deviation are kept."""

    gamma: Sequence[Number] = (0.7, 1.5)  # [least, most] exponent, log-uniform
    invert: bool = False  # apply the power to the negative image, so that it acts on the bright end, not the dark

    def change(self, channel: Tensor, brain: Tensor, generator: torch.Generator) -> None:
        """``((v − min) / (max − min)) ^ gamma``, then the former mean and standard deviation."""
        gamma = log_uniform(self.gamma, generator)
        voxels = brain.sum().clamp(min=1)
        mean, std = _moments(channel, voxels)
        low, high = channel.aminmax()
        start, end = (high, low) if self.invert else (low, high)
        span = torch.where(high > low, end - start, 1)
        channel.sub_(start).div_(span).log_().mul_(gamma).exp_().mul_(brain)  # faster than pow
        new_mean, new_std = _moments(channel, voxels)
        scale = std / new_std.clamp(min=torch.finfo(torch.float32).tiny) * span.sign()
        channel.sub_(new_mean).mul_(scale).add_(mean)


def blur_axis(channel: Float32[Tensor, "z y x"], axis: int, sigma: float) -> None:
    """Convolve in place along one axis with a Gaussian of ``sigma`` voxels, cut at 3 sigma and normalised.

    Shift and add, which on a CPU is faster than a convolution; beyond its faces the patch is continued by its first
    and last layer.
    """
    length, radius = channel.shape[axis], math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    before, behind = (channel.narrow(axis, layer, 1) for layer in (0, length - 1))
    source = torch.cat([*[before] * radius, channel, *[behind] * radius], axis)
    channel.mul_(weights[0] / total)
    for offset in range(1, radius + 1):
        for start in (radius - offset, radius + offset):
            channel.add_(source.narrow(axis, start, length), alpha=weights[offset] / total)


def _moments(channel: Tensor, voxels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the brain, whose complement is 0; sum and dot are the fastest reductions."""
    flat = channel.reshape(-1)
    mean = flat.sum() / voxels
    return mean, (torch.dot(flat, flat) / voxels - mean * mean).clamp(min=0).sqrt()
