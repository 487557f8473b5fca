"""Masks on disk to scores: which prediction belongs to which reference, what is wrong, what each case gets."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import nibabel as nib
import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from brats_lightning.data.cases import Case, CaseError, Problem, examine
from brats_lightning.data.nifti import Volume
from brats_lightning.geometry import Placement
from brats_lightning.labels import BRATS_METS, MODALITIES, OLDER_NAMES, LabelScheme
from brats_lightning.metrics.brats2026 import THRESHOLDS
from brats_lightning.metrics.lesions import (
    LesionRow,
    bounding_box,
    label_runs,
    lesion_sizes,
    lesion_table,
    match_one_to_one,
    region_mask,
)
from brats_lightning.metrics.official import DEFAULT_PROTOCOL, PROTOCOLS, score_case

# The challenge's case number, however the name is decorated: BraTS-MET-00110-000, SEG-00217-000, BraTS-MET_01325-000.
_NUMBER = re.compile(r"(?<!\d)\d{5}-\d{3}(?!\d)")
_SUFFIX = re.compile(r"(?P<stem>.+?)[-_](?P<kind>t1n|t1c|t2w|t2f|t1|t1ce|t2|flair|seg)")

# Predicted lesions below each of these volumes (mm³) are left out in turn: the points of the detection curve.
SIZE_FILTERS = (0, 3, 5, 10, 20, 27, 50, 100, 200, 500, 1000)


Result = TypeVar("Result")


class EvaluationError(ValueError):
    """Folders or settings that cannot be evaluated."""


@dataclass(frozen=True)
class Pair:
    """A reference and its prediction; ``prediction`` is None if it is missing."""

    case: str
    reference: Path
    prediction: Path | None


def case_name(file: str) -> tuple[str, str | None]:
    """``BraTS-MET-00110-000-t1c.nii.gz`` → ``("00110-000", "t1c")``; an older ``BraTS2021_00000_seg.nii`` → its stem.

    The second value is a modality, ``"seg"``, or None where the name has no such ending.
    """
    stem = file.removesuffix(".gz").removesuffix(".nii")
    match = _SUFFIX.fullmatch(stem)
    kind = OLDER_NAMES.get(match["kind"], match["kind"]) if match else None
    numbers = _NUMBER.findall(stem)
    return numbers[-1] if numbers else match["stem"] if match else stem, kind


def find_masks(folder: Path, role: str) -> dict[str, list[Path]]:
    """The masks below a folder, however nested, by case; images named after a modality are passed over.

    Args:
        folder: where to look. Links are followed; hidden files and folders are not.
        role: ``predictions`` or ``references``, for messages.

    Raises:
        EvaluationError: there is no such folder, or no mask in it.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{role}={folder} is no folder; expected one with NIfTI masks")
    found: dict[str, list[Path]] = {}
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real in seen:  # links may point back up
            continue
        seen.add(real)
        for file in sorted(files):
            if file.endswith((".nii", ".nii.gz")) and not file.startswith("."):
                case, kind = case_name(file)
                if kind in (None, "seg"):
                    found.setdefault(case, []).append(Path(path, file))
    if not found:
        raise EvaluationError(
            f"{role}={folder} holds no mask; expected .nii or .nii.gz files, named by the challenge's ddddd-ddd number "
            "or alike in both folders"
        )
    return dict(sorted(found.items()))


def find_images(reference: Path) -> dict[str, Path]:
    """The images of a reference's case, modality → file: those of its name in its folder."""
    case, _ = case_name(reference.name)
    images = {}
    for path in sorted(reference.parent.glob("*.nii*")):
        name, kind = case_name(path.name)
        if name == case and kind in MODALITIES:
            images.setdefault(kind, path)
    return images


def pair_masks(predictions: Path, references: Path, missing: str = "score") -> tuple[list[Pair], list[Problem]]:
    """Every reference with its prediction, sorted by case, and what the names alone show to be wrong.

    Args:
        predictions: folder of the masks to score.
        references: folder of the masks they are scored against.
        missing: whether a reference without a prediction is a problem (``error``) or is scored as missing (``score``).
    """
    predicted, known = find_masks(predictions, "predictions"), find_masks(references, "references")
    pairs, problems = [], []
    for role, root, found in (("prediction", predictions, predicted), ("reference", references, known)):
        for case, files in found.items():
            if len(files) > 1:
                names = ", ".join(str(file.relative_to(root)) for file in files)
                problems.append(
                    Problem(case, role, f"{len(files)} files: {names}", "one mask for each case", "remove the others")
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
        pairs.append(Pair(case, files[0], own[0] if own else None))
    return pairs, sorted(problems, key=lambda problem: problem.case)


@dataclass(frozen=True)
class CaseScores:
    """All that is known of one case.

    Attributes:
        case: its number, or the stem of an older name.
        missing: there is no prediction.
        official: protocol → region → column → value.
        plain: region or class → ``dice``, ``iou``, ``hd95`` (mm), ``nsd``, ``volume_error`` (ml); under ``all`` the
            accuracy over all voxels, the mean Dice of the regions and the mean IoU of the classes.
        lesions: region → the reference's lesions, then the false positives.
        operating: region → for each of `SIZE_FILTERS` (lesions detected, false positives).
    """

    case: str
    missing: bool
    official: dict[str, dict[str, dict[str, float]]]
    plain: dict[str, dict[str, float]]
    lesions: dict[str, list[LesionRow]]
    operating: dict[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Scoring:
    """How masks are scored.

    Attributes:
        scheme: the classes.
        protocols: any of `metrics.PROTOCOLS`; the first one leads the report.
        thresholds: of brats2026, ``default`` or ``challenge``.
        spacing: of brats2026, ``official`` or ``correct``.
        label_map: label in the references → class index.
        prediction_label_map: label in the predictions → class index.
        tolerance: largest distance in mm between the places reference and prediction give to a voxel.
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
        choices: list[tuple[str, str, Iterable[str]]] = [
            ("thresholds", self.thresholds, THRESHOLDS),
            ("spacing", self.spacing, ("official", "correct")),
            *(("protocol", protocol, PROTOCOLS) for protocol in self.protocols),
        ]
        for name, value, known in choices:
            if value not in known:
                raise EvaluationError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not self.protocols:
            raise EvaluationError(f"protocol names none of {', '.join(PROTOCOLS)}")
        for name in ("label_map", "prediction_label_map"):
            label_map = {int(old): int(new) for old, new in (getattr(self, name) or {}).items()}
            if 0 in label_map:
                raise EvaluationError(f"{name} {label_map} renames 0; the background must stay 0")
            object.__setattr__(self, name, label_map or None)

    @cached_property
    def overlap(self) -> float:
        """Dice from which a matched lesion counts as detected."""
        return THRESHOLDS[self.thresholds].overlap

    @cached_property
    def lesion_region(self) -> str:
        """The region whose lesions the report shows one by one: ET, or the first there is."""
        return "et" if "et" in self.scheme.regions else next(iter(self.scheme.regions))

    def check(self, pair: Pair) -> list[Problem]:
        """All that keeps a pair from being scored; reads both files."""
        return self._read(pair)[1]

    def score(self, pair: Pair) -> CaseScores:
        """Scores of a pair.

        Raises:
            CaseError: `check` finds something wrong with it.
        """
        # Their import brings torch, whose seconds a process that only reads masks can spare.
        import torch

        from brats_lightning.metrics.plain import plain_scores
        from brats_lightning.metrics.voxel import confusion_matrix, score_names, voxel_scores

        (reference_volume, prediction_volume), problems = self._read(pair)
        if reference_volume is None or problems:
            raise CaseError(problems)
        reference = on_original_grid(reference_volume)
        prediction = np.zeros_like(reference) if prediction_volume is None else on_original_grid(prediction_volume)
        # The header's own numbers, as the official programs take them.
        x, y, z = (float(size) for size in nib.load(pair.reference).header.get_zooms())
        spacing = (x, y, z)

        official = {
            protocol: score_case(
                reference,
                None if prediction_volume is None else prediction,
                spacing,
                self.scheme,
                protocol,
                self.thresholds,
                self.spacing,
            )
            for protocol in self.protocols
        }
        matrix = confusion_matrix(
            torch.from_numpy(np.ascontiguousarray(reference)),
            torch.from_numpy(np.ascontiguousarray(prediction)),
            self.scheme.num_classes,
        )
        voxels = voxel_scores(matrix, self.scheme)
        surfaces = plain_scores(reference, prediction, spacing, self.scheme)
        plain = {
            name: {"dice": voxels[f"dice_{name}"], "iou": voxels[f"iou_{name}"], **surfaces[name]}
            for name in score_names(self.scheme)
        }
        plain["all"] = {"accuracy": voxels["accuracy"], "dice": voxels["dice_mean"], "iou": voxels["iou_mean"]}
        return CaseScores(
            pair.case,
            prediction_volume is None,
            official,
            plain,
            {
                region: lesion_table(reference, prediction, spacing, self.scheme, region, self.overlap)
                for region in self.scheme.regions
            },
            {
                region: operating_points(reference, prediction, spacing, classes, self.overlap)
                for region, classes in self.scheme.regions.items()
            },
        )

    def read_mask(self, path: Path, predicted: bool) -> tuple[Volume | None, list[Problem]]:
        """A mask as class indices, or what is wrong with it."""
        label_map = self.prediction_label_map if predicted else self.label_map
        case, _ = case_name(path.name)
        examined = examine(Case(case, case, None, {}, path), self.scheme, label_map, float(self.tolerance))
        file = f"{'prediction' if predicted else 'reference'} {path.name}"
        own = "prediction_label_map" if predicted else "data.label_map"
        problems = [
            replace(problem, file=file, remedy=problem.remedy.replace("data.label_map", own))
            for problem in examined.problems
        ]
        return examined.mask, problems

    def _read(self, pair: Pair) -> tuple[tuple[Volume | None, Volume | None], list[Problem]]:
        reference, problems = self.read_mask(pair.reference, predicted=False)
        if pair.prediction is None:
            return (reference, None), problems
        prediction, more = self.read_mask(pair.prediction, predicted=True)
        problems += more
        if reference is None or prediction is None:
            return (reference, prediction), problems
        file = f"prediction {pair.prediction.name}"
        remedy = "write predictions in the geometry of their input"
        if prediction.grid.shape != reference.grid.shape:
            found, expected = f"shape {prediction.grid.shape}", f"{reference.grid.shape}, as the reference"
            problems.append(Problem(pair.case, file, found, expected, remedy))
        elif (distance := prediction.grid.distance(reference.grid)) > self.tolerance:
            found, expected = f"lies {distance:.3g} mm off its reference", f"≤ {self.tolerance:g} mm"
            remedy += ", or raise data.affine_tolerance if the voxels match"
            problems.append(Problem(pair.case, file, found, expected, remedy))
        return (reference, prediction), problems


def on_original_grid(mask: Volume) -> UInt8[np.ndarray, "x y z"]:
    """The whole mask in its file's axis order, which decides how the official programs number lesions."""
    return Placement.whole(mask.grid).crop(mask.start, mask.values.shape).restore(mask.values)


def operating_points(
    reference: UInt8[np.ndarray, "x y z"],
    prediction: UInt8[np.ndarray, "x y z"],
    spacing: tuple[float, float, float],
    classes: tuple[int, ...],
    overlap: float,
) -> list[tuple[int, int]]:
    """(Lesions detected, false positives) of a region when predicted lesions below each of `SIZE_FILTERS` are left out.

    Lesions are matched anew each time, one to one as in brats2026; detected are those of at least ``overlap`` Dice.
    """
    box = bounding_box(reference, prediction)
    labels, n = label_runs(region_mask(reference[box], classes))
    predicted, n_predicted = label_runs(region_mask(prediction[box], classes))
    used = (labels > 0) | (predicted > 0)  # the matching counts voxels; where they lie is no matter
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
        pairs: what was scored, in the order of ``cases``.
        cases: the scores, sorted by case.
        left_out: what is wrong with the cases that were not scored.
    """

    name: str
    predictions: Path
    references: Path
    scoring: Scoring
    pairs: tuple[Pair, ...]
    cases: tuple[CaseScores, ...]
    left_out: tuple[Problem, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Cases without a prediction."""
        return [case.case for case in self.cases if case.missing]


@contextmanager
def case_workers(processes: int) -> Iterator[Executor | None]:
    """Processes to check and score with; None for none but this one."""
    # Spawned, since the caller may have threads (torch has).
    pool = ProcessPoolExecutor(processes, get_context("spawn")) if processes > 1 else None
    with pool or nullcontext():
        try:
            yield pool
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {processes} processes died: for want of memory, then use fewer (processes=1); or because "
                'the script that called has no `if __name__ == "__main__":`'
            ) from error
        finally:
            if pool:
                pool.shutdown(cancel_futures=True)


def over_cases(task: Callable[[Pair], Result], pairs: Sequence[Pair], pool: Executor | None, what: str) -> list[Result]:
    """``task`` of every pair, in their order whichever process did it, with a bar on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("cases"))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task(what, total=len(pairs))
        if pool is None:
            results = []
            for pair in pairs:
                results.append(task(pair))
                bar.advance(shown)
            return results
        futures = [pool.submit(task, pair) for pair in pairs]
        for future in as_completed(futures):
            future.result()
            bar.advance(shown)
        return [future.result() for future in futures]
