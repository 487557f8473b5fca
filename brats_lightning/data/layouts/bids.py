"""BIDS: ``sub-…/[ses-…/]anat/sub-…_ses-…_T1w.nii.gz``, masks beside the images or in ``derivatives``.

https://bids-specification.readthedocs.io; a name is a list of entities, ``key-value``, and a suffix.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from brats_lightning.data.cases import Case, Problem, examples
from brats_lightning.data.folders import nifti_files, stem
from brats_lightning.data.layouts.assembly import assembled, no_case, root_folder, tell_strays
from brats_lightning.data.layouts.masks import with_masks

_LAYOUT = "sub-…/[ses-…/]anat/sub-…_T1w.nii.gz, _ce-gadolinium_T1w, _T2w, _FLAIR, and masks …_dseg, _mask or _seg"
_MASKS = ("dseg", "seg", "mask")
_PREDICTION = "prediction"  # how masks of ours are described in names
_NO_LESIONS = {"brain", "head", _PREDICTION}  # masks of something else, and our own


class BidsFile(NamedTuple):
    """A file and what its name says."""

    path: Path
    entities: dict[str, str]  # with the suffix under ``suffix``

    @property
    def kind(self) -> str | None:
        """The modality, ``seg``, or None for anything else."""
        suffix = self.entities["suffix"]
        if suffix in _MASKS:
            return None if _NO_LESIONS & {self.entities.get("desc"), self.entities.get("label")} else "seg"
        if suffix == "T1w":
            return "t1c" if "ce" in self.entities else "t1n"
        return {"T2w": "t2w", "FLAIR": "t2f"}.get(suffix)

    @property
    def case(self) -> str:
        """Subject and session."""
        return "_".join(f"{key}-{self.entities[key]}" for key in ("sub", "ses") if key in self.entities)


def bids_cases(
    root: Path | str,
    entities: Mapping[str, Any] | None = None,
    masks: Path | str | Sequence[Path | str] | None = None,
) -> list[Case]:
    """The sessions of a BIDS data set, or of one of its derivatives, sorted by id; no file is opened.

    A session's id is ``sub-X_ses-Y``, its patient ``sub-X``. Images are taken from anywhere but ``derivatives``, masks
    from there, too.

    Args:
        root: holds the folders ``sub-…``.
        entities: entity → value, to choose by where a session has several files of one kind: ``{"run": 1}``. None means
            files without the entity; the suffix is one, too, ``suffix``.
        masks: one or several folders whose masks replace the others; the last that has a case's mask wins.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: there is no session with an image or a mask.
    """
    root = root_folder(root, _LAYOUT)
    found: dict[str, dict[str, list[BidsFile]]] = {}
    unknown = []
    for file in nifti_files(root):
        named = parsed(file.name, file.path)
        kind = named and named.kind
        derived = "derivatives" in file.folder.relative_to(root).parts
        if named is None:
            unknown.append(file.path)
        elif kind and (kind == "seg" or not derived):
            found.setdefault(named.case, {}).setdefault(kind, []).append(named)
    if not found:
        raise no_case(root, unknown, _LAYOUT)
    tell_strays(root, unknown, _LAYOUT)
    cases = [_case(name, kinds, entities or {}) for name, kinds in sorted(found.items())]
    return with_masks(cases, masks, _owners)


def _owners(name: str) -> list[str]:
    named = parsed(name)
    brain = named and {"brain", "head"} & {named.entities.get("desc"), named.entities.get("label")}
    return [named.case] if named and named.entities["suffix"] in _MASKS and not brain else []


def parsed(name: str, path: Path = Path()) -> BidsFile | None:
    """A file by its name; None if that is not BIDS."""
    *pairs, suffix = stem(name).split("_")
    entities = dict(pair.partition("-")[::2] for pair in pairs)
    return BidsFile(path, entities | {"suffix": suffix}) if next(iter(entities), "") == "sub" else None


def _case(name: str, kinds: Mapping[str, Sequence[BidsFile]], wanted: Mapping[str, Any]) -> Case:
    files, faults = {}, []
    for kind, candidates in sorted(kinds.items()):
        chosen = _preferred(candidates, wanted)
        files[kind] = [chosen[0].path]
        if len(chosen) > 1:
            differences = _differences(chosen)
            listed = ", ".join(f"{key} ({', '.join(values)})" for key, values in differences.items()) or "no entity"
            found = f"{len(chosen)} files: {examples([file.path for file in chosen])}; they differ in {listed}"
            example = next((f"{key}:{values[0]}" for key, values in differences.items()), "")
            remedy = f"choose, 'data.entities={{{example}}}', or remove the others" if example else "remove the others"
            faults.append(Problem(name, kind, found, "one file of each kind", remedy))
    first = next(file for candidates in kinds.values() for file in candidates).entities
    folder = "/".join(f"{key}-{first[key]}" for key in ("sub", "ses") if key in first)
    return assembled(
        name,
        files,
        f"{folder}/anat/{name}_desc-{_PREDICTION}_dseg",
        faults,
        patient=f"sub-{first['sub']}",
        timepoint=first.get("ses"),
    )


def _preferred(files: Sequence[BidsFile], wanted: Mapping[str, Any]) -> Sequence[BidsFile]:
    """Those with the wanted entities, as far as there are any."""
    for key, value in wanted.items():
        files = [file for file in files if _same(file.entities.get(key), value)] or files
    return files


def _same(found: str | None, wanted: Any) -> bool:
    if found is None or wanted is None:
        return found is wanted
    texts = [text.lstrip("0") if text.isdecimal() else text for text in (found, str(wanted))]  # run-01 is run 1
    return texts[0] == texts[1]


def _differences(files: Sequence[BidsFile]) -> dict[str, list[str]]:
    """Entity → its values, of the entities in which the names differ; ``null`` where one lacks it."""
    keys = dict.fromkeys(key for file in files for key in file.entities)
    values = {key: list(dict.fromkeys(file.entities.get(key, "null") for file in files)) for key in keys}
    return {key: several for key, several in values.items() if len(several) > 1}
