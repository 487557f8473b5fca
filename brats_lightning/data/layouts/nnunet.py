"""nnU-Net: ``dataset.json``, ``imagesTr/CASE_0000.nii.gz`` for each channel, ``labelsTr/CASE.nii.gz``."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from brats_lightning.data.cases import Case, Problem
from brats_lightning.data.folders import files_in, stem
from brats_lightning.data.layouts.assembly import assembled, no_case, root_folder, tell_strays
from brats_lightning.data.layouts.dataset_json import channel_modalities, label_map, read_json, which_channel
from brats_lightning.data.layouts.masks import with_masks

_LAYOUT = "imagesTr/CASE_0000.nii.gz, _0001 … and labelsTr/CASE.nii.gz, or a folder of such images"
_IMAGE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})\.nii(?:\.gz)?")


def nnunet_cases(
    root: Path | str,
    channels: Mapping[int | str, str | None] | None = None,
    masks: Path | str | Sequence[Path | str] | None = None,
) -> list[Case]:
    """The cases of a data set of nnU-Net, or of one folder of images, sorted by id; no image is opened.

    Cases of ``imagesTs`` belong to the test part. The masks of a folder ``images…`` are in ``labels…`` beside it.

    Args:
        root: with ``dataset.json`` in it or one folder above.
        channels: channel number → modality, or None to leave the channel out; replaces what ``dataset.json`` says.
        masks: one or several folders whose masks replace the others; the last that has a case's mask wins.

    Raises:
        FileNotFoundError: there is no such folder, or no ``dataset.json``.
        CaseError: channels that are no known sequence.
        ValueError: there is no case.
    """
    root = root_folder(root, _LAYOUT)
    path = dataset_file(root)
    modalities = channel_modalities(_read(path), channels, path)
    parts = {root / f"images{part}": name for part, name in (("Tr", None), ("Ts", "test"))}
    parts = {folder: name for folder, name in parts.items() if folder.is_dir()} or {root: None}
    files: dict[str, dict[str, list[Path]]] = {}
    faults: dict[str, list[Problem]] = {}
    part_of: dict[str, str | None] = {}
    unknown = []
    for folder, part in parts.items():
        for file in files_in(folder, root)[0]:
            if not (match := _IMAGE.fullmatch(file.name)):
                unknown.append(file.path)
                continue
            case, channel = match["case"], int(match["channel"])
            part_of.setdefault(case, part)
            kinds = files.setdefault(case, {})
            if channel not in modalities:
                fault = f"channel {match['channel']}: {file.path}", f"those of {path}"
                faults.setdefault(case, []).append(Problem(case, "-", *fault, which_channel(channel)))
            elif modality := modalities[channel]:
                kinds.setdefault(modality, []).append(file.path)
        images = folder.absolute()  # the current folder has no name
        labels = images.with_name(images.name.replace("images", "labels", 1))
        for file in files_in(labels, labels)[0] if labels != images and labels.is_dir() else ():
            if (case := stem(file.name)) not in files and folder == root:
                continue  # of a folder that holds a selection of the images
            part_of.setdefault(case, part)
            files.setdefault(case, {}).setdefault("seg", []).append(file.path)
    if not files:
        raise no_case(root, unknown, _LAYOUT)
    tell_strays(root, unknown, _LAYOUT)
    cases = [assembled(case, files[case], case, faults.get(case, ()), part=part_of[case]) for case in sorted(files)]
    return with_masks(cases, masks)


def nnunet_label_map(root: Path | str, labels: Sequence[str]) -> dict[int, int] | None:
    """What `label_map` makes of the ``dataset.json`` of ``root``."""
    path = dataset_file(root_folder(root, _LAYOUT))
    return label_map(_read(path), labels, path)


def dataset_file(root: Path) -> Path:
    """The ``dataset.json`` in a folder, or in the one above.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in (root, root.absolute().parent):
        if (folder / "dataset.json").is_file():
            return folder / "dataset.json"
    raise FileNotFoundError(
        f"there is no dataset.json in data.root={root} or above it, which names channels and labels"
    )


def _read(path: Path) -> dict:
    return read_json(path, "a dataset.json as nnU-Net reads it")
