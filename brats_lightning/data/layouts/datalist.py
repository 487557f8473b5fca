"""A datalist: a JSON file with lists of cases, as MONAI and the Medical Segmentation Decathlon have it."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from brats_lightning.data.cases import Case, CaseError, Problem
from brats_lightning.data.folders import stem
from brats_lightning.data.layouts.assembly import assembled, no_case
from brats_lightning.data.layouts.dataset_json import (
    channel_modalities,
    label_map,
    modality_of,
    read_json,
    which_channel,
)
from brats_lightning.data.layouts.masks import with_masks

# The lists of a datalist, and the part that their cases belong to; the training cases may be dealt out further.
PART_OF = {"training": None, "validation": "val", "test": "test", "testing": "test"}
_ID = ("case", "id", "subject")
_LAYOUT = 'a JSON file with {"training": [{"image": [file, …], "label": file}, …]}, and perhaps "validation" and "test"'


def datalist_cases(
    root: Path | str,
    channels: Mapping[int | str, str | None] | None = None,
    masks: Path | str | Sequence[Path | str] | None = None,
) -> list[Case]:
    """The cases of a datalist, sorted by id; no image is opened.

    The ``image`` of an entry is a list of files in the order of the channels, one 4-D file of all channels, or a
    mapping from sequences to files; its ``label`` is the mask. Paths start in the folder of the JSON file. An id is an
    entry's ``case``, ``id`` or ``subject``, or else what the names of its images have in common.

    Args:
        root: the JSON file, or its folder if it is called ``dataset.json`` or is the only JSON file there.
        channels: channel number, or name of an image, → modality, or None to leave it out; replaces what the file says.
        masks: one or several folders whose masks replace the others; the last that has a case's mask wins.

    Raises:
        FileNotFoundError: there is no such file.
        CaseError: channels that are no known sequence, or something else than entries.
        ValueError: there is no case.
    """
    path = datalist_file(root)
    content = read_json(path, _LAYOUT)
    entries = list(entries_of(content, path))
    listed = any(not isinstance(entry.get("image", {}), Mapping) for _, entry in entries)
    modalities = channel_modalities(content, channels, path, required=listed)
    cases: dict[str, Case] = {}
    twice: dict[str, Problem] = {}
    for place, (part, entry) in enumerate(entries):
        name = entry_id(entry) or f"entry {place}"
        if name in cases:
            found, remedy = f"several entries of this name in {path}", 'give each entry its own name: "id": …'
            twice[name] = Problem(name, "-", found, "one entry for each case", remedy)
        cases[name] = _case(name, entry, part, modalities, path)
    if not cases:
        raise no_case(path, [], _LAYOUT)
    for name, fault in twice.items():
        cases[name] = replace(cases[name], faults=(fault,))
    return with_masks([cases[name] for name in sorted(cases)], masks)


def datalist_label_map(root: Path | str, labels: Sequence[str]) -> dict[int, int] | None:
    """What `label_map` makes of the labels that a datalist names; None if it names none."""
    path = datalist_file(root)
    return label_map(read_json(path, _LAYOUT), labels, path)


def datalist_file(root: Path | str) -> Path:
    """The JSON file that ``root`` is, or that lies in it.

    Raises:
        FileNotFoundError: there is none, or which one is not clear.
    """
    path = Path(root).expanduser()
    if os.path.isfile(path):  # noqa: PTH113  # Path's raises where a folder above may not be read
        return path
    found = sorted(path.glob("*.json"))
    for file in found:
        if len(found) == 1 or file.name == "dataset.json":
            return file
    there = f"holds {', '.join(file.name for file in found)}" if found else "has no JSON file"
    raise FileNotFoundError(f"data.root={root} {there}; name the datalist itself, {_LAYOUT}")


def entries_of(content: Mapping[str, Any], path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of the list and the entry of each case; of a file alone it is made the ``image``.

    Raises:
        CaseError: there is no list, or something else than entries in one.
    """
    problems = []
    if not PART_OF.keys() & content:
        problems.append(
            Problem("-", str(path), f"the keys {', '.join(content) or '–'}", _LAYOUT, "name the right file")
        )
    for name in [name for name in PART_OF if name in content]:
        for place, entry in enumerate(content[name] if isinstance(content[name], list) else [None]):
            if isinstance(entry, str):
                yield name, {"image": entry}
            elif isinstance(entry, dict):
                yield name, entry
            else:
                fault = f"{name}[{place}] is {entry!r}", '{"image": …, "label": …}'
                problems.append(Problem("-", str(path), *fault, "correct the file"))
    if problems:
        raise CaseError(problems)


def entry_id(entry: Mapping[str, Any]) -> str:
    """The id of an entry: stated, or what its images' names have in common, or the name of their folder."""
    if stated := next((str(entry[key]) for key in _ID if entry.get(key) not in (None, "")), None):
        return stated
    paths = [PurePosixPath(file) for file in _image_files(entry).values()]
    parts = [re.split(r"([-_.])", stem(path.name)) for path in paths]
    common = [same[0] for same in takewhile(lambda each: len(set(each)) == 1, zip(*parts, strict=False))]
    if len(parts) == 1 and (modality_of(common[-1]) or common[-2:] == ["_", "0000"]):
        common = common[:-1]
    return "".join(common).rstrip("-_.") or (paths[0].parent.name if paths else "")


def _image_files(entry: Mapping[str, Any]) -> dict[Any, str]:
    """Channel number or name of the sequence → file. MONAI also has the sequences beside the ``label``."""
    image = entry.get("image", {word: file for word, file in entry.items() if modality_of(word)})
    if not isinstance(image, dict):
        image = dict(enumerate(image if isinstance(image, list) else [image]))
    return {key: file for key, file in image.items() if isinstance(file, str)}


def _case(name: str, entry: Mapping[str, Any], part: str, channels: Mapping[int | str, str | None], path: Path) -> Case:
    files = _image_files(entry)
    numbers = {number: modality for number, modality in channels.items() if isinstance(number, int)}
    volumes: dict[str, int] = {}
    faults = []
    if list(files) == [0] and len(numbers) > 1:  # all channels in one 4-D file
        volumes = {modality: number for number, modality in numbers.items() if modality}
        images = dict.fromkeys(volumes, files[0])
    else:
        images = {}
        for key, file in files.items():
            modality = channels[key] if key in channels else modality_of(str(key))
            if modality:
                images[modality] = file
            elif key not in channels:
                fault = f"an image {key!r}", f"those of {path}, or names such as t1n, t1c, t2w, t2f"
                faults.append(Problem(name, "-", *fault, which_channel(key)))
        if 0 in files and len(files) < len(numbers):
            fault = f"{len(files)} images", f"{len(numbers)}, one for each channel of {path}"
            faults.append(Problem(name, "-", *fault, "correct the entry, or set data.channels"))
    found = {modality: [path.parent / file] for modality, file in images.items()}
    labels = entry.get("label")
    label = str((next(iter(labels), "") if isinstance(labels, list) else labels) or "")
    if label:
        found["seg"] = [path.parent / label]
    inside = label and not PurePosixPath(label).is_absolute() and ".." not in label
    patient = entry.get("patient", entry.get("subject"))
    return assembled(
        name,
        found,
        label if inside else name,
        faults,
        volumes=volumes,
        part=PART_OF[part],
        **({} if patient is None else {"patient": str(patient)}),
    )
