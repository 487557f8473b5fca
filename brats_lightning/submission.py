"""Check masks before they are submitted: ``python -m brats_lightning.submission predictions=DIR input=DIR``."""

import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from brats_lightning.config.build import input_cases
from brats_lightning.config.entry_point import entry_point

if TYPE_CHECKING:
    from brats_lightning.data.cases import Case, Problem

_NAME = re.compile(r".*?(\d{5}-\d{3})\.nii\.gz")
_TOLERANCE = 1e-3  # mm, for the float32 rounding of headers


def submission(cfg: DictConfig) -> dict[str, Any]:
    """Check a folder of masks, and report all faults in one table.

    Args:
        cfg: a resolved config as ``conf/submission.yaml`` composes it.

    Returns:
        The number of ``masks``.

    Raises:
        CaseError: the faults that `check_submission` finds.
        FileNotFoundError: there is no such folder.
    """
    from brats_lightning.data.cases import CaseError
    from brats_lightning.runtime.console import show

    folder = Path(cfg.predictions)
    cases = None if cfg.input is None else input_cases(cfg)
    if problems := check_submission(folder, cfg.labels, cases):
        raise CaseError(problems)
    masks = sum(1 for _ in folder.iterdir())
    show(f"{masks} masks, no problem found" + (" (not compared with any input)" if cfg.input is None else ""))
    return {"masks": masks}


def check_submission(folder: Path, labels: Sequence[int], inputs: "Sequence[Case] | None" = None) -> "list[Problem]":
    """All faults of all masks for which the challenge would refuse them.

    A submission is a flat folder with one ``….nii.gz`` per case and nothing else. Each name ends with the five digits
    of the patient and the three of the timepoint, ``00110-000.nii.gz``. Voxels are unscaled uint8 class indices on the
    grid of the case's images.

    Args:
        folder: of the masks.
        labels: that are allowed.
        inputs: the cases; without them geometry, missing and surplus cases are not checked.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    from brats_lightning.data.cases import Problem

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
        faults: list[tuple[str, str, str]] = []
        if not match or not path.is_file():
            found = "a folder" if path.is_dir() else "not the name of a mask"
            faults += [(found, "only files named …ddddd-ddd.nii.gz, side by side", "move it elsewhere, or rename it")]
        elif number in seen:
            faults += [(f"the same case as {seen[number]}", "one mask for each case", "remove one of them")]
        else:
            seen[number] = path.name
            if inputs and number not in cases:
                faults += [("no such case in the input", "masks of the input's cases only", "remove it")]
            faults += _faults(path, labels, cases.get(number))
        problems += [Problem(number, path.name, *fault) for fault in faults]
    if not seen and not problems:
        problems.append(Problem("-", "-", f"no mask in {folder}", "one for each case", "predict the cases"))
    missing = {number: case for number, case in cases.items() if number not in seen}
    remedy = "predict this case"
    return problems + [Problem(n, "-", "missing", f"a mask {case.id}.nii.gz", remedy) for n, case in missing.items()]


def _faults(path: Path, labels: Sequence[int], case: "Case | None") -> Iterator[tuple[str, str, str]]:
    """What is wrong with a mask's file, what was expected, and what to do."""
    import numpy as np

    from brats_lightning.data.nifti import UnreadableFile, read_header, read_volume

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
        return
    name, image = next(iter(case.files.items()))
    try:
        wanted = read_header(image, case.volumes.get(name))
    except UnreadableFile:
        yield f"its {name} cannot be read", "an intact image to compare with", "check the input"
        return
    if header.shape != wanted.shape:
        yield f"shape {header.shape}", f"{wanted.shape}, as {name}", "write it on the grid of the input"
    elif difference := header.grid.mismatch(wanted.grid, _TOLERANCE, name):
        yield *difference, "write it with the header of the input"


main = partial(entry_point, "submission", submission)

if __name__ == "__main__":
    main()
