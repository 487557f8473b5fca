"""The memory and the time of training steps, measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from brats_lightning.data.datamodule import CaseData
from brats_lightning.runtime.memory import peak_memory
from brats_lightning.training.footprint import TYPES
from brats_lightning.training.module import Segmentation

STEPS = 4  # of which the first, in which much is set up, is not timed


@dataclass(frozen=True)
class Measured:
    """What a training took."""

    memory: int  # most bytes: of a GPU those that torch had reserved, of a CPU those of the whole process
    seconds: float  # of a step, the shortest


class Stopwatch(pl.Callback):
    """Notes when each step of a training ended; on a GPU it waits for the step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:  # noqa: ARG002
        """Note the time."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self.times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of the shortest step, without the first."""
        return min(later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False))


def measure_steps(trainer: pl.Trainer, model: Segmentation, data: CaseData) -> Measured:
    """Train and measure; in a process that has done nothing else, since of a CPU the most it ever held counts.

    Args:
        trainer: of `STEPS` steps without validation.
        model: to be trained.
        data: prepared.
    """
    watch = Stopwatch()
    trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    trainer.fit(model, datamodule=data)
    device = trainer.strategy.root_device
    memory = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else peak_memory()
    return Measured(memory, watch.seconds)


def seconds_per_flop(network: nn.Module, batch: Sequence[int], precision: str | int, device: torch.device) -> float:
    """Of the passes of a network, forward and backward: the faster of two, after one that does not count.

    Args:
        network: in training mode.
        batch: (b, c, z, y, x) of the images.
        precision: as Lightning names it.
        device: that computes.
    """
    name, _, kind = str(precision).partition("-")
    network.to(device, TYPES[name] if kind == "true" else torch.float32)
    image = torch.zeros(tuple(batch), dtype=next(network.parameters()).dtype, device=device)
    image = image.contiguous(memory_format=torch.channels_last_3d)

    def passes() -> float:
        begin = time.perf_counter()
        with torch.autocast(device.type, TYPES[name], enabled=kind == "mixed"):
            logits = network(image)
        levels = logits if isinstance(logits, list) else [logits]
        torch.autograd.backward(levels, [torch.ones_like(level) for level in levels])
        network.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    counter = FlopCounterMode(display=False)
    with counter:
        passes()
    return min(passes() for _ in range(2)) / counter.get_total_flops()
