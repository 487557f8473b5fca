"""A set of synthetic cases on disk: written once, whole or not at all, in a folder that records its settings."""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from brats_lightning.runtime.console import each_shown
from brats_lightning.runtime.files import make_folder, unwritable, write_json
from brats_lightning.runtime.locks import alone
from brats_lightning.runtime.workers import cpu_count, each_result, process_pool

SETTINGS_FILE = "phantom.json"


class PhantomError(ValueError):
    """Settings that make no phantoms, or a folder that holds something else."""


def check(kind: str, settings: Any, rules: dict[str, tuple[bool, str]]) -> None:
    """Raise a PhantomError for the first bad setting; ``rules``: name → whether it is good, and what would be."""
    for name, (good, wanted) in rules.items():
        if not good:
            raise PhantomError(f"{kind} {name} must be {wanted}, got {getattr(settings, name)!r}")


def own_folder(parent: Path | str, name: str, settings: dict[str, Any]) -> Path:
    """``parent/name-<hash of the settings>``: other settings, another folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Path(parent) / f"{name}-{digest[:10]}"


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers from a set's seed, for one purpose."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def make_once(
    root: Path, settings: dict[str, Any], jobs: int, write: Callable[[Path, int], None], workers: int | None = None
) -> Path:
    """Fills ``root``, unless it holds this very set already, and returns it.

    The set is built in a folder beside ``root`` and moved there whole, so an interrupted run leaves no half set. Of
    several processes one makes it; the others wait for it, or make it if that one fails.

    Args:
        root: folder to make.
        settings: JSON-able; what the set depends on, kept in ``phantom.json``.
        jobs: ``write(folder, job)`` is called for each of ``range(jobs)``, in any order and process.
        write: writes one job's files into the folder; a picklable function if there are workers.
        workers: processes; one per CPU if None; 0 or 1 works in this one.

    Raises:
        PhantomError: ``root`` holds anything else.
        UnwritableFile: for want of space or permission.
        DeadWorker: a process was ended from outside.
    """
    if _is_made(root, settings):
        return root
    make_folder(root.parent)
    with alone(root.parent / f".{root.name}.lock", f"makes {root.name}"):
        if not _is_made(root, settings):
            _make(root, settings, jobs, write, min(cpu_count(), 16) if workers is None else workers)
    return root


def _make(root: Path, settings: dict[str, Any], jobs: int, write: Callable[[Path, int], None], workers: int) -> None:
    for leftover in root.parent.glob(f".{root.name}-*"):
        with suppress(OSError):  # another process removed it
            if time.time() - leftover.stat().st_mtime > 3600:  # of a killed process, not of a running one
                shutil.rmtree(leftover, ignore_errors=True)
    try:
        building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise unwritable(root.parent, error) from error
    try:
        _write_all(building, jobs, write, min(workers, jobs))
        write_json(building / SETTINGS_FILE, settings)
        building.chmod(0o755)  # mkdtemp's folders are private
        try:
            building.replace(root)
        except OSError:  # not empty: another process was faster
            if not _is_made(root, settings):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_all(folder: Path, jobs: int, write: Callable[[Path, int], None], workers: int) -> None:
    numbered = {f"number {job}": (folder, job) for job in range(jobs)}
    with process_pool(workers) if workers > 1 else nullcontext() as pool:
        made = each_result(pool, write, numbered, "start the program under taskset -c 0")
        list(each_shown("making", made, jobs))


def _is_made(root: Path, settings: dict[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    file = root / SETTINGS_FILE
    if not file.is_file():
        raise PhantomError(f"{root} exists and holds no phantoms (no {SETTINGS_FILE}); name another folder")
    found = json.loads(file.read_text(encoding="utf-8"))
    differences = [
        f"{name} {found.get(name)!r} instead of {settings.get(name)!r}"
        for name in sorted(found.keys() | settings.keys())
        if found.get(name) != settings.get(name)
    ]
    if differences:
        raise PhantomError(
            f"{root} holds phantoms of other settings ({'; '.join(differences)}); "
            "name another folder, or remove this one to make them anew"
        )
    return True
