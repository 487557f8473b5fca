"""Masks from saved probabilities, without a network."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brats_lightning.data.cases import Problem
from brats_lightning.data.folders import nifti_files
from brats_lightning.data.nifti import UnreadableFile
from brats_lightning.data.probabilities import ENDING, Record, read_probabilities, read_record
from brats_lightning.inference.fusion import Fusion
from brats_lightning.inference.postprocessing import Postprocessing
from brats_lightning.inference.prediction import write_mask
from brats_lightning.inference.provenance import origin
from brats_lightning.inference.summary import case_summary
from brats_lightning.runtime.files import make_folder

_TOLERANCE = 1e-3  # mm, for the float32 rounding of headers
_AGAIN = "predict this case again, or remove the file"


class SavedError(ValueError):
    """Folders of saved probabilities that cannot be used together."""


@dataclass(frozen=True)
class SavedCase:
    """The probabilities of one case, of one or several predictions.

    Attributes:
        id: of the case.
        name: of its mask, as the file of the first prediction has it.
        files: of probabilities, one for each prediction.
        records: theirs.
    """

    id: str
    name: str
    files: tuple[Path, ...]
    records: tuple[Record, ...]

    def made_by(self, rules: Postprocessing, fusion: Fusion) -> str:
        """The `origin` of its mask; of a single prediction the one that `predict` gives it, too."""
        rules = rules.decoding(self.records[0].decode)
        models = [sorted(member.model for member in record.members) for record in self.records]
        if len(models) == 1:
            return origin(models[0], rules)
        weights = fusion.weights or [1] * len(models)
        parts = [f"{weight} {' '.join(names)}" for weight, names in zip(weights, models, strict=True)]
        return origin([], rules, [fusion.method, *parts])


def saved_cases(folders: Sequence[Path]) -> tuple[list[SavedCase], list[Problem]]:
    """The cases with probabilities in all of the folders, however nested, and what is wrong with others.

    Raises:
        SavedError: not a folder, or one without probabilities, or files of different classes.
    """
    problems: list[Problem] = []
    found = [_records(folder, problems) for folder in folders]
    faulty = {problem.case for problem in problems}
    cases = []
    for case in sorted(set().union(*found)):
        absent = [str(folder) for folder, files in zip(folders, found, strict=True) if case not in files]
        if absent:
            if case not in faulty:
                fault = f"missing in {', '.join(absent)}", "one in each folder", "predict it there, too"
                problems.append(Problem(case, f"…{ENDING}", *fault))
            continue
        predictions = [files[case] for files in found]
        name, first, record = predictions[0]
        for _, file, other in predictions[1:]:
            if difference := other.header.grid.mismatch(record.header.grid, _TOLERANCE, str(first)):
                problems.append(Problem(case, str(file), *difference, "predict the same images"))
                break
        else:
            files_of, records = [file for _, file, _ in predictions], [own for *_, own in predictions]
            cases.append(SavedCase(case, name, tuple(files_of), tuple(records)))
    labels = {record.labels: file for files in found for _, file, record in files.values()}
    if len(labels) > 1:
        listed = "; ".join(f"{path} has {', '.join(names)}" for names, path in labels.items())
        raise SavedError(f"probabilities of different classes cannot be decoded together: {listed}")
    return cases, problems


def _records(folder: Path, problems: list[Problem]) -> dict[str, tuple[str, Path, Record]]:
    """Case → name of its mask, file and record; what is wrong with other files is added to the problems."""
    if not folder.is_dir():
        raise SavedError(f"probabilities={folder} is not a folder; expected the output of predict … probabilities=true")
    found: dict[str, tuple[str, Path, Record]] = {}
    any_file = False
    for file in nifti_files(folder):
        if not file.name.endswith(ENDING):
            continue
        any_file, name = True, file.below_root.removesuffix(ENDING)
        try:
            record = read_record(file.path)
        except UnreadableFile as error:
            problems.append(Problem(name, str(file.path), error.found, error.expected, _AGAIN))
            continue
        if record.case in found:
            other = found[record.case][1]
            problems.append(Problem(record.case, str(file.path), f"the case of {other}", "one file", "remove one"))
        else:
            found[record.case] = name, file.path, record
    if not any_file:
        raise SavedError(
            f"probabilities={folder} holds no …{ENDING}; write them with: python -m brats_lightning.predict … "
            "probabilities=true"
        )
    return found


def decode_case(case: SavedCase, rules: Postprocessing, fusion: Fusion, mask: Path) -> dict[str, Any] | list[Problem]:
    """Write the mask of a case; its `case_summary` and the ``seconds`` it took, or what is wrong with its files."""
    started = time.monotonic()
    found, problems = [], []
    for file in case.files:
        try:
            found.append(read_probabilities(file)[0])
        except UnreadableFile as error:
            problems.append(Problem(case.id, str(file), error.found, error.expected, _AGAIN))
    if problems:
        return problems
    record = case.records[0]
    labels, probabilities = fusion(found, [rules.decoding(one.decode) for one in case.records], record.scheme)
    make_folder(mask.parent)
    write_mask(mask, probabilities.transform.restore(labels), record.header, case.made_by(rules, fusion))
    return case_summary(labels, probabilities, record.scheme) | {"seconds": round(time.monotonic() - started, 1)}
