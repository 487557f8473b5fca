"""Learning-rate schedules, as factors of the optimiser's own learning rate."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: float = 0.05, final: float = 0.01) -> LambdaLR:
    """Linear rise over ``warmup · steps``, then half a cosine down to ``final`` of the peak at the last step."""
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = min(1.0, (step - rise) / max(1, steps - rise))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def polynomial(optimizer: Optimizer, steps: int, power: float = 0.9) -> LambdaLR:
    """(1 - step/steps)^power, the schedule of nnU-Net."""
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** power)


def constant(optimizer: Optimizer, steps: int) -> LambdaLR:  # noqa: ARG001
    """The optimiser's learning rate at every step."""
    return LambdaLR(optimizer, lambda _: 1.0)
