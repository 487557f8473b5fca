"""What the parts of the check have in common: its size, its rows, and the time and memory of work on a device."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Size:
    """How large the work is: as in the recipes on a GPU, or so small that a CPU does all of it in minutes.

    Attributes:
        device: ``cuda`` or ``cpu``.
        patch: voxels along each side of patch and window.
        batch: patches or windows at a time.
        thinner: divisor of the networks' channels.
        volume: (x, y, z) of the scans in voxels.
        repeats: measurements, of which the median counts.
    """

    device: torch.device
    patch: int
    batch: int
    thinner: int
    volume: tuple[int, int, int]
    repeats: int

    @classmethod
    def of(cls, device: str) -> "Size":
        """That of a device."""
        if device == "cpu":
            return cls(torch.device("cpu"), 64, 1, 8, (80, 96, 72), 2)
        return cls(torch.device(device), 128, 2, 1, (240, 240, 155), 9)


@dataclass(frozen=True)
class Cell:
    """A measured value: a number with its unit; or, without a number, why there is none.

    ``most`` is the largest allowed number.
    """

    number: float | None
    unit: str
    most: float | None = None

    @property
    def failed(self) -> bool:
        """Whether it is larger than allowed; NaN is."""
        return self.most is not None and self.number is not None and not self.number <= self.most

    def __str__(self) -> str:
        if self.number is None:
            return self.unit
        bound = "" if self.most is None else f" ({'NO, ' * self.failed}at most {self.most:g})"
        return f"{self.number:.3g} {self.unit}".strip() + bound


class Rows:
    """The rows of a part, in a file that has each as soon as it is measured."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, what: str, **cells: Cell) -> None:
        """Add a row, its cells by column."""
        values = {name: vars(cell) for name, cell in cells.items()}
        with self.file.open("a") as lines:
            lines.write(json.dumps({"what": what, "cells": values}) + "\n")

    def read(self) -> list[tuple[str, dict[str, Cell]]]:
        """All rows so far."""
        if not self.file.is_file():
            return []
        rows = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [(row["what"], {name: Cell(**cell) for name, cell in row["cells"].items()}) for row in rows]


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of some measurements, after one that does not count; a GPU is waited for."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def gigabytes(work: Callable[[], object], device: torch.device) -> float:
    """The most memory that is held during work: of a GPU what torch allocates, of a CPU what the process has."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) / 1e9
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
