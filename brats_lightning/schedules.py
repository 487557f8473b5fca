"""Learning-rate schedules, as factors of the optimiser's own learning rate over the share of the run that is done.

``progress`` gives that share, 0 … 1, before a step: of the steps or of the time the run may take.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Progress = Callable[[int], float]


def warmup_cosine(optimizer: Optimizer, progress: Progress, warmup: float = 0.05, final: float = 0.01) -> LambdaLR:
    """Linear rise from ``final`` to 1 over the share ``warmup`` of the run, then half a cosine down to ``final``."""

    def factor(step: int) -> float:
        done = progress(step)
        if done < warmup:
            return final + (1 - final) * done / warmup
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    return LambdaLR(optimizer, factor)


def polynomial(optimizer: Optimizer, progress: Progress, power: float = 0.9) -> LambdaLR:
    """(1 - progress)^power, the schedule of nnU-Net."""
    return LambdaLR(optimizer, lambda step: (1 - progress(step)) ** power)


def constant(optimizer: Optimizer, progress: Progress) -> LambdaLR:  # noqa: ARG001
    """The optimiser's learning rate at every step."""
    return LambdaLR(optimizer, lambda _: 1.0)
