"""NIfTI files below a folder, whatever else lies there, and the case each belongs to by its name."""

import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from brats_lightning.core.labels import OLDER_NAMES

log = logging.getLogger(__name__)

# <case>-t1n.nii.gz since BraTS 2023, <case>_t1.nii.gz before.
_IMAGE = re.compile(r"(?P<case>.+?)(?:-(?P<new>t1n|t1c|t2w|t2f)|_(?P<old>t1|t1ce|t2|flair))\.nii(?:\.gz)?")
_MASK = re.compile(r"(?P<case>.+?)(?P<final>[-_]final)?[-_]seg\.nii(?:\.gz)?")


class Found(NamedTuple):
    """A NIfTI file: the name it goes by, where it is, the folder it belongs to, and the one that was searched."""

    name: str
    path: Path
    folder: Path
    root: Path

    @property
    def image(self) -> tuple[str, str, bool] | None:
        """(case, modality, whether that is an older name) if it is named as an image."""
        match = _IMAGE.fullmatch(self.name)
        return match and (match["case"], match["new"] or OLDER_NAMES[match["old"]], match["old"] is not None)

    @property
    def mask_of(self) -> list[str]:
        """The cases it may be the mask of, the likeliest first: ``a_final_seg.nii`` is of ``a_final`` or of ``a``."""
        match = _MASK.fullmatch(self.name)
        if match is None:
            return []
        return [f"{match['case']}{match['final']}", match["case"]] if match["final"] else [match["case"]]


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
    (``X_flair.nii/00000377_brain_flair.nii``), is that file, under the folder's name.
    """
    names, folders = _listed(folder)
    files, others = [Found(name, folder / name, folder, root) for name in names], []
    for name in folders:
        within, deeper = _listed(folder / name) if is_nifti(name) else ([], [])
        if len(within) == 1 and not deeper:
            files.append(Found(name, folder / name / within[0], folder, root))
        else:
            others.append(folder / name)
    return sorted(files), others


def masks_in(folder: Path, cases: Collection[str]) -> dict[str, list[Found]]:
    """The masks of these cases in a folder of masks: named as masks, or by the case alone.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no mask of these cases.
    """
    if not os.path.isdir(folder):  # noqa: PTH112
        raise FileNotFoundError(f"data.masks: there is no folder {folder}")
    found: dict[str, list[Found]] = {}
    for file in nifti_files(folder):
        names = file.mask_of or [file.name.removesuffix(".gz").removesuffix(".nii")]
        if case := next((name for name in names if name in cases), None):
            found.setdefault(case, []).append(file)
    if not found:
        example = next(iter(cases))
        raise ValueError(
            f"data.masks: {folder} has a mask of none of the {len(cases)} cases; expected names like "
            f"{example}-seg.nii.gz, {example}_seg.nii.gz or {example}.nii.gz, at any depth"
        )
    return found


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


def is_nifti(name: str) -> bool:
    """Whether a name ends like a NIfTI file's."""
    return name.endswith((".nii", ".nii.gz"))


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
