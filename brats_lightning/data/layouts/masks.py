"""Masks in folders of their own, which replace those of a data set."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from brats_lightning.data.cases import Case, surplus
from brats_lightning.data.folders import Found, nifti_files, stem

_MASK = re.compile(r"(?P<case>.+?)(?P<final>[-_]final)?[-_]seg\.nii(?:\.gz)?", re.IGNORECASE)


def mask_of(name: str) -> list[str]:
    """The cases a file may be the mask of, the likeliest first: ``a_final_seg.nii`` is of ``a_final`` or of ``a``."""
    match = _MASK.fullmatch(name)
    if match is None:
        return []
    return [f"{match['case']}{match['final']}", match["case"]] if match["final"] else [match["case"]]


def mask_folders(masks: Path | str | Sequence[Path | str] | None) -> list[Path]:
    """The folders that `data.masks` names."""
    return [Path(folder).expanduser() for folder in ([masks] if isinstance(masks, str | Path) else masks or ())]


def with_masks(
    cases: Iterable[Case],
    masks: Path | str | Sequence[Path | str] | None,
    owners: Callable[[str], Sequence[str]] = mask_of,
) -> list[Case]:
    """The cases with the masks that folders have of them; the last folder that has a case's mask wins.

    Args:
        cases: with masks of their own, or without.
        masks: one or several folders, searched to any depth.
        owners: the cases that a file may be the mask of by its name; one of none is of the case it is named after.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder has no mask of these cases.
    """
    known = {case.id: case for case in cases}
    for folder in mask_folders(masks):
        for name, (first, *others) in _masks_in(folder, known, owners).items():
            case = known[name]
            faults = [fault for fault in case.faults if fault.file != "seg"]
            faults += [surplus(name, "seg", other.path, first.path) for other in others]
            apart = first.path.parent not in {path.parent for path in case.images.values()}
            known[name] = replace(case, mask=first.path, masks_from=folder if apart else None, faults=tuple(faults))
    return list(known.values())


def _masks_in(folder: Path, cases: Collection[str], owners: Callable[[str], Sequence[str]]) -> dict[str, list[Found]]:
    if not os.path.isdir(folder):  # noqa: PTH112
        raise FileNotFoundError(f"data.masks: there is no folder {folder}")
    found: dict[str, list[Found]] = {}
    for file in nifti_files(folder):
        if case := next((name for name in owners(file.name) or [stem(file.name)] if name in cases), None):
            found.setdefault(case, []).append(file)
    if not found:
        example = next(iter(cases))
        raise ValueError(
            f"data.masks: {folder} has a mask of none of the {len(cases)} cases; expected names like "
            f"{example}-seg.nii.gz, {example}_seg.nii.gz or {example}.nii.gz, at any depth"
        )
    return found
