"""Scoring pairs of masks: what is wrong with them, and all numbers that a report has about one case."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import Triple, bounding_box
from brats_lightning.core.labels import BRATS_METS, IGNORE, LabelScheme, as_label_map, in_classes, known_part
from brats_lightning.data.cases import Case, CaseError, Problem, read_mask
from brats_lightning.data.nifti import UnreadableFile, Volume
from brats_lightning.evaluation.calibration import Counts, check_probabilities, reliability
from brats_lightning.evaluation.pairing import EvaluationError, Pair, case_and_kind, pair_masks
from brats_lightning.metrics.brats2026 import THRESHOLDS
from brats_lightning.metrics.lesions import LesionRow, lesion_sizes, lesion_table, match_one_to_one
from brats_lightning.metrics.official import DEFAULT_PROTOCOL, PROTOCOLS, score_case
from brats_lightning.runtime.console import each_shown
from brats_lightning.runtime.workers import each_result, process_pool

log = logging.getLogger(__name__)

# The points of the detection curve: predicted lesions below each of these volumes (mm³) are left out in turn.
SIZE_FILTERS = (0, 3, 5, 10, 20, 27, 50, 100, 200, 500, 1000)

Result = TypeVar("Result")


@dataclass(frozen=True)
class ScoredCase:
    """All scores of one case.

    Attributes:
        case: its number, or the stem of an older name.
        patient: whose case it is.
        missing: whether it has no prediction.
        official: protocol → region → column → value.
        voxelwise: region or class → ``dice``, ``iou``, ``hd95`` (mm), ``nsd``, ``volume_error`` (ml); under ``all`` the
            accuracy over all voxels of known class, the mean Dice of the regions and the mean IoU of the classes.
        lesions: region → the reference's lesions, then the false positives.
        operating: region → (lesions detected, false positives) for each of `SIZE_FILTERS`.
        reliability: region → `calibration.Counts`, empty without probabilities.
    """

    case: str
    patient: str
    missing: bool
    official: dict[str, dict[str, dict[str, float]]]
    voxelwise: dict[str, dict[str, float]]
    lesions: dict[str, list[LesionRow]]
    operating: dict[str, list[tuple[int, int]]]
    reliability: dict[str, Counts] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring:
    """How masks are scored.

    Attributes:
        scheme: the classes.
        protocols: any of `metrics.PROTOCOLS`; the report leads with the first one.
        thresholds: of brats2026, ``default`` or ``challenge``.
        spacing: of brats2026, ``official`` or ``correct``.
        label_map: label in the references → class index; or `IGNORE`, where both masks count as background.
        prediction_label_map: label in the predictions → class index.
        tolerance: largest distance in mm between the positions of a voxel by the reference's and prediction's headers.
    """

    scheme: LabelScheme = BRATS_METS
    protocols: Sequence[str] = (DEFAULT_PROTOCOL,)
    thresholds: str = "default"
    spacing: str = "official"
    label_map: Mapping[int, int] | None = None
    prediction_label_map: Mapping[int, int] | None = None
    tolerance: int | float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocols", tuple(dict.fromkeys(self.protocols)))
        for name, value, known in (
            ("thresholds", self.thresholds, tuple(THRESHOLDS)),
            ("spacing", self.spacing, ("official", "correct")),
            *(("protocol", protocol, PROTOCOLS) for protocol in self.protocols),
        ):
            if value not in known:
                raise EvaluationError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not self.protocols:
            raise EvaluationError(f"protocol names none of {', '.join(PROTOCOLS)}")
        for name, setting in (("label_map", "data.label_map"), ("prediction_label_map", "prediction_label_map")):
            object.__setattr__(self, name, as_label_map(setting, getattr(self, name)) or None)
        if IGNORE in (self.prediction_label_map or {}).values():
            raise EvaluationError(
                f"prediction_label_map makes {IGNORE}, unknown, of a label, but a prediction has a class everywhere"
            )

    @cached_property
    def overlap(self) -> float:
        """The lowest Dice at which a matched lesion counts as detected."""
        return THRESHOLDS[self.thresholds].overlap

    @cached_property
    def lesion_region(self) -> str:
        """The region whose lesions the report shows one by one: ET, or the first one in a scheme without it."""
        return "et" if "et" in self.scheme.regions else next(iter(self.scheme.regions))

    def check(self, pair: Pair) -> list[Problem]:
        """All reasons why a pair cannot be scored; reads both files."""
        return self._read(pair)[2]

    def score(self, pair: Pair) -> ScoredCase:
        """Scores of a pair.

        Raises:
            CaseError: `check` finds something wrong with it.
        """
        # These import torch, which takes seconds, and a process that only checks masks doesn't need it.
        import torch

        from brats_lightning.metrics.voxel import confusion_matrix, scored_classes, surface_scores, voxel_scores

        reference_volume, prediction_volume, problems = self._read(pair)
        if reference_volume is None or problems:
            raise CaseError(problems)
        reference = np.ascontiguousarray(reference_volume.whole())
        given = None if prediction_volume is None else np.ascontiguousarray(prediction_volume.whole())
        prediction = np.zeros_like(reference) if given is None else given
        spacing = reference_volume.grid.zooms

        official = {
            protocol: score_case(reference, given, spacing, self.scheme, protocol, self.thresholds, self.spacing)
            for protocol in self.protocols
        }
        matrix = confusion_matrix(torch.from_numpy(reference), torch.from_numpy(prediction), self.scheme.num_classes)
        voxels = voxel_scores(matrix, self.scheme)
        calibration = reliability(pair.probabilities, reference, self.scheme) if pair.probabilities else {}
        reference, prediction = known_part(reference, prediction)
        box = bounding_box(reference, prediction)
        surfaces = surface_scores(reference, prediction, spacing, self.scheme)
        voxelwise = {
            name: {"dice": voxels[f"dice_{name}"], "iou": voxels[f"iou_{name}"], **surfaces[name]}
            for name in scored_classes(self.scheme)
        }
        voxelwise["all"] = {"accuracy": voxels["accuracy"], "dice": voxels["dice_mean"], "iou": voxels["iou_mean"]}
        lesions, operating = {}, {}
        for region, classes in self.scheme.regions.items():
            lesions[region] = lesion_table(reference, prediction, spacing, classes, self.overlap)
            operating[region] = operating_points(reference[box], prediction[box], spacing, classes, self.overlap)
        return ScoredCase(pair.case, pair.patient, given is None, official, voxelwise, lesions, operating, calibration)

    def read_mask(self, path: Path, predicted: bool) -> tuple[Volume | None, list[Problem]]:
        """A mask as class indices, or what is wrong with it."""
        try:
            return read_mask(path, self.scheme, self.prediction_label_map if predicted else self.label_map), []
        except UnreadableFile as error:
            file = f"{'prediction' if predicted else 'reference'} {path.name}"
            remedy = error.remedy.replace("data.label_map", "prediction_label_map") if predicted else error.remedy
            return None, [Problem(case_and_kind(path.name)[0], file, error.found, error.expected, remedy)]

    def _read(self, pair: Pair) -> tuple[Volume | None, Volume | None, list[Problem]]:
        """Reference and prediction, and everything that is wrong with them."""
        reference, problems = self.read_mask(pair.reference, predicted=False)
        if pair.prediction is None:
            return reference, None, problems
        prediction, more = self.read_mask(pair.prediction, predicted=True)
        problems += more
        if reference is None or prediction is None:
            return reference, prediction, problems
        if difference := prediction.grid.mismatch(reference.grid, self.tolerance, "its reference"):
            remedy = "write it in the geometry of its input, or raise data.affine_tolerance if the voxels match"
            problems.append(Problem(pair.case, f"prediction {pair.prediction.name}", *difference, remedy))
        if (path := pair.probabilities) and (
            error := check_probabilities(path, self.scheme, reference.grid, self.tolerance)
        ):
            problems.append(Problem(pair.case, path.name, error.found, error.expected, error.remedy))
        return reference, prediction, problems


def operating_points(
    reference: UInt8[np.ndarray, "x y z"],
    prediction: UInt8[np.ndarray, "x y z"],
    spacing: Triple,
    classes: tuple[int, ...],
    overlap: float,
) -> list[tuple[int, int]]:
    """(Lesions detected, false positives) of a region without the predicted lesions below each of `SIZE_FILTERS`.

    Lesions are matched again each time, one to one as in brats2026; a Dice of at least ``overlap`` is a detection.
    """
    labels, n = label_components(in_classes(reference, classes))
    predicted, n_predicted = label_components(in_classes(prediction, classes))
    used = (labels > 0) | (predicted > 0)  # the matching only counts voxels, their positions don't matter
    labels, predicted = labels[used].reshape(-1, 1, 1), predicted[used].reshape(-1, 1, 1)
    volumes = lesion_sizes(predicted, n_predicted) * float(np.prod(spacing))
    points = []
    for smallest in SIZE_FILTERS:
        keep = volumes >= smallest
        keep[0] = False
        numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
        matches = match_one_to_one(labels, n, numbers[predicted], int(keep.sum()))
        detected = sum(dice >= overlap for _, dice in matches.values())
        points.append((detected, int(keep.sum()) - len(matches)))
    return points


@dataclass(frozen=True)
class Evaluation:
    """One method's scores.

    Attributes:
        name: of the method.
        pairs: the masks, in the order of ``cases``.
        cases: their scores, sorted by case.
        left_out: what is wrong with the cases that were not scored.
    """

    name: str
    predictions: Path
    references: Path
    scoring: Scoring
    pairs: tuple[Pair, ...]
    cases: tuple[ScoredCase, ...]
    left_out: tuple[Problem, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Cases without a prediction."""
        return [case.case for case in self.cases if case.missing]


def prepare_evaluation(
    name: str,
    predictions: Path,
    references: Path,
    scoring: Scoring,
    missing: str,
    chosen: Collection[str] | None,
    cases: Sequence[Case] | None,
    pool: ProcessPoolExecutor | None,
) -> Evaluation:
    """The pairs to score, before scoring, and what is wrong with the others; for the arguments see `pair_masks`."""
    pairs, problems = pair_masks(predictions, references, missing, chosen, cases)
    if same := sum(pair.prediction is not None and pair.prediction.samefile(pair.reference) for pair in pairs):
        log.warning("%s: %d predictions are the reference's own file", name, same)
    faults = over_cases(scoring.check, pairs, pool, f"checking {name}")
    problems += [fault for found in faults for fault in found]
    sound = tuple(pair for pair, found in zip(pairs, faults, strict=True) if not found)
    return Evaluation(name, predictions, references, scoring, sound, (), tuple(problems))


def score_pairs(evaluation: Evaluation, pool: ProcessPoolExecutor | None) -> Evaluation:
    """A prepared evaluation with its scores."""
    cases = over_cases(evaluation.scoring.score, evaluation.pairs, pool, f"scoring {evaluation.name}")
    scored = replace(evaluation, cases=tuple(cases))
    if scored.missing:
        log.warning("%s: %d of %d predictions are missing", scored.name, len(scored.missing), len(cases))
    return scored


def case_workers(processes: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
    """A pool for checking and scoring; None if a single process is enough."""
    if processes <= 1:
        return nullcontext()
    context: BaseContext = get_context("spawn")  # this process may have threads, so it cannot be forked
    if "forkserver" in get_all_start_methods():  # but a server process that has imported everything can
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__, "brats_lightning.metrics.voxel"])
    return process_pool(processes, context)


def over_cases(
    task: Callable[..., Result],
    pairs: Sequence[Pair],
    pool: ProcessPoolExecutor | None,
    what: str,
    *more: Sequence[Any],
) -> list[Result]:
    """The results of ``task`` in the order of the pairs, with a bar on a terminal.

    The task is called with a pair and its item of each of the sequences ``more``.
    """
    jobs = {pair.case: (pair, *others) for pair, *others in zip(pairs, *more, strict=True)}
    results = dict(each_shown(what, each_result(pool, task, jobs, "processes=1"), len(jobs)))
    return [results[pair.case] for pair in pairs]
