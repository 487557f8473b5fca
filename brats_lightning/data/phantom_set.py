"""A set of made cases on disk: written once, whole or not at all, in a folder that knows what it was made with."""

import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import nibabel as nib

SETTINGS_FILE = "phantom.json"

Progress = Callable[[int, int], None]


class PhantomError(ValueError):
    """Settings that make no phantoms, or a folder that holds something else."""


def own_folder(parent: Path | str, name: str, settings: dict[str, Any]) -> Path:
    """``parent/name-<hash of the settings>``: other settings, another folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Path(parent) / f"{name}-{digest[:10]}"


def make_once(
    root: Path,
    settings: dict[str, Any],
    jobs: int,
    write: Callable[[Path, int], None],
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fills ``root``, unless it holds this very set already, and returns it.

    The set is built in a folder beside ``root`` and moved there whole, so an interrupted run leaves no half set and two
    processes may make the same one at once.

    Args:
        root: folder to make.
        settings: JSON-able; what the set depends on, kept in ``phantom.json``.
        jobs: ``write(folder, job)`` is called for each of ``range(jobs)``, in any order and process.
        write: writes one job's files into the folder; a picklable function if there are workers.
        workers: processes; one per CPU if None, none of its own if 0 or 1.
        progress: called with (jobs done, jobs in all) after each.

    Raises:
        PhantomError: ``root`` holds anything else.
    """
    if _is_made(root, settings):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        _write_all(building, jobs, write, workers, progress)
        (building / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        building.chmod(0o755)  # mkdtemp's folders are private
        try:
            building.replace(root)
        except OSError:  # not empty: another process was faster
            if not _is_made(root, settings):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    """Compress lightly, and to the same bytes every time."""
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _is_made(root: Path, settings: dict[str, Any]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    file = root / SETTINGS_FILE
    if not file.is_file():
        raise PhantomError(f"{root} exists and holds no phantoms (no {SETTINGS_FILE}); name another folder")
    found = json.loads(file.read_text())
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


def _write_all(
    folder: Path, jobs: int, write: Callable[[Path, int], None], workers: int | None, progress: Progress | None
) -> None:
    if workers is None:
        workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
    workers = min(workers, jobs)
    if workers <= 1:
        for job in range(jobs):
            write(folder, job)
            if progress:
                progress(job + 1, jobs)
        return
    # spawn: forking a process that already runs torch's threads can deadlock
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(write, folder, job) for job in range(jobs)]
        for done, future in enumerate(as_completed(futures), 1):
            future.result()
            if progress:
                progress(done, jobs)
