"""Random scalars of the augmentation, drawn on the generator's device (the CPU), so that nothing waits for a GPU."""

import math
from collections.abc import Sequence

import torch

Number = int | float  # a configuration writes 0, 1 and 30 without a point


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


def as_probability(key: str, value: Number) -> float:
    """``value``, or a ValueError that names the key."""
    if not 0 <= value <= 1:
        raise ValueError(f"augmentation: {key} is a probability in [0, 1], got {value}")
    return float(value)


def as_range(key: str, values: Sequence[Number], above: Number = -math.inf) -> tuple[float, float]:
    """``values`` as (least, most), or a ValueError that names the key; both must be more than ``above``."""
    low, high = values if len(values) == 2 else (math.nan, math.nan)
    if not above < low <= high < math.inf:
        limit = "" if above == -math.inf else f", both more than {above:g}"
        raise ValueError(f"augmentation: {key} must be [least, most]{limit}, got {list(values)}")
    return float(low), float(high)
