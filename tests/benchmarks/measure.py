"""The measuring half of the benchmark: contenders, taken in turns within one process.

A benchmark is a module beside this one, listed in ``__main__.MODULES``, with a function

    def rows(options: Options) -> Iterator[Row]

It runs in a process of its own. Each `Row` it yields is checked, measured and stored before the next one is asked for,
so that what a row holds can be freed. A contender is a function that returns one measured number in the row's unit,
mostly `timed(work, per=…)`; ``ours`` is compared with all others of its row. Example::

    def rows(options):
        import monai                                  # peers are imported inside, so that modules load without them
        volume = ...
        yield Row(
            "norm", "norm of 4×64³", "s",
            {"ours": timed(lambda: ours(volume)), "MONAI": timed(lambda: theirs(volume)), "limit: copy": timed(...)},
            goals=[Goal("MONAI", at_least=2), Goal("limit: copy", at_most=1.5)],
            check=lambda: close(ours(volume), theirs(volume), 1e-5),
        )
"""

import gc
import importlib
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VERSIONS = ("torch", "pytorch-lightning", "monai", "nnunetv2", "numpy", "nibabel", "isal", "tifffile", "blosc2")


@dataclass(frozen=True)
class Options:
    """What is measured on, and how often.

    Attributes:
        cases: folder with BraTS cases.
        scratch: folder for whatever a benchmark writes.
        repeats: measurements of each contender, after one that doesn't count.
        threads: of torch, the same for everybody.
    """

    cases: Path
    scratch: Path
    repeats: int = 5
    threads: int = 2


@dataclass(frozen=True)
class Goal:
    """What is aimed at.

    ``at_least`` bounds how many times better than ``against`` ours is, ``at_most`` how many times its cost ours may
    be; without ``against``, ``at_most`` bounds our own value.
    """

    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None) or (self.against is None and self.at_most is None):
            raise ValueError(f"{self}: give at_least or at_most; without against only at_most")


@dataclass(frozen=True)
class Row:
    """One question: the same work by several contenders.

    Attributes:
        name: short and unique; the key of its results.
        title: what is done, for the table.
        unit: of the numbers.
        contenders: by name; one is ``ours``. Each call returns one number.
        goals: see `Goal`.
        check: raises AssertionError where outputs differ; says in a few words what was compared and how far it differs.
        higher_is_better: for rates.
        threads: of torch, where the row needs another number than the options say.
        repeats: where the row needs another number than the options say; of what is exact once is enough.
        note: conditions that matter: warm or cold, what is inside the timing.
    """

    name: str
    title: str
    unit: str
    contenders: Mapping[str, Callable[[], float]]
    goals: Sequence[Goal] = ()
    check: Callable[[], str] | None = None
    higher_is_better: bool = False
    threads: int | None = None
    repeats: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        unknown = [goal.against for goal in self.goals if goal.against not in (None, *self.contenders)]
        if unknown or "ours" not in self.contenders:
            raise ValueError(f"row {self.name}: contenders {list(self.contenders)}, goals against {unknown}")


@dataclass(frozen=True)
class Result:
    """Measured values of a row, in the order of the rounds."""

    module: str
    name: str
    title: str
    unit: str
    values: dict[str, list[float]]
    goals: list[Goal]
    outputs: str  # what the check said
    higher_is_better: bool = False
    note: str = ""
    machine: dict[str, Any] = field(default_factory=dict)

    def median(self, contender: str) -> float:
        """Of the rounds."""
        return statistics.median(self.values[contender])

    def times_better(self, contender: str) -> list[float]:
        """How many times better than a contender ours is, in each round: in turns, drift hits both sides of a ratio."""
        pairs = zip(self.values["ours"], self.values[contender], strict=True)
        return [ours / theirs if self.higher_is_better else theirs / ours for ours, theirs in pairs]

    def reached(self, goal: Goal) -> float:
        """The number that a goal bounds."""
        if goal.against is None:
            return self.median("ours")
        better = statistics.median(self.times_better(goal.against))
        return better if goal.at_least is not None else 1 / better

    def met(self, goal: Goal) -> bool:
        """Whether a goal is reached."""
        reached = self.reached(goal)
        return reached >= goal.at_least if goal.at_least is not None else reached <= (goal.at_most or 0)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Result":
        """The inverse of `to_dict`."""
        return cls(**{**values, "goals": [Goal(**goal) for goal in values["goals"]]})


def timed(
    work: Callable[[], object], per: float = 1, before: Callable[[], object] | None = None
) -> Callable[[], float]:
    """A contender: wall-clock seconds of ``work``, divided by ``per`` units of work; ``before`` is not timed."""

    def seconds() -> float:
        if before is not None:
            before()
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) / per

    return seconds


def rate(work: Callable[[], object], per: float = 1, before: Callable[[], object] | None = None) -> Callable[[], float]:
    """A contender for rows with ``higher_is_better``: units of work per second."""
    seconds = timed(work, per, before)
    return lambda: 1 / seconds()


def alternate(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Values of every contender, taken in turns after one round of warming up.

    Every other round goes backwards, so that nobody always follows the same one.
    """
    for contender in contenders.values():
        contender()
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(repeats):
        for name in contenders if i % 2 == 0 else reversed(contenders):
            gc.collect()
            values[name].append(float(contenders[name]()))
    return values


def close(ours: Any, theirs: Any, tolerance: float, what: str = "outputs") -> str:
    """The text of a check whose arrays or numbers agree within an absolute tolerance; raises AssertionError."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape, f"{what}: shapes {a.shape} and {b.shape}"
    difference = float(np.abs(a - b).max(initial=0))
    assert difference <= tolerance, f"{what} differ by {difference:.3g}, more than {tolerance:.3g}"
    return f"{what} equal" if difference == 0 else f"{what} within {difference:.1g}"


def measure(module: str, options: Options) -> Iterator[Result]:
    """Check and measure each row of a module.

    Nobody keeps freed memory, as our commands do for themselves (`runtime.memory`): the peers don't by default, and it
    would speed them as well. A module that asks for it keeps everybody's, and says so in its rows' notes.
    """
    for row in importlib.import_module(f"tests.benchmarks.{module}").rows(options):
        _set_threads(row.threads or options.threads)  # after the imports, some of which set it themselves
        outputs = row.check() if row.check else "–"
        before = os.getloadavg()[0]
        values = alternate(row.contenders, row.repeats or options.repeats)
        machine = describe_machine() | {"load": [before, os.getloadavg()[0]], "threads": row.threads or options.threads}
        yield Result(
            module,
            row.name,
            row.title,
            row.unit,
            values,
            list(row.goals),
            outputs,
            row.higher_is_better,
            row.note,
            machine,
        )


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def describe_machine() -> dict[str, Any]:
    """Processor, memory and versions."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    kilobytes = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_GB": round(kilobytes[0] / 1e6, 1) if kilobytes else None,
        "python": platform.python_version(),
        "versions": versions,
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
