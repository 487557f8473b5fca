"""Random scalars of the augmentation, drawn on the generator's device (the CPU), so that nothing waits for a GPU."""

import math
from collections.abc import Sequence

import torch

from brats_lightning.core.checks import Number


def happens(p: float, generator: torch.Generator) -> bool:
    """True with probability ``p``."""
    return uniform((0.0, 1.0), generator) < p


def uniform(bounds: Sequence[Number], generator: torch.Generator) -> float:
    """Uniform in [least, most)."""
    low, high = bounds
    draw = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * draw.item()


def log_uniform(bounds: Sequence[Number], generator: torch.Generator) -> float:
    """Uniform on the logarithm: a factor of 1/2 is as likely as one of 2."""
    low, high = bounds
    return math.exp(uniform((math.log(low), math.log(high)), generator))


def new_seed(generator: torch.Generator) -> int:
    """A seed for another generator."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device).item())


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator if it is there, else a new one there with a seed from it: a GPU's numbers differ from the CPU's."""
    return generator if generator.device == device else torch.Generator(device).manual_seed(new_seed(generator))
