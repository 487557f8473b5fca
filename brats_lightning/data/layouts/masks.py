"""Masks by the names that data sets give them, wherever they lie."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from brats_lightning.data.folders import Found, nifti_files, stem

_MASK = re.compile(r"(?P<case>.+?)(?P<final>[-_]final)?[-_]seg\.nii(?:\.gz)?")


def mask_of(name: str) -> list[str]:
    """The cases a file may be the mask of, the likeliest first: ``a_final_seg.nii`` is of ``a_final`` or of ``a``."""
    match = _MASK.fullmatch(name)
    if match is None:
        return []
    return [f"{match['case']}{match['final']}", match["case"]] if match["final"] else [match["case"]]


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
        if case := next((name for name in mask_of(file.name) or [stem(file.name)] if name in cases), None):
            found.setdefault(case, []).append(file)
    if not found:
        example = next(iter(cases))
        raise ValueError(
            f"data.masks: {folder} has a mask of none of the {len(cases)} cases; expected names like "
            f"{example}-seg.nii.gz, {example}_seg.nii.gz or {example}.nii.gz, at any depth"
        )
    return found
