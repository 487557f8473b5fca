"""How long a study takes and how much it writes, before it begins."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from omegaconf import DictConfig

from brats_lightning.config.build import build_part
from brats_lightning.config.planning import unbuilt
from brats_lightning.core.geometry import Ints
from brats_lightning.inference.windows import window_starts
from brats_lightning.runtime.device import fastest_precision
from brats_lightning.training.footprint import state_bytes, step_footprint
from brats_lightning.training.measurement import seconds_per_flop

_FORWARD = 1 / 3  # of the arithmetic of a training step: the backward pass takes twice as much as the forward pass
_COMPRESSED = 0.3  # size of a probability file relative to its voxels; most of a brain is certain background
_TRIED = 64  # voxels along each axis of the patch by which the pace is tried


@dataclass(frozen=True)
class Estimate:
    """Of one training with the prediction of its held-out cases.

    Attributes:
        hours: of the network alone, without reading and scoring; None where they cannot be told.
        bytes: that it leaves.
    """

    hours: float | None
    bytes: int


def estimate(cfg: DictConfig, here: bool, train: int, held_out: Sequence[Ints]) -> Estimate:
    """What one job of an arm takes: the arithmetic is counted, the pace tried with one small patch.

    Args:
        cfg: of `train`, resolved.
        here: whether this machine trains, so that its pace can be tried.
        train: number of training cases.
        held_out: shape (z, y, x) of each held-out case.
    """
    limit = parse_time(cfg.trainer.max_time) if cfg.trainer.get("max_time") else math.inf
    if "size" not in cfg.sampling or "in_plane" in cfg.sampling:  # blocks of slices have no one size
        return Estimate(None if math.isinf(limit) else limit / 3600, 0)
    device = _device(cfg) if here else None
    precision = cfg.trainer.precision
    if precision == "auto":
        precision = "32-true" if device is None else fastest_precision(cfg.trainer.accelerator)
    images = (cfg.data.batch_size, cfg.data.in_channels, *cfg.sampling.size)
    optimizer = build_part("optimizer", cfg.optimizer)
    footprint = step_footprint(unbuilt(cfg.model), images, precision, optimizer)
    probabilities = sum(map(math.prod, held_out)) * (len(cfg.data.labels) + 1) * 2
    checkpoint = footprint.parameters * (4 + state_bytes(optimizer))
    written = 2 * checkpoint + int(_COMPRESSED * probabilities)  # last.ckpt and best.ckpt
    batches = max(1, train * cfg.data.patches_per_case // cfg.data.batch_size)
    steps = _steps(cfg, batches)
    if device is None or (steps is None and math.isinf(limit)):
        return Estimate(None if math.isinf(limit) else limit / 3600, written)
    patch = (1, cfg.data.in_channels, *(min(n, _TRIED) for n in cfg.sampling.size))
    pace = seconds_per_flop(unbuilt(cfg.model).to_empty(device=device), patch, precision, device)
    step = pace * footprint.flop
    per_voxel = _FORWARD * step / (cfg.data.batch_size * math.prod(cfg.sampling.size))
    whole = sum(_voxels_seen(cfg, shape) for shape in held_out) * per_voxel
    training = math.inf if steps is None else steps * step + _validations(cfg, steps, batches) * whole
    return Estimate((min(training, limit) + whole) / 3600, written)


def parse_time(text: Any) -> float:
    """Seconds of a time as Lightning takes it: ``DD:HH:MM:SS``, or a mapping such as ``{minutes: 12}``."""
    if not isinstance(text, str):
        return timedelta(**text).total_seconds()
    days, hours, minutes, seconds = map(float, text.split(":"))
    return 86400 * days + 3600 * hours + 60 * minutes + seconds


def _device(cfg: DictConfig) -> torch.device | None:
    """Where this machine would train; None if it lacks the GPU."""
    if cfg.trainer.accelerator == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu") if cfg.trainer.accelerator == "auto" else None


def _validations(cfg: DictConfig, steps: float, batches: int) -> int:
    every = cfg.trainer.val_check_interval
    interval = every * batches if isinstance(every, float) else every or batches
    return max(1, math.ceil(steps * cfg.trainer.accumulate_grad_batches / interval))


def _steps(cfg: DictConfig, batches: int) -> float | None:
    """Optimiser steps until the trainer stops by itself."""
    limits = [cfg.trainer.max_steps] if cfg.trainer.max_steps > 0 else []
    if (epochs := cfg.trainer.max_epochs) is not None and epochs > 0:
        limits.append(epochs * batches / cfg.trainer.accumulate_grad_batches)
    return min(limits, default=None)


def _voxels_seen(cfg: DictConfig, shape: Ints) -> int:
    """Voxels of all windows of a case, those seen by each mirroring counted again."""
    window, overlap = cfg.inference.window, cfg.inference.overlap
    windows = math.prod(len(window_starts(max(n, w), w, overlap)) for n, w in zip(shape, window, strict=True))
    return windows * math.prod(window) * 2 ** len(cfg.inference.mirror_axes or ())
