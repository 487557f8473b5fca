"""Settings that suit a data set and a memory: which network, patch and batch, and what they take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from brats_lightning.config.build import build_part
from brats_lightning.config.values import abbreviated, nested
from brats_lightning.runtime.device import fastest_precision
from brats_lightning.runtime.memory import as_bytes, free_memory, held_memory
from brats_lightning.training.footprint import Footprint, step_footprint
from brats_lightning.training.measurement import seconds_per_flop
from brats_lightning.training.proposal import Proposal, Topology, propose, target_spacing, topology

FILLED = 0.9  # of the memory that is planned for
# What gaps between blocks and the scratch memory of kernels add, as a factor: of a CPU from the measurements of
# tests/benchmarks/footprint.py, of a GPU assumed.
GAPS = {"cuda": 1.1, "cpu": 1.5}
GPU_CONTEXT = 600 * 10**6  # bytes that CUDA and its libraries take of a GPU
WIDTHS = {"cuda": (32, 16, 8), "cpu": (16, 8)}  # channels of the first level, the later ones where the memory is small
WIDEST = {"cuda": 320, "cpu": 256}  # channels of a level at most
_TRIED = 48  # voxels along each axis of the patch by which the time of a step is predicted


class PlanError(ValueError):
    """What cannot be planned for."""


@dataclass(frozen=True)
class Machine:
    """What training will run on."""

    kind: str  # cuda or cpu
    memory: int  # bytes that training may take
    here: bool  # whether it is this machine, so that the time of a step can be tried
    resting: int  # bytes taken before the first step

    @classmethod
    def of(cls, accelerator: str, memory: str | int | float | None) -> "Machine":
        """By the settings ``trainer.accelerator`` and ``memory``.

        Raises:
            PlanError: a GPU is asked for, none is here, and its memory is not given.
        """
        there = torch.cuda.is_available()
        kind = "cuda" if accelerator in ("gpu", "cuda") or (accelerator == "auto" and there) else "cpu"
        if kind == "cuda" and not there and memory is None:
            raise PlanError(
                "this recipe trains on a GPU, and there is none here: give the memory of the one you have, e.g. "
                "memory=24GB, or plan for this CPU with experiment=cpu_small"
            )
        given = free_memory(torch.device(kind)) if memory is None else as_bytes("memory", memory)
        return cls(kind, given, kind == "cpu" or there, GPU_CONTEXT if kind == "cuda" else held_memory())


@dataclass(frozen=True)
class Prediction:
    """What a training step takes."""

    footprint: Footprint
    memory: int  # bytes, all in all
    seconds: float | None  # None where the machine is another one


def predict(cfg: DictConfig, machine: Machine) -> tuple[Footprint, int]:
    """What a training step of a config takes, and the bytes of the whole training."""
    images = (cfg.data.batch_size, cfg.data.in_channels, *cfg.sampling.size)
    optimizer, averaged = build_part("optimizer", cfg.optimizer), bool((cfg.callbacks or {}).get("average"))
    footprint = step_footprint(unbuilt(cfg.model), images, cfg.trainer.precision, optimizer, averaged)
    return footprint, machine.resting + int(GAPS[machine.kind] * footprint.bytes)


def unbuilt(model: DictConfig) -> nn.Module:
    """A network without weights."""
    with torch.device("meta"):
        return build_part("model", model).train()


@dataclass(frozen=True)
class Planner:
    """Proposes and predicts for one config and one machine.

    Args:
        cfg: of `train`, resolved.
        machine: that will train.
        seconds: a step may take; None: any number.
    """

    cfg: DictConfig
    machine: Machine
    seconds: float | int | None
    _pace: dict[int, float] = field(default_factory=dict)  # channels of the first level → seconds per operation

    def __post_init__(self) -> None:
        if "size" not in self.cfg.sampling or "in_plane" in self.cfg.sampling:
            raise PlanError(
                "plan proposes the size of a patch, which this sampling has not; set sampling=lesion or uniform"
            )

    @cached_property
    def precision(self) -> str:
        """That of the config; ``auto`` is the fastest of the machine, for a GPU elsewhere ``bf16-mixed``."""
        chosen = str(self.cfg.trainer.precision)
        if chosen != "auto":
            return chosen
        return fastest_precision("gpu" if self.machine.kind == "cuda" else "cpu") if self.machine.here else "bf16-mixed"

    def propose(
        self, spacings: Float[np.ndarray, "cases 3"], shapes: Int[np.ndarray, "cases 3"]
    ) -> tuple[dict[str, Any], Prediction]:
        """Dotted key → value of what is proposed, and what it takes.

        Args:
            spacings: (z, y, x) in mm of each case, cropped to the brain.
            shapes: (z, y, x) in voxels.

        Raises:
            PlanError: nothing fits.
        """
        chosen = self.cfg.data.preprocessing.spacing
        target = target_spacing(spacings) if chosen is None else None
        spacing = np.median(spacings, axis=0).tolist() if target is None else target
        shape = np.median(shapes * spacings / np.array(spacing), axis=0).tolist()
        found = propose(shape, spacing, len(shapes), WIDTHS[self.machine.kind], self.fits)
        if found is None:
            limit = "" if self.seconds is None else f", or {self.seconds:g} s for a step,"
            raise PlanError(f"memory={self.machine.memory / 1e9:.3g}GB{limit} is too little for the smallest network")
        settings = self._settings(found)
        if target is not None:
            settings = {"data.preprocessing.spacing": target, **settings}
        return settings, self.predict(found)

    def fits(self, proposal: Proposal) -> bool:
        """Whether training takes no more than the memory and the seconds that there are."""
        prediction = self.predict(proposal)
        fast = self.seconds is None or prediction.seconds is None or prediction.seconds <= self.seconds
        return fast and prediction.memory <= FILLED * self.machine.memory

    def predict(self, proposal: Proposal) -> Prediction:
        """What a step takes."""
        footprint, memory = predict(self._with(proposal), self.machine)
        first = proposal.first_width
        if first not in self._pace and self.machine.here:
            self._pace[first] = self._seconds_per_flop(proposal)
        return Prediction(footprint, memory, self._pace[first] * footprint.flop if self.machine.here else None)

    def _with(self, proposal: Proposal) -> DictConfig:
        return OmegaConf.merge(self.cfg, nested(self._settings(proposal)))  # type: ignore[return-value]

    def _settings(self, proposal: Proposal) -> dict[str, Any]:
        shape = proposal.topology
        return {
            "sampling.size": list(shape.patch),
            "data.batch_size": proposal.batch,
            **self._network_settings(shape, proposal.first_width),
            "trainer.precision": self.precision,
            "inference.window": list(shape.patch),
        }

    def _network_settings(self, shape: Topology, first: int) -> dict[str, Any]:
        """Depth and widths of a network of this package; none of another one."""
        model = self.cfg.model
        if "widths" not in model:
            return {}
        levels = len(shape.kernels)
        counts = {"blocks": levels, "decoder_blocks": levels - 1, "dropout": levels}
        return {
            "model.widths": shape.widths(first, WIDEST[self.machine.kind]),
            "model.strides": abbreviated(shape.strides),
            "model.kernel_sizes": abbreviated(shape.kernels),
            "model.deep_supervision": min(model.deep_supervision, levels - 2),
            **{
                f"model.{name}": _cut(model[name], n)
                for name, n in counts.items()
                if isinstance(model[name], ListConfig)
            },
        }

    def _seconds_per_flop(self, proposal: Proposal) -> float:
        """Tried with one small patch."""
        device = torch.device(self.machine.kind)
        small = topology([min(length, _TRIED) for length in proposal.topology.patch], (1, 1, 1))
        cfg = self._with(Proposal(small, 1, proposal.first_width))
        network = unbuilt(cfg.model).to_empty(device=device)
        return seconds_per_flop(network, (1, cfg.data.in_channels, *small.patch), self.precision, device)


def _cut(values: Sequence[Any], count: int) -> list[Any]:
    """The first values, the last one repeated where they are too few."""
    return [*values, *[values[-1]] * count][:count]
