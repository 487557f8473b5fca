"""Learning-rate schedules: factors of the optimiser's learning rate by the completed fraction of the run.

``progress`` returns the fraction, 0 … 1, completed before a step.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

TrainedFraction = Callable[[int], float]


def warmup_cosine(
    optimizer: Optimizer, progress: TrainedFraction, warmup: int | float = 0.05, final: int | float = 0.01
) -> LambdaLR:
    """Linear rise from ``final`` to 1 over the fraction ``warmup`` of the run, then half a cosine down to ``final``.

    Raises:
        ValueError: fractions outside 0 … 1.
    """
    for name, fraction in (("warmup", warmup), ("final", final)):
        if not 0 <= fraction <= 1:
            raise ValueError(f"scheduler.{name} is a fraction from 0 to 1, got {fraction}")

    def factor(step: int) -> float:
        done = progress(step)
        if done < warmup:
            return final + (1 - final) * done / warmup
        fallen = (done - warmup) / (1 - warmup) if warmup < 1 else 0.0  # a run of warm-up only ends at the peak
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fallen))

    return LambdaLR(optimizer, factor)


def polynomial(optimizer: Optimizer, progress: TrainedFraction, power: int | float = 0.9) -> LambdaLR:
    """(1 - progress)^power, as in nnU-Net.

    Raises:
        ValueError: a negative power, with which the rate would grow without bound.
    """
    if power < 0:
        raise ValueError(f"scheduler.power must be 0 or more, got {power}")
    return LambdaLR(optimizer, lambda step: (1 - progress(step)) ** power)


def constant(optimizer: Optimizer, progress: TrainedFraction) -> LambdaLR:  # noqa: ARG001
    """The optimiser's learning rate at every step."""
    return LambdaLR(optimizer, lambda _: 1.0)
