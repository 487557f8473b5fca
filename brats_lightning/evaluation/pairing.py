"""Matching predictions to references by their file names."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from brats_lightning.core.labels import MODALITIES, OLDER_NAMES
from brats_lightning.data.cases import Case, Problem, patient_and_timepoint
from brats_lightning.data.folders import files_in, is_nifti, nifti_files, stem
from brats_lightning.data.probabilities import ENDING

# The challenge's case number anywhere in a name: BraTS-MET-00110-000, SEG-00217-000, BraTS-MET_01325-000.
_NUMBER = re.compile(r"(?<!\d)\d{5}-\d{3}(?!\d)")
_SUFFIX = re.compile(r"(?P<stem>.+?)[-_](?P<kind>t1n|t1c|t2w|t2f|t1|t1ce|t2|flair|seg|probabilities)", re.IGNORECASE)


class EvaluationError(ValueError):
    """Folders or settings that cannot be evaluated."""


@dataclass(frozen=True)
class Pair:
    """A reference and its prediction.

    Attributes:
        prediction: None if it is missing.
        images: modality → image of the case; None if they are to be looked for beside the reference.
        patient: whose case it is; by default as the case's name says.
    """

    case: str
    reference: Path
    prediction: Path | None
    images: Mapping[str, Path] | None = None
    patient: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", self.patient or patient_and_timepoint(self.case)[0])

    @property
    def probabilities(self) -> Path | None:
        """The class probabilities that `predict` wrote beside the prediction, if it did."""
        if self.prediction is None:
            return None
        path = self.prediction.with_name(stem(self.prediction.name) + ENDING)
        return path if path.is_file() else None


def method_names(folders: Sequence[Path], given: Sequence[str] | None) -> list[str]:
    """A folder name for each method: the given one, or as many last parts of its path as make the names distinct.

    Raises:
        EvaluationError: names that are too few, not distinct, or no folder names.
    """
    if given is None:
        paths = [folder.resolve().parts for folder in folders]
        for depth in range(1, max(map(len, paths)) + 1):
            names = ["_".join(part.strip("/") for part in path[-depth:]) for path in paths]
            if len(set(names)) == len(names):
                break
        else:
            raise EvaluationError(f"predictions names a folder twice: {', '.join(map(str, folders))}")
        return [name.replace("=", "_").replace(",", "_") or "predictions" for name in names]
    bad = [name for name in given if not name.strip(".") or Path(name).name != name or set(name) & set("=,\\")]
    if len(given) != len(folders) or len(set(given)) < len(given) or bad:
        raise EvaluationError(
            f"names={list(given)} must be {len(folders)} distinct folder names without '=', ',' and '/'"
        )
    return list(given)


def case_and_kind(file: str) -> tuple[str, str | None]:
    """``BraTS-MET-00110-000-t1c.nii.gz`` → ``("00110-000", "t1c")``; an older ``BraTS2021_00000_seg.nii`` → its stem.

    The second value is a modality, ``"seg"``, ``"probabilities"`` (which `predict` can write beside its masks), or None
    for a name without such an ending.
    """
    name = stem(file)
    match = _SUFFIX.fullmatch(name)
    kind = match["kind"].lower() if match else None
    numbers = _NUMBER.findall(name)
    return numbers[-1] if numbers else match["stem"] if match else name, OLDER_NAMES.get(kind, kind) if kind else None


def find_masks(folder: Path, role: str, names: Mapping[str, str] | None = None) -> dict[str, list[Path]]:
    """The masks below a folder, however nested, by case.

    Images and probabilities are skipped; in a folder with both images and ``…-seg``, all files but the latter.

    Args:
        folder: to search, see `nifti_files`.
        role: ``predictions`` or ``references``, for messages.
        names: name or path below the folder, without its ending, → case, of masks that are known by it.

    Raises:
        EvaluationError: there is no such folder, or no mask in it.
    """
    if not os.path.isdir(folder):  # noqa: PTH112  # Path.is_dir raises if a parent folder cannot be read
        raise EvaluationError(f"{role}={folder} is not a folder; expected one with NIfTI masks")
    found: dict[str, list[Path]] = {}
    known = names or {}
    for _, files in groupby(nifti_files(folder), key=lambda file: file.folder):
        named = []
        for file in files:
            if case := known.get(stem(file.below_root), known.get(stem(file.name))):
                found.setdefault(case, []).append(file.path)
            else:
                named.append((file.path, *case_and_kind(file.name)))
        kinds = {kind for _, _, kind in named}
        # Other files beside images and masks with these names are derived ones: brain masks, subtractions.
        masks = {"seg"} if "seg" in kinds and kinds & set(MODALITIES) else {"seg", None}
        for path, case, kind in named:
            if kind in masks:
                found.setdefault(case, []).append(path)
    if not found:
        raise EvaluationError(
            f"{role}={folder} holds no mask; expected .nii or .nii.gz files, named by the challenge's ddddd-ddd number "
            "or the same in both folders"
        )
    return dict(sorted(found.items()))


def find_images(reference: Path) -> dict[str, Path]:
    """Modality → image of a reference's case: the files of the same case in its folder."""
    folder = reference.parent.parent if is_nifti(reference.parent.name) else reference.parent
    files, _ = files_in(folder, folder)
    case = next((case_and_kind(file.name)[0] for file in files if file.path == reference), None)
    images: dict[str, Path] = {}
    for file in files:
        name, kind = case_and_kind(file.name)
        if name == case and kind in MODALITIES:
            images.setdefault(kind, file.path)
    return images


def pair_masks(
    predictions: Path,
    references: Path,
    missing: str = "score",
    chosen: Collection[str] | None = None,
    cases: Sequence[Case] | None = None,
) -> tuple[list[Pair], list[Problem]]:
    """Every reference with its prediction, sorted by case, and the problems that file names show.

    Args:
        predictions: folder of the masks to score.
        references: folder of the masks they are scored against.
        missing: whether a reference without a prediction is a problem (``error``) or is scored as missing (``score``).
        chosen: ids of the cases to score; None scores all.
        cases: whose masks are the references, from ``references``; None takes the masks in that folder.
    """
    keys = _keys(cases or ())
    images = {keys[case.id]: case.images for case in cases or ()}
    patients = {keys[case.id]: case.patient for case in cases or ()}
    names = {stem(name): keys[case.id] for case in cases or () for name in (case.id, case.mask_name or case.id)}
    predicted = find_masks(predictions, "predictions", names)
    faults: list[Problem] = []
    if cases is None:
        known = find_masks(references, "references")
    else:
        faults = [replace(fault, case=keys[case.id]) for case in cases for fault in case.faults if fault.file == "seg"]
        faulty = {fault.case for fault in faults}
        known = {keys[case.id]: [case.mask] for case in cases if case.mask and keys[case.id] not in faulty}
        predicted = {case: files for case, files in predicted.items() if case in known or case not in images}
    pairs, problems = [], faults
    if chosen is not None:
        ids = {keys.get(case) or case_and_kind(f"{case}.nii.gz")[0]: case for case in chosen}
        predicted, known = ({c: files for c, files in found.items() if c in ids} for found in (predicted, known))
        problems = [fault for fault in faults if fault.case in ids]
        remedy = "add it, or correct the split"
        for absent in ids.keys() - known.keys():
            problems.append(Problem(ids[absent], "reference", "missing", f"a mask in {references}", remedy))
        # Predictions without a reference are covered by this problem.
        predicted = {case: files for case, files in predicted.items() if case in known}
    for role, root, found in (("prediction", predictions, predicted), ("reference", references, known)):
        for case, files in found.items():
            if len(files) > 1:
                listed = ", ".join(str(file.relative_to(root)) for file in files)
                problems.append(
                    Problem(case, role, f"{len(files)} files: {listed}", "one mask for each case", "remove the others")
                )
    for case, files in predicted.items():
        if case not in known:
            file, expected = f"prediction {files[0].relative_to(predictions)}", f"one in {references}"
            remedy = "add its reference, correct its name, or remove it"
            problems.append(Problem(case, file, "no reference of this case", expected, remedy))
    for case, files in known.items():
        own = predicted.get(case, [])
        if len(files) > 1 or len(own) > 1:
            continue
        if not own and missing == "error":
            remedy = "predict it, or set missing=score to score it as the challenge does"
            problems.append(Problem(case, "prediction", "missing", f"a mask in {predictions}", remedy))
            continue
        pairs.append(Pair(case, files[0], own[0] if own else None, images.get(case), patients.get(case, "")))
    return pairs, sorted(problems, key=lambda problem: problem.case)


def references_of(
    ids: Sequence[str], references: Path, cases: Sequence[Case] | None = None
) -> tuple[dict[str, Path], list[Problem]]:
    """The reference of each case of these ids, and what is wrong with others.

    Args:
        ids: of the cases.
        references: folder of masks, matched by name.
        cases: of a data set, whose masks are the references instead; None takes the masks in the folder.

    Raises:
        EvaluationError: there is no such folder, or no mask in it.
    """
    if cases is None:
        in_folder = find_masks(references, "references")
        found = {name: in_folder.get(case_and_kind(f"{name}.nii.gz")[0], []) for name in ids}
    else:
        masks = {case.id: case.mask for case in cases if case.mask}
        found = {name: [masks[name]] if name in masks else [] for name in ids}
    problems = [
        Problem(name, "reference", f"{len(files)} masks", f"one in {references}", "add the mask, or remove the others")
        for name, files in found.items()
        if len(files) != 1
    ]
    return {name: files[0] for name, files in found.items() if len(files) == 1}, problems


def _keys(cases: Sequence[Case]) -> dict[str, str]:
    """Case → the challenge's number in its id, as in folders of masks; its id where not each has its own number."""
    numbers = {case.id: case_and_kind(f"{case.id}_seg.nii.gz")[0] for case in cases}
    return numbers if len(set(numbers.values())) == len(numbers) else {case: case for case in numbers}
