"""The cache of preprocessed cases: which entries are valid, and building the others in parallel."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from brats_lightning.data.cases import Case, Problem, check_files, examine, required
from brats_lightning.data.entry import FORMAT, CachedCase, read_sidecar, write_entry
from brats_lightning.data.preprocessing import Preprocessing, prepare
from brats_lightning.labels import BRATS_METS, MODALITIES, LabelScheme

__all__ = ["Cache", "CachedCase", "Filled"]


NATIVE = Preprocessing()  # each case at its own spacing, cropped to the brain


@dataclass(frozen=True)
class Filled:
    """What `Cache.fill` found: usable cases in the order given, why others are not, and the ids built just now."""

    cases: list[CachedCase]
    problems: list[Problem]
    built: list[str]


@dataclass(frozen=True)
class Cache:
    """Preprocessed cases below ``root``, in one directory for each combination of settings that change voxels.

    Attributes:
        root: holds the directories.
        preprocessing: the settings.
        scheme: classes of the masks.
        label_map: raw label → class index.
        source: the data root; data sets whose cases have equal ids then never share an entry.
        verify: ``stat`` knows a raw file by path, size and modification time; ``content`` by its SHA-256, which costs
            reading it.
        tolerance: in mm, see `examine`.
    """

    root: Path
    preprocessing: Preprocessing = NATIVE
    scheme: LabelScheme = BRATS_METS
    label_map: Mapping[int, int] | None = None
    source: Path | None = None
    verify: str = "stat"
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if self.verify not in ("stat", "content"):
            raise ValueError(f"cache.verify is {self.verify!r}; expected stat or content")
        label_map = {int(old): int(new) for old, new in (self.label_map or {}).items()}
        if 0 in label_map:
            raise ValueError(f"data.label_map {label_map} renames 0; the background must stay 0")
        object.__setattr__(self, "label_map", label_map)

    @cached_property
    def key(self) -> str:
        """Name of the directory: the settings for people to read, then a hash of all that changes the files."""
        settings, label_map = self.preprocessing, sorted(dict(self.label_map or {}).items())
        parts = ["x".join(f"{s:g}" for s in settings.spacing) + "mm" if settings.spacing else "native"]
        if settings.size:
            parts.append(f"{settings.fit}-{'x'.join(map(str, settings.size))}")
        parts += ["-".join(self.scheme.names), *(f"{old}to{new}" for old, new in label_map)]
        source = os.path.abspath(self.source) if self.source else None  # noqa: PTH100
        exact = [FORMAT, asdict(settings), self.scheme.names, label_map, source]
        return "_".join([*parts, hashlib.sha256(json.dumps(exact).encode()).hexdigest()[:10]])

    @property
    def directory(self) -> Path:
        """Of the entries."""
        return Path(self.root) / self.key

    def read(self, case: Case, modalities: Sequence[str] = (), need_mask: bool = False) -> CachedCase | None:
        """The entry of a case, or None where `fill` would build or reject it.

        That is: it is missing or damaged, a raw file came, went or changed since, or it lacks a modality or the mask.
        """
        if check_files(case, modalities, need_mask):
            return None
        try:
            cached, stamps = read_sidecar(self.directory, case.id)
            files = case.files
            fresh = stamps.keys() == files.keys() and all(
                _same(stamps[name], _stamp(path, self.verify), self.verify) for name, path in files.items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        enough = set(modalities) <= set(cached.modalities) and (cached.has_mask or not need_mask)
        return cached if fresh and enough else None

    def fill(
        self,
        cases: Sequence[Case],
        modalities: Sequence[str] = MODALITIES,
        need_mask: bool = True,
        workers: int = 0,
        progress: bool | None = None,
    ) -> Filled:
        """Build the entries that are missing or stale; raw files of the others are not opened.

        All modalities of a case are stored, whichever are asked for, so that another choice builds nothing. What is
        wrong with files that were not asked for rejects nothing.

        Args:
            cases: to be cached.
            modalities: that a case must have, in order.
            need_mask: whether a case must have a mask.
            workers: processes; 0 or 1 works in this one.
            progress: show a bar; None does on a terminal.

        Raises:
            OSError: the cache cannot be written.
        """
        rejected = {case.id: problems for case in cases if (problems := check_files(case, modalities, need_mask))}
        ready: dict[str, CachedCase] = {}
        todo = []
        for case in cases:
            if case.id in rejected:
                continue
            if cached := self.read(case, modalities, need_mask):
                ready[case.id] = cached
            else:
                todo.append(case)
        if todo:
            self._open_directory()
            with self._alone(), _progress(progress) as bar:
                task = bar.add_task("caching", total=len(todo))
                for case_id, problems in _build_all(self, todo, tuple(modalities), need_mask, workers):
                    rejected |= {case_id: problems} if problems else {}
                    bar.advance(task)
        for case in todo:
            if case.id not in rejected:
                if cached := self.read(case, modalities, need_mask):
                    ready[case.id] = cached
                else:
                    found = "its files, or its cache entry, changed while it was read"
                    rejected[case.id] = [Problem(case.id, "-", found, "files at rest", "run again")]
        return Filled(
            [ready[case.id] for case in cases if case.id in ready],
            [problem for case in cases for problem in rejected.get(case.id, ())],
            [case.id for case in todo if case.id in ready],
        )

    def build(self, case: Case, modalities: Sequence[str], need_mask: bool) -> list[Problem]:
        """Read a case and write its entry, or say why not; an entry another process has just written stays."""
        if self.read(case, modalities, need_mask):
            return []
        stamps = {}
        for name, path in case.files.items():  # before reading, so that a change during it is noticed
            try:
                stamps[name] = _stamp(path, self.verify)
            except OSError:
                stamps[name] = {"path": str(path)}  # examine will say what is the matter
        examination = examine(case, self.scheme, self.label_map, self.tolerance)
        if problems := required(examination.problems, modalities, need_mask):
            return problems
        prepared = prepare(examination.images, examination.mask, self.preprocessing)
        write_entry(self.directory, case, prepared, self.scheme, stamps)
        return []

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: those of a job that start together would each fill the cache with all cores.

        Whoever waited finds the entries there. Where the file system has no locks all work at once, which only costs
        time.
        """
        with (Path(self.root) / f".{self.key}.lock").open("w") as lock:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _open_directory(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"the cache directory cannot be made ({error.strerror}); choose another one"
            raise OSError(error.errno, message, str(self.directory)) from error
        for leftover in self.directory.glob("*.tmp"):  # of a process that was killed, not of one at work
            try:
                if time.time() - leftover.stat().st_mtime > 3600:
                    leftover.unlink()
            except FileNotFoundError:
                pass


def _stamp(path: Path, verify: str) -> dict[str, Any]:
    """Identity of a raw file."""
    status = path.stat()
    stamp = {"path": os.path.abspath(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}  # noqa: PTH100
    if verify == "content":
        with path.open("rb") as file:
            stamp["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return stamp


def _same(stored: Mapping[str, Any], now: Mapping[str, Any], verify: str) -> bool:
    keys = ("size", "sha256") if verify == "content" else ("path", "size", "mtime_ns")
    return all(stored.get(key) == now[key] for key in keys)


def _build_all(
    cache: Cache, cases: Sequence[Case], modalities: tuple[str, ...], need_mask: bool, workers: int
) -> Iterator[tuple[str, list[Problem]]]:
    workers = min(workers, len(cases))
    if workers <= 1:
        for case in cases:
            yield case.id, cache.build(case, modalities, need_mask)
        return
    # Spawned, since the caller may have threads (torch has); the workers import no torch.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        futures = {pool.submit(cache.build, case, modalities, need_mask): case.id for case in cases}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {workers} preprocessing workers died: for want of memory, then use fewer; or because the "
                'script that called has no `if __name__ == "__main__":`'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _progress(show: bool | None) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cases"))
    hidden = not (console.is_terminal if show is None else show)
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=hidden)
