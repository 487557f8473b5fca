"""What a challenge refuses in a folder of masks, and the archive that it takes."""

import math
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from brats_lightning.data.cases import Case, Problem
from brats_lightning.data.nifti import UnreadableFile, Volume, read_header, read_volume
from brats_lightning.inference.plausibility import MAX_SHARE
from brats_lightning.runtime.files import replace_file

_NAME = re.compile(r".*?(\d{5}-\d{3})\.nii\.gz")
_TOLERANCE = 1e-3  # mm, for the float32 rounding of headers
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can hold

Fault = tuple[str, str, str]  # what was found, what was expected, and what to do


def check_submission(
    folder: Path, labels: Sequence[int], inputs: Sequence[Case] | None = None, max_share: float | int = MAX_SHARE
) -> list[Problem]:
    """All faults of all masks for which the challenge would refuse them, or which no patient can have.

    A submission is a flat folder with one ``….nii.gz`` per case and nothing else. Each name ends with the five digits
    of the patient and the three of the timepoint, ``00110-000.nii.gz``. Voxels are unscaled uint8 class indices on the
    grid of the case's images.

    Args:
        folder: of the masks.
        labels: that are allowed.
        inputs: the cases; without them geometry, missing and surplus cases are not checked.
        max_share: the largest fraction of the box around the brain that may be labelled; without a case, of the volume.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(folder):  # noqa: PTH112  # Path.is_dir raises if a parent folder cannot be read
        raise FileNotFoundError(f"there is no folder {folder} to check")
    problems: list[Problem] = []
    cases: dict[str, Case] = {}
    for case in inputs or ():
        match = _NAME.fullmatch(f"{case.id}.nii.gz")
        number = match[1] if match else case.id
        if (other := cases.setdefault(number, case)) is not case:
            fault = f"the same number as {other.id}", "one case for each number", "check their masks in two folders"
            problems.append(Problem(number, case.id, *fault))
    seen: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        number = match[1] if match else "-"
        faults: list[Fault] = []
        if not match or not path.is_file():
            found = "a folder" if path.is_dir() else "not the name of a mask"
            faults += [(found, "only files named …ddddd-ddd.nii.gz, side by side", "move it elsewhere, or rename it")]
        elif number in seen:
            faults += [(f"the same case as {seen[number]}", "one mask for each case", "remove one of them")]
        else:
            seen[number] = path.name
            if inputs and number not in cases:
                faults += [("no such case in the input", "masks of the input's cases only", "remove it")]
            faults += mask_faults(path, labels, cases.get(number), max_share)
        problems += [Problem(number, path.name, *fault) for fault in faults]
    if not seen and not problems:
        problems.append(Problem("-", "-", f"no mask in {folder}", "one for each case", "predict the cases"))
    missing = {number: case for number, case in cases.items() if number not in seen}
    remedy = "predict this case"
    return problems + [Problem(n, "-", "missing", f"a mask {case.id}.nii.gz", remedy) for n, case in missing.items()]


def mask_faults(
    path: Path, labels: Sequence[int], case: Case | None, max_share: float | int = MAX_SHARE
) -> Iterator[Fault]:
    """What is wrong with the file of a mask, whatever its name; see `check_submission`."""
    try:
        volume, header = read_volume(path), read_header(path)
    except UnreadableFile as error:
        yield error.found, error.expected, "write it again"
        return
    if not header.compressed:  # readable here, but other programs refuse it
        yield "not compressed, though its name ends with .gz", "a gzip file", "compress it with gzip"
    scaled = f", scaled by {header.scaling[0]:g} and {header.scaling[1]:g}" if header.scaling else ""
    if header.dtype != np.uint8 or scaled:
        yield f"voxels of type {header.dtype}{scaled}", "uint8, not scaled", "write class indices as uint8"
    if unknown := sorted(set(np.unique(volume.values).tolist()) - {0, *labels}):
        listed = ", ".join(f"{value:g}" for value in unknown[:10])
        yield f"label {listed}", f"0, {', '.join(map(str, labels))}", "map the labels; labels=[…] allows others"
    if case is None:
        yield from _large_share(volume, math.prod(volume.grid.shape), "the volume", max_share)
        return
    name, file = next(iter(case.files.items()))
    try:
        wanted, image = read_header(file, case.volumes.get(name)), read_volume(file, case.volumes.get(name))
    except UnreadableFile:
        yield f"its {name} cannot be read", "an intact image to compare with", "check the input"
        return
    if header.shape != wanted.shape:
        yield f"shape {header.shape}", f"{wanted.shape}, as {name}", "write it on the grid of the input"
    elif difference := header.grid.mismatch(wanted.grid, _TOLERANCE, name):
        yield *difference, "write it with the header of the input"
    else:
        yield from _large_share(volume, image.values.size, "the box around the brain", max_share)


def _large_share(mask: Volume, voxels: int, of: str, most: float | int) -> Iterator[Fault]:
    """The fault that more than a fraction of so many voxels is labelled."""
    values, counts = np.unique(mask.values[mask.values != 0], return_counts=True)
    if counts.sum() > most * voxels:
        shares = ", ".join(f"label {value:g} {n / max(1, voxels):.0%}" for value, n in zip(values, counts, strict=True))
        remedy = "look at it: classes may be mixed up, or the scans unlike those of the training; max_share=… allows it"
        yield f"{counts.sum() / max(1, voxels):.0%} of {of} is labelled: {shares}", f"at most {most:.0%}", remedy


def write_zip(folder: Path, file: Path) -> int:
    """Pack the files of a flat folder, in the order of their names, to the same bytes every time; the archive's size.

    The masks are compressed already, and stored as they are.

    Raises:
        UnwritableFile: for want of space or permission.
    """

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for mask in sorted(folder.iterdir()):
                entry = zipfile.ZipInfo(mask.name, _DATE)
                entry.create_system, entry.external_attr = 3, 0o100644 << 16  # as Unix writes a readable file
                archive.writestr(entry, mask.read_bytes())

    return replace_file(file, write)
