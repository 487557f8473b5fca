"""NIfTI files below a folder, whatever else lies there."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A NIfTI file: the name it goes by, where it is, the folder it belongs to, and the one that was searched."""

    name: str
    path: Path
    folder: Path
    root: Path

    @property
    def below_root(self) -> str:
        """The path from ``root``, by the name it goes by."""
        return (self.folder / self.name).relative_to(self.root).as_posix()


def nifti_files(root: Path) -> Iterator[Found]:
    """All files at or below ``root``, folder by folder, sorted; none is opened.

    Symbolic links are followed, each real folder is visited once. Hidden files and folders are skipped, and with a
    warning those that cannot be read.
    """
    pending, seen = [root], set()
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:  # links may point back up
            continue
        seen.add(real)
        files, folders = files_in(folder, root)
        yield from files
        pending += reversed(folders)


def files_in(folder: Path, root: Path) -> tuple[list[Found], list[Path]]:
    """The NIfTI files of one folder, sorted, and its folders.

    A folder named like a NIfTI file that holds just one, as some downloads have it
    (``X_flair.nii/00000377_brain_flair.nii``), is that file, under the folder's name. Endings may be upper case; the
    names that files go by have them in lower case.
    """
    names, folders = _listed(folder)
    files, others = [Found(_lower_ending(name), folder / name, folder, root) for name in names], []
    for name in folders:
        within, deeper = _listed(folder / name) if is_nifti(name) else ([], [])
        if len(within) == 1 and not deeper:
            files.append(Found(_lower_ending(name), folder / name / within[0], folder, root))
        else:
            others.append(folder / name)
    return sorted(files), others


def likely_files(images: Mapping[str, Iterable[Found]], unknown: Iterable[Found]) -> dict[str, list[Path]]:
    """Files of unknown names by the case whose id begins their name, or that is alone in their folder."""
    living: dict[Path, set[str]] = {}
    for case, files in images.items():
        for file in files:
            living.setdefault(file.folder, set()).add(case)
    likely: dict[str, list[Path]] = {}
    for file in unknown:
        beginnings = [file.name[: match.start()] for match in re.finditer(r"[-_.]", file.name)]
        owners = [beginning for beginning in beginnings if beginning in images] or list(living.get(file.folder, ()))
        if len(owners) == 1:
            likely.setdefault(owners[0], []).append(file.path)
    return likely


def strays(unknown: Iterable[Found], likely: Mapping[str, Iterable[Path]]) -> list[Path]:
    """The files of unknown names that are not `likely_files` of any case."""
    taken = {path for paths in likely.values() for path in paths}
    return [file.path for file in unknown if file.path not in taken]


def is_nifti(name: str) -> bool:
    """Whether a name ends like a NIfTI file's."""
    return name.lower().endswith((".nii", ".nii.gz"))


def stem(name: str) -> str:
    """A NIfTI file's name without its ending."""
    return re.sub(r"(\.nii)?(\.gz)?$", "", name, flags=re.IGNORECASE)


def _lower_ending(name: str) -> str:
    ending = ".nii.gz" if name.lower().endswith(".gz") else ".nii"
    return name[: -len(ending)] + ending


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of a folder's NIfTI files and of its folders, sorted."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                elif is_nifti(entry.name):
                    files.append(entry.name)
    except OSError as error:
        _pass_over(folder, error.strerror or str(error))
    return files, folders


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link, or one into an unreadable folder: reading it will report that
        return False


@cache  # folders are searched more than once in a run
def _pass_over(folder: Path, reason: str) -> None:
    log.warning("passed over %s: %s", folder, reason)
