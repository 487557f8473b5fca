"""The cache of preprocessed cases: which entries are valid, and building the others in parallel."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.progress import Progress

from brats_lightning.core.labels import BRATS_METS, MODALITIES, LabelScheme, as_label_map
from brats_lightning.data.cache.entry import FORMAT, CachedCase, DamagedEntry, read_sidecar, write_entry
from brats_lightning.data.cases import Case, Problem, check_files, examine, required, used_modalities
from brats_lightning.data.preprocessing import Preprocessing, prepare
from brats_lightning.runtime.console import progress_bar
from brats_lightning.runtime.files import make_folder, remove_leftovers
from brats_lightning.runtime.locks import alone
from brats_lightning.runtime.workers import each_result, process_pool

log = logging.getLogger(__name__)

NATIVE = Preprocessing()  # each case at its own spacing, cropped to the brain


@dataclass(frozen=True)
class Filled:
    """What `Cache.fill` found: usable cases in the order given, why others are not, and the ids built just now."""

    cases: list[CachedCase]
    problems: list[Problem]
    built: list[str]


@dataclass(frozen=True)
class Cache:
    """Preprocessed cases below ``root``, in one directory for each combination of settings that change voxels."""

    root: Path
    preprocessing: Preprocessing = NATIVE
    scheme: LabelScheme = BRATS_METS  # of the masks
    label_map: Mapping[int, int] | None = None  # raw label → class index, or `IGNORE`
    source: str = ""  # distinguishes its data set from others, whose cases may have the same ids
    verify: str = "stat"  # how a raw file is recognised: ``stat`` by path, size and time, ``content`` by its SHA-256
    tolerance: float = 0.1  # in mm, see `examine`
    optional: Sequence[str] = ()  # modalities that a case may lack

    def __post_init__(self) -> None:
        if self.verify not in ("stat", "content"):
            raise ValueError(f"data.verify is {self.verify!r}; expected stat or content")
        object.__setattr__(self, "label_map", as_label_map("data.label_map", self.label_map))

    @cached_property
    def key(self) -> str:
        """Name of the directory: the settings for people to read, then a hash of all that changes the files."""
        settings, label_map = self.preprocessing, sorted(dict(self.label_map or {}).items())
        parts = ["x".join(f"{s:g}" for s in settings.spacing) + "mm" if settings.spacing else "native"]
        if settings.size:
            parts.append(f"{settings.fit}-{'x'.join(map(str, settings.size))}")
        parts += ["-".join(self.scheme.names), *(f"{old}to{new}" for old, new in label_map)]
        exact = [FORMAT, asdict(settings), self.scheme.names, label_map, self.source]
        return "_".join([*parts, hashlib.sha256(json.dumps(exact).encode()).hexdigest()[:10]])

    @property
    def directory(self) -> Path:
        """Of the entries."""
        return Path(self.root) / self.key

    def read(self, case: Case, modalities: Sequence[str] = (), need_mask: bool = False) -> CachedCase | None:
        """The entry of a case, or None where `fill` would build or reject it.

        That is: it is missing or its sidecar damaged, a raw file was added, removed or changed since, its files lie
        further apart than is tolerated now, or it lacks a modality or the mask. Arrays are not read.
        """
        modalities = used_modalities(case, modalities, self.optional)
        if check_files(case, modalities, need_mask):
            return None
        try:
            cached, stamps = read_sidecar(self.directory, case.id)
            files = case.files
            fresh = stamps.keys() == files.keys() and all(
                _same(stamps[name], _stamp(case, name, self.verify), self.verify) for name in files
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        enough = set(modalities) <= set(cached.modalities) and (cached.has_mask or not need_mask)
        alike = cached.distance <= self.tolerance and cached.patient == case.patient
        return cached if fresh and enough and alike else None

    def fill(
        self,
        cases: Sequence[Case],
        modalities: Sequence[str] = MODALITIES,
        need_mask: bool = True,
        workers: int = 0,
        check: bool = True,
    ) -> Filled:
        """Build the entries that are missing, stale or damaged; raw files of the others are not opened.

        All modalities of a case are stored, whichever are required, so that another choice builds nothing. Faults of
        files that are not required reject nothing.

        Args:
            cases: to be cached.
            modalities: that a case must have, in order, except the optional ones.
            need_mask: whether a case must have a mask.
            workers: processes that build and threads that check; 0 or 1 works in this one.
            check: compare existing entries with their checksums now; otherwise each when it is first opened.

        Raises:
            UnwritableFile: the cache cannot be written; what was written before stays.
            DeadWorker: a process was ended from outside.
        """
        modalities = tuple(modalities)
        used = {case.id: used_modalities(case, modalities, self.optional) for case in cases}
        rejected = {case.id: problems for case in cases if (problems := check_files(case, used[case.id], need_mask))}
        sound = [case for case in cases if case.id not in rejected]
        built = []
        with progress_bar() as bar:
            ready, _ = self._look(sound, modalities, need_mask, workers if check else None, bar)
            if len(ready) < len(sound):
                remove_leftovers(make_folder(self.directory))
                with alone(Path(self.root) / f".{self.key}.lock", "fills this cache"):
                    # Whoever held the lock has built some, or all.
                    rest = [case for case in sound if case.id not in ready]
                    there, damaged = self._look(rest, modalities, need_mask, workers, bar)
                    for damage in damaged.values():
                        log.warning("%s; it is built again", str(damage).rpartition("; ")[0])
                    ready |= there
                    todo = {case.id: (case, modalities, need_mask, case.id in damaged) for case in rest}
                    todo = {name: job for name, job in todo.items() if name not in ready}
                    task = bar.add_task("caching", total=len(todo))
                    workers = min(workers, len(todo))
                    with process_pool(workers) if workers > 1 else nullcontext() as pool:  # that imports no torch
                        for name, problems in each_result(pool, self.build, todo, "data.cache_workers=1"):
                            rejected |= {name: problems} if problems else {}
                            built += [] if problems else [name]
                            bar.advance(task)
        for case in sound:
            if case.id in built:
                if cached := self.read(case, modalities, need_mask):
                    ready[case.id] = cached
                else:
                    found = "its files, or its cache entry, changed while it was read"
                    rejected[case.id] = [Problem(case.id, "-", found, "files at rest", "run again")]
        return Filled(
            [ready[case.id] for case in cases if case.id in ready],
            [problem for case in cases for problem in rejected.get(case.id, ())],
            [case.id for case in cases if case.id in built and case.id in ready],
        )

    def _look(
        self, cases: Sequence[Case], modalities: Sequence[str], need_mask: bool, threads: int | None, bar: Progress
    ) -> tuple[dict[str, CachedCase], dict[str, DamagedEntry]]:
        """The sound entries, and what is wrong with the damaged ones; ``threads=None`` checks no array."""

        def look(case: Case) -> CachedCase | DamagedEntry | None:
            cached = self.read(case, modalities, need_mask)
            try:
                if cached and threads is not None:
                    cached.check()
            except DamagedEntry as error:
                return error
            return cached

        task = bar.add_task("checking", total=len(cases))
        if bar.disable and threads is not None and len(cases) > 100:
            log.info("comparing %d cached cases with their checksums", len(cases))
        found = {}
        with ThreadPoolExecutor(max(1, threads or 1)) as pool:  # files and checksums are read without the interpreter
            for case, result in zip(cases, pool.map(look, cases), strict=True):
                found[case.id] = result
                bar.advance(task)
        return (
            {name: cached for name, cached in found.items() if isinstance(cached, CachedCase)},
            {name: damage for name, damage in found.items() if isinstance(damage, DamagedEntry)},
        )

    def build(self, case: Case, modalities: Sequence[str], need_mask: bool, anew: bool = False) -> list[Problem]:
        """Read a case and write its entry, or say why not; one that is there already stays, unless ``anew``."""
        if not anew and self.read(case, modalities, need_mask):
            return []
        stamps = {}
        for name, path in case.files.items():  # before reading, so that a change during it is noticed
            try:
                stamps[name] = _stamp(case, name, self.verify)
            except OSError:
                stamps[name] = {"path": str(path)}  # examine will report it
        examination = examine(case, self.scheme, self.label_map, self.tolerance)
        if problems := required(examination.problems, used_modalities(case, modalities, self.optional), need_mask):
            return problems
        prepared = prepare(examination.images, examination.mask, self.preprocessing, self.scheme)
        write_entry(self.directory, case, examination, prepared, self.scheme, stamps)
        return []


def _stamp(case: Case, file: str, verify: str) -> dict[str, Any]:
    """Identity of a raw file."""
    path = case.files[file]
    status = path.stat()
    stamp = {
        "path": os.path.abspath(path),  # noqa: PTH100
        "volume": case.volumes.get(file),
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }
    if verify == "content":
        with path.open("rb") as content:
            stamp["sha256"] = hashlib.file_digest(content, "sha256").hexdigest()
    return stamp


def _same(stored: Mapping[str, Any], now: Mapping[str, Any], verify: str) -> bool:
    keys = ("volume", "size", "sha256") if verify == "content" else ("path", "volume", "size", "mtime_ns")
    return all(stored.get(key) == now[key] for key in keys)
