"""Scoring many rules of post-processing on the probabilities of one case."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from brats_lightning.core.labels import LabelScheme
from brats_lightning.data.cases import CaseError, Problem, read_mask
from brats_lightning.data.nifti import UnreadableFile, Volume
from brats_lightning.data.probabilities import Probabilities, read_probabilities
from brats_lightning.inference.decoding import SavedCase
from brats_lightning.inference.fusion import average
from brats_lightning.inference.postprocessing import Postprocessing
from brats_lightning.metrics.official import headline_columns, mean_without_nan, score_case
from brats_lightning.runtime.console import progress_bar
from brats_lightning.runtime.workers import each_result, process_pool

# Under ``score`` the mean of the lesion-wise Dice over the main regions, under each region its own.
RuleScores = list[dict[str, float]]


def score_rules(
    found: Probabilities, reference: Volume, rules: Sequence[Postprocessing], scheme: LabelScheme, protocol: str
) -> RuleScores:
    """Scores of one case under each of the rules.

    Args:
        found: the case's probabilities.
        reference: its mask, of class indices.
        rules: with their decoding.
        scheme: the classes.
        protocol: whose lesion-wise Dice counts.
    """
    column = headline_columns(protocol)[0]
    whole = reference.whole()
    known: dict[bytes, dict[str, float]] = {}
    scores = []
    for rule in rules:
        labels = rule(found.values, found.transform.spacing, scheme)
        same = hashlib.blake2b(np.ascontiguousarray(labels).data).digest()  # many rules give the same labels
        if same not in known:
            table = score_case(whole, found.transform.restore(labels), reference.grid.zooms, scheme, protocol)
            regions = {region: values[column] for region, values in table.items()}
            known[same] = {"score": mean_without_nan([regions[r] for r in scheme.headline_regions]), **regions}
        scores.append(known[same])
    return scores


def score_cases(
    cases: Sequence[SavedCase],
    masks: Mapping[str, Path],
    label_map: Mapping[int, int],
    tolerance: float | int,
    rules: Sequence[Postprocessing],
    protocol: str,
    processes: int,
) -> dict[str, RuleScores]:
    """Case → its scores under each of the rules, by several processes; nothing is scored if files are faulty.

    Args:
        cases: with their files of probabilities.
        masks: case → its reference.
        label_map: label in the references → class index.
        tolerance: as for `score_saved`.
        rules: with their decoding.
        protocol: whose lesion-wise Dice counts.
        processes: at most; the scores do not depend on their number.

    Raises:
        CaseError: there are faulty files.
    """
    files = {case.id: (case, masks[case.id], label_map, tolerance) for case in cases}
    jobs = {name: (*read, rules, protocol) for name, read in files.items()}
    scores: dict[str, RuleScores] = {}
    problems: list[Problem] = []
    processes = min(processes, len(jobs))
    with process_pool(processes) if processes > 1 else nullcontext() as pool, progress_bar() as bar:
        task = bar.add_task("checking", total=len(jobs))
        for _, faults in each_result(pool, faulty_files, files, "processes=1"):
            problems += faults
            bar.advance(task)
        if problems:
            raise CaseError(problems)
        task = bar.add_task("tuning", total=len(jobs))
        for name, (found, faults) in each_result(pool, score_saved, jobs, "processes=1"):
            scores[name] = found
            problems += faults
            bar.advance(task)
    if problems:  # of files that have changed since
        raise CaseError(problems)
    return {case.id: scores[case.id] for case in cases}


def score_saved(
    case: SavedCase,
    mask: Path,
    label_map: Mapping[int, int],
    tolerance: float | int,
    rules: Sequence[Postprocessing],
    protocol: str,
) -> tuple[RuleScores, list[Problem]]:
    """As `score_rules`, from files; of several predictions the mean is scored. And what is wrong with the files.

    Args:
        case: with its files of probabilities.
        mask: the reference.
        label_map: label in the reference → class index.
        tolerance: largest distance in mm between the positions of a voxel by the two files' headers.
        rules: with their decoding.
        protocol: whose lesion-wise Dice counts.
    """
    found, reference, problems = _read(case, mask, label_map, tolerance)
    if reference is None or problems:
        return [], problems
    return score_rules(average(found), reference, rules, case.records[0].scheme, protocol), []


def faulty_files(case: SavedCase, mask: Path, label_map: Mapping[int, int], tolerance: float | int) -> list[Problem]:
    """What is wrong with the files that `score_saved` reads."""
    return _read(case, mask, label_map, tolerance)[-1]


def _read(
    case: SavedCase, mask: Path, label_map: Mapping[int, int], tolerance: float | int
) -> tuple[list[Probabilities], Volume | None, list[Problem]]:
    problems, found, reference = [], [], None
    for file in case.files:
        try:
            found.append(read_probabilities(file)[0])
        except UnreadableFile as error:
            problems.append(Problem(case.id, str(file), error.found, error.expected, error.remedy))
    try:
        reference = read_mask(mask, case.records[0].scheme, label_map)
        if difference := reference.grid.mismatch(case.records[0].header.grid, tolerance, "its probabilities"):
            problems.append(Problem(case.id, str(mask), *difference, "give the mask of the predicted images"))
    except UnreadableFile as error:
        problems.append(Problem(case.id, str(mask), error.found, error.expected, error.remedy))
    return found, reference, problems


def not_held_out(case: SavedCase, vouched: bool) -> list[Problem]:
    """Why rules must not be chosen on a case: a model was trained or is to be tested on its patient.

    Args:
        case: to choose on.
        vouched: whether the user says that models whose split is not known have not seen it.
    """
    parts = {member.part for record in case.records for member in record.members}
    remedy = "tune on held-out cases: predict those of split=RUN/split.json part=val"
    for part, what in (("train", "a member was trained on its patient"), ("test", "a member is tested on its patient")):
        if part in parts:
            return [Problem(case.id, case.files[0].name, what, "a case that every member had held out", remedy)]
    if None in parts and not vouched:
        found = "what a member was trained on is not known"
        remedy = "predict with checkpoints of this version; if no member has seen the patient, set held_out=true"
        return [Problem(case.id, case.files[0].name, found, "a case that every member had held out", remedy)]
    return []
