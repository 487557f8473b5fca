"""Worker processes: how many this job may use, and pools that end with the process that made them."""

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

_PACKAGE = __name__.partition(".")[0] + "."


class DeadWorker(ValueError):
    """A process of a pool died: at which job, and what to do."""


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
    context = context or multiprocessing.get_context("spawn")
    places = context.SimpleQueue()
    for place in range(workers):
        places.put(place)
    return ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(places,))


def end_workers(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool now, whatever they do; it can then only be shut down."""
    for process in list((pool._processes or {}).values()):
        process.terminate()


def worker_number() -> int:
    """Which of a pool's processes this is, from 0 on."""
    return _place[0]


def each_result(
    pool: ProcessPoolExecutor | None, task: Callable[..., Result], jobs: Mapping[str, tuple[Any, ...]], remedy: str
) -> Iterator[tuple[str, Result]]:
    """(name, result) of each job, as they end; the rest is cancelled if the caller stops iterating.

    Args:
        pool: that does them; None does them here, one after the other.
        task: called with a job's arguments.
        jobs: name → arguments.
        remedy: the setting for fewer processes, for the message.

    Raises:
        DeadWorker: a process was ended from outside.
    """
    if pool is None:
        for name, arguments in jobs.items():
            yield name, task(*arguments)
        return
    futures: dict[Future[Result], str] = {}
    try:
        for name, arguments in jobs.items():
            futures[pool.submit(task, *arguments)] = name
        for future in as_completed(futures):
            error = future.exception()
            if error is not None and type(error).__module__.startswith(_PACKAGE):
                raise error  # from here, as if there were no pool: its message says all
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        n = pool._max_workers  # type: ignore[attr-defined]  # not in its stub
        lost = [name for future, name in futures.items() if isinstance(future.exception(), BrokenProcessPool)]
        # Jobs are begun in this order.
        at_work = ", ".join(lost[:n]) or next(iter(jobs))
        why = f"perhaps it ran out of memory; then use fewer processes: {remedy}"
        if len(lost) == len(jobs):
            why += '; or because the script that called has no `if __name__ == "__main__":`'
        raise DeadWorker(f"one of {n} worker processes died, of those at {at_work}: {why}") from error
    finally:
        for future in futures:
            future.cancel()


_place = [0]  # of this process in its pool


def _begin_worker(places: "SimpleQueue[int]") -> None:
    _place[0] = places.get()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent(parent: int | None = None) -> None:
    """Watch the parent of this process and end with it, even if it is killed.

    A pool's worker waits at a pipe that the other workers hold open, too, and would never notice.

    Args:
        parent: its process id; None is the process that `multiprocessing` or loky started this one from, if one did.
    """
    started_by = multiprocessing.parent_process()
    if parent is None and started_by is None:
        return
    watched = os.getppid() if parent is None else parent

    def alive() -> bool:
        if parent is not None or started_by is None:
            return True
        try:
            return started_by.is_alive()  # also where a server process, which may live on, has forked this one
        except ValueError:  # loky's, which knows nothing of its parent
            return True

    def watch() -> None:
        while os.getppid() == watched and alive():
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch parent").start()
