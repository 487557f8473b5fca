"""Check masks before they are submitted: ``python -m brats_lightning.submission predictions=DIR input=DIR``."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from brats_lightning.config.entry_point import entry_point

if TYPE_CHECKING:
    from brats_lightning.data.cases import Case, Problem
    from brats_lightning.data.nifti import Header

_NAME = re.compile(r".*?(\d{5}-\d{3})\.nii\.gz")
_TOLERANCE = 1e-3  # mm; headers hold float32


def submission(cfg: DictConfig) -> dict[str, Any]:
    """Check a folder of masks, and print one table of all that is wrong.

    Args:
        cfg: a resolved config as ``conf/submission.yaml`` composes it.

    Returns:
        The number of ``masks``.

    Raises:
        CaseError: what the challenge would refuse.
        FileNotFoundError: there is no such folder.
    """
    from brats_lightning.data.cases import CaseError
    from brats_lightning.runtime.console import show

    folder = Path(cfg.predictions).expanduser()
    if problems := check_submission(folder, cfg.labels, None if cfg.input is None else Path(cfg.input).expanduser()):
        raise CaseError(problems)
    masks = sum(1 for _ in folder.iterdir())
    show(f"{masks} masks, no problem found" + (" (not compared with any input)" if cfg.input is None else ""))
    return {"masks": masks}


def check_submission(folder: Path, labels: Sequence[int], inputs: Path | None = None) -> "list[Problem]":
    """Everything that the challenge would refuse: all masks of all cases.

    A submission is a flat folder with one ``….nii.gz`` per case and nothing else; each name ends with the five digits
    of the patient and three of the timepoint, ``00110-000.nii.gz``. Voxels are unscaled uint8 class indices, on the
    grid of the case's images.

    Args:
        folder: of the masks.
        labels: that may occur.
        inputs: the cases' images; without them geometry, missing and surplus cases stay unchecked.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no case in ``inputs``.
    """
    import numpy as np

    from brats_lightning.data.cases import Problem, find_cases
    from brats_lightning.data.nifti import UnreadableFile, read_header, read_volume

    if not os.path.isdir(folder):  # noqa: PTH112  # Path's raises where a folder above may not be read
        raise FileNotFoundError(f"there is no folder {folder} to check")
    cases = _by_number(find_cases(inputs)) if inputs is not None else {}
    problems: list[Problem] = []
    seen: dict[str, str] = {}

    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        case = match[1] if match else "-"

        def problem(found: str, expected: str, remedy: str, case: str = case, file: str = path.name) -> None:
            problems.append(Problem(case, file, found, expected, remedy))

        if not match or not path.is_file():
            found = "a folder" if path.is_dir() else "not the name of a mask"
            problem(found, "only files named …ddddd-ddd.nii.gz, side by side", "move it elsewhere, or rename it")
            continue
        if case in seen:
            problem(f"the same case as {seen[case]}", "one mask for each case", "remove one of them")
            continue
        seen[case] = path.name
        if inputs is not None and case not in cases:
            problem("no such case in the input", "masks of the input's cases only", "remove it")
        try:
            volume, header = read_volume(path), read_header(path)
        except UnreadableFile as error:
            problem(error.found, error.expected, "write it again")
            continue
        if not header.compressed:  # which we read, and others refuse
            problem("not compressed, though its name ends with .gz", "a gzip file", "compress it with gzip")
        scaled = f", scaled by {header.scaling[0]:g} and {header.scaling[1]:g}" if header.scaling else ""
        if header.dtype != np.uint8 or scaled:
            problem(f"voxels of type {header.dtype}{scaled}", "uint8, not scaled", "write class indices as uint8")
        if unknown := sorted(set(np.unique(volume.values).tolist()) - {0, *labels}):
            listed = ", ".join(f"{value:g}" for value in unknown[:10])
            problem(f"label {listed}", f"0, {', '.join(map(str, labels))}", "map the labels; labels=[…] allows others")
        if case in cases:
            _compare(header, cases[case], problem)
    for number, expected in cases.items():
        if number not in seen:
            problems.append(Problem(number, "-", "missing", f"a mask {expected.id}.nii.gz", "predict this case"))
    return problems


def _by_number(cases: "Sequence[Case]") -> "dict[str, Case]":
    numbered = ((_NAME.fullmatch(f"{case.id}.nii.gz"), case) for case in cases)
    return {match[1] if match else case.id: case for match, case in numbered}


def _compare(header: "Header", case: "Case", problem: Any) -> None:
    from brats_lightning.data.nifti import UnreadableFile, read_header

    name, image = next(iter(case.files.items()))
    try:
        wanted = read_header(image)
    except UnreadableFile:
        problem(f"its {name} cannot be read", "a sound image to compare with", "check the input")
        return
    if header.shape != wanted.shape:
        problem(f"shape {header.shape}", f"{wanted.shape}, as {name}", "write it on the grid of the input")
    elif (distance := header.grid.distance(wanted.grid)) > _TOLERANCE:
        problem(f"lies {distance:.3g} mm off {name}", "the input's affine", "write it with the header of the input")


def main() -> None:
    """The command ``brats-submission``."""
    entry_point("submission", submission)()


if __name__ == "__main__":
    main()
