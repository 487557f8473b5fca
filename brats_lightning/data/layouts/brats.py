"""BraTS: a folder for each case, its files named by case and modality."""

import re
from collections.abc import Sequence
from pathlib import Path

from brats_lightning.core.labels import MODALITIES, OLDER_NAMES
from brats_lightning.data.cases import Case, patient_and_timepoint, surplus
from brats_lightning.data.folders import Found, likely_files, nifti_files, strays
from brats_lightning.data.layouts.assembly import no_case, root_folder, tell_strays
from brats_lightning.data.layouts.masks import mask_folders, mask_of, with_masks

_LAYOUT = "nested folders with <case>-t1n.nii.gz, -t1c, -t2w, -t2f, -seg (or the older <case>_t1, _t1ce, …)"

# <case>-t1n.nii.gz since BraTS 2023, <case>_t1.nii.gz before; others write T1N and FLAIR.
_IMAGE = re.compile(
    r"(?P<case>.+?)(?:-(?P<new>t1n|t1c|t2w|t2f)|_(?P<old>t1|t1ce|t2|flair))\.nii(?:\.gz)?", re.IGNORECASE
)


def image_of(name: str) -> tuple[str, str, bool] | None:
    """(case, modality, whether that is an older name) if a file is named as an image."""
    match = _IMAGE.fullmatch(name)
    if match is None:
        return None
    new, old = match["new"], match["old"]
    return match["case"], new.lower() if new else OLDER_NAMES[old.lower()], old is not None


def find_cases(
    root: Path | str, masks: Path | str | Sequence[Path | str] | None = None, setting: str = "data.root"
) -> list[Case]:
    """All cases below a folder, however nested, sorted by id. Symbolic links are followed; no file is opened.

    Images of a case lie in one folder; those of another folder are its faults, which `check_files` reports. A mask lies
    with them, or, if there is none, anywhere below ``root`` under the name ``<case>-seg.nii.gz``,
    ``<case>_seg.nii.gz`` or ``<case>_final_seg.nii.gz``.

    Args:
        root: to be searched.
        masks: one or several folders whose masks, named so or ``<case>.nii.gz``, replace those below ``root``; the last
            that has a case's mask wins.
        setting: that names ``root``, for messages.

    Raises:
        FileNotFoundError: a folder doesn't exist.
        ValueError: there is no case in ``root``, or no mask of one in a folder of ``masks``.
    """
    root = root_folder(root, _LAYOUT, setting)
    folders = [folder.absolute() for folder in mask_folders(masks)]
    images: dict[str, list[Found]] = {}
    own: list[Found] = []
    unknown: list[Found] = []
    for file in nifti_files(root):
        if image := image_of(file.name):
            images.setdefault(image[0], []).append(file)
        elif not mask_of(file.name):
            unknown.append(file)
        elif not any(file.path.absolute().is_relative_to(folder) for folder in folders):
            own.append(file)
    found: dict[str, list[Found]] = {}
    for file in own:
        names = mask_of(file.name)
        found.setdefault(next((case for case in names if case in images), names[-1]), []).append(file)
    names = sorted(images.keys() | found)
    if not names:
        raise no_case(root, [file.path for file in unknown], _LAYOUT, setting)
    likely = likely_files({name: [*images.get(name, ()), *found.get(name, ())] for name in names}, unknown)
    tell_strays(root, strays(unknown, likely), _LAYOUT)
    cases = [_case(name, images.get(name, []), found.get(name, []), tuple(likely.get(name, ()))) for name in names]
    return with_masks(cases, masks)


def find_inputs(folders: str | Path | Sequence[str]) -> list[Case]:
    """The cases below one or several folders, sorted by id.

    Raises:
        FileNotFoundError: a folder doesn't exist.
        ValueError: a folder holds no case, or two folders hold cases of one name.
    """
    cases: dict[str, tuple[Case, str | Path]] = {}
    twice = []
    for folder in [folders] if isinstance(folders, str | Path) else folders:
        for case in find_cases(folder, setting="input"):
            if case.id in cases:
                twice.append(f"{case.id} in {cases[case.id][1]} and in {folder}")
            cases[case.id] = case, folder
    if twice:
        listed = ", ".join(twice[:10]) + ", …" * (len(twice) > 10)
        raise ValueError(f"input: cases that are in two of the folders: {listed}; leave one of each out")
    return [cases[name][0] for name in sorted(cases)]


def _case(name: str, images: Sequence[Found], masks: Sequence[Found], others: tuple[Path, ...]) -> Case:
    files: dict[str, Path] = {}
    second: list[Path] = []
    older = False
    place = (images or masks)[0].folder
    for file in images:
        _, modality, old = image_of(file.name) or ("", "", False)
        older |= old
        if modality in files or file.folder != place:
            second.append(file.path)
        else:
            files[modality] = file.path
    masks = sorted(masks, key=lambda mask: mask.folder != place)  # those that lie with the images first
    faults = [surplus(name, "-", path, next(iter(files.values()))) for path in sorted(second)]
    faults += [surplus(name, "seg", path, masks[0].path) for path in sorted(mask.path for mask in masks[1:])]
    patient, timepoint = (name, None) if older else patient_and_timepoint(name)
    return Case(
        id=name,
        patient=patient,
        timepoint=timepoint,
        images={modality: files[modality] for modality in MODALITIES if modality in files},
        mask=masks[0].path if masks else None,
        masks_from=masks[0].root if masks and masks[0].folder != place else None,
        others=others,
        mask_name=f"{name}{'_' if older else '-'}seg.nii.gz",
        faults=tuple(faults),
    )
