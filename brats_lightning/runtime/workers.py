"""Processes of our own: how many this job may use, and pools that end with the process that made them."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path


def cpu_count(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """CPUs this job may use: the least of its affinity, its container's quota and its share of a SLURM allocation."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [affinity, _number(os.environ.get("SLURM_CPUS_PER_TASK")), *_quotas(cgroups, own)]
    return max(1, min(math.ceil(limit) for limit in limits if limit))


def _quotas(cgroups: Path, own: Path) -> Iterator[float]:
    """CPUs that the control groups around this process allow, each by its quota and period."""
    try:
        groups = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in own.read_text().splitlines()}
    except (OSError, IndexError):
        groups = {}
    for controllers, names in (("", ("cpu.max",)), ("cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us"))):  # versions 2, 1
        path = next((path for key, path in groups.items() if controllers in key.split(",")), "/")
        # In a container the path may be the host's, while what is mounted starts at the container's own group.
        for group in (Path(), *(Path(path.lstrip("/")), *Path(path.lstrip("/")).parents)):
            try:
                text = " ".join((cgroups / controllers / group / name).read_text() for name in names)
            except OSError:
                continue
            quota, period = map(_number, text.split())
            if quota and period and quota > 0:
                yield quota / period


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:  # "max"
        return None


def process_pool(workers: int, context: BaseContext | None = None) -> ProcessPoolExecutor:
    """A pool whose processes end when this one does, however it ends, and leave Ctrl-C to it.

    Args:
        workers: processes, at least 1.
        context: None spawns them, since the caller may have threads (torch has).
    """
    return ProcessPoolExecutor(workers, context or multiprocessing.get_context("spawn"), initializer=_begin_worker)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent(end: Callable[[int], object] = os._exit) -> None:
    """Watch the parent of a process that `multiprocessing` started, and end this one when it is gone.

    A worker waits for work at a pipe whose other end the other workers hold open, too: it would never learn of it.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        end(1)

    threading.Thread(target=watch, daemon=True, name="watch parent").start()
