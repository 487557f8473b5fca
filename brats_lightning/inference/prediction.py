"""Predicting cases: their images are read, their probabilities computed and their masks written."""

import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brats_lightning.data.cases import Case, Problem, examine, required, used_modalities
from brats_lightning.data.nifti import Header, image_like, read_header, write_nifti
from brats_lightning.data.preprocessing import Prepared
from brats_lightning.data.probabilities import Member, Probabilities, Record, write_probabilities
from brats_lightning.inference.ensemble import Ensemble, UndefinedProbabilities
from brats_lightning.inference.postprocessing import Postprocessing
from brats_lightning.inference.provenance import identities, origin
from brats_lightning.inference.summary import case_summary
from brats_lightning.inference.windows import Advance
from brats_lightning.runtime.files import make_folder
from brats_lightning.runtime.workers import each_result, end_workers, process_pool, worker_number

log = logging.getLogger(__name__)

Wanted = Mapping[str, tuple[Case, Sequence[Path]]]  # id → the case, and the files to write, its mask first
Outcomes = Generator[tuple[str, "Outcome"], None, None]  # by id


class Outcome(NamedTuple):
    """What became of a case."""

    summary: dict[str, Any] | None  # its `case_summary` and the ``seconds`` it took; None if it has problems
    problems: list[Problem]
    remarks: list[str]


class _Images(NamedTuple):
    """A case's images as the members of an ensemble need them, or the problems with them."""

    prepared: list[Prepared]
    problems: list[Problem]
    remarks: list[str]


def _read(case: Case, ensemble: Ensemble, tolerance: float) -> _Images:
    images = {name: case.images[name] for name in used_modalities(case, ensemble.modalities, ensemble.optional)}
    examination = examine(replace(case, images=images, mask=None), ensemble.scheme, None, tolerance)
    if problems := required(examination.problems, tuple(images), need_mask=False):
        return _Images([], problems, [])
    # The volumes end here, of which only the quantised copies are needed.
    return _Images(ensemble.prepare(examination.images), [], list(examination.remarks))


def infer(
    case: Case, ensemble: Ensemble, tolerance: float, advance: Advance | None = None
) -> Probabilities | list[Problem]:
    """Probabilities of one case, or what is wrong with it; only the images that are needed are read."""
    images = _read(case, ensemble, tolerance)
    for remark in images.remarks:
        log.warning("%s: %s", case.id, remark)
    return images.problems or probabilities_of(case.id, images.prepared, ensemble, advance)


def probabilities_of(
    case: str, prepared: Sequence[Prepared], ensemble: Ensemble, advance: Advance | None = None
) -> Probabilities | list[Problem]:
    """Probabilities of a case that the ensemble has prepared, or what is wrong with them.

    They are rounded as a file of them would be, so that masks decoded from such files are the same.
    """
    try:
        return ensemble(prepared, advance).rounded()
    except UndefinedProbabilities as error:
        remedy = "set precision=32: 16 bits hold no large numbers; if that does not help, train again"
        return [Problem(case, "-", str(error), "numbers", remedy)]


def write_mask(path: Path, labels: np.ndarray, header: Header, description: str = "") -> None:
    """Write labels (x, y, z) as uint8 with an image's shape, affine and header codes; whole or not at all."""
    write_nifti(path, image_like(header, labels.reshape(header.shape), description=description))


@dataclass(frozen=True)
class Predictor:
    """Writes masks of cases, and their probabilities where a file of them is wanted.

    Attributes:
        ensemble: the models.
        rules: of post-processing.
        config: of the rules, as files of probabilities record it.
        tolerance: largest distance in mm by which the images of a case may disagree.
    """

    ensemble: Ensemble
    rules: Postprocessing
    config: Mapping[str, Any]
    tolerance: float

    @cached_property
    def models(self) -> list[str]:
        """The `identities` of the models."""
        return identities(self.ensemble)

    @cached_property
    def made_by(self) -> str:
        """The `origin` of the masks."""
        return origin(self.models, self.rules)

    def one(self, case: Case, files: Sequence[Path], advance: Advance | None = None) -> Outcome:
        """Predict one case and write its files."""
        started = time.monotonic()
        images = _read(case, self.ensemble, self.tolerance)
        if images.problems:
            return Outcome(None, images.problems, images.remarks)
        found = probabilities_of(case.id, images.prepared, self.ensemble, advance)
        if isinstance(found, list):
            return Outcome(None, found, images.remarks)
        summary = self._write(case, files, found)
        return Outcome(summary | {"seconds": round(time.monotonic() - started, 1)}, [], images.remarks)

    def each(self, cases: Wanted, advance: Advance | None = None) -> Outcomes:
        """The outcome of each case, in their order; threads read the next one and write the last one meanwhile.

        In memory are at most the probabilities of two cases and the images of two.
        """
        todo, last = list(cases.items()), None
        with ThreadPoolExecutor(2) as threads:
            reading = self._reading(threads, todo, 0)
            for number, (name, (case, files)) in enumerate(todo, 1):
                images, seconds = reading.result()
                reading = self._reading(threads, todo, number)
                if images.problems:
                    yield name, Outcome(None, images.problems, images.remarks)
                    continue
                started = time.monotonic()
                found = probabilities_of(case.id, images.prepared, self.ensemble, advance)
                seconds += time.monotonic() - started
                if isinstance(found, list):
                    yield name, Outcome(None, found, images.remarks)
                    continue
                if last is not None:
                    yield self._written(*last)
                last = name, images.remarks, seconds, threads.submit(_timed, self._write, case, files, found)
                del images, found
            if last is not None:
                yield self._written(*last)

    def _reading(
        self, threads: ThreadPoolExecutor, todo: Sequence[tuple[str, tuple[Case, Sequence[Path]]]], number: int
    ) -> Future[tuple[_Images, float]]:
        """The images of the case of a number, on their way; after the last one, nothing."""
        if number == len(todo):
            return Future()
        return threads.submit(_timed, _read, todo[number][1][0], self.ensemble, self.tolerance)

    @staticmethod
    def _written(
        name: str, remarks: list[str], seconds: float, writing: Future[tuple[dict[str, Any], float]]
    ) -> tuple[str, Outcome]:
        summary, more = writing.result()
        return name, Outcome(summary | {"seconds": round(seconds + more, 1)}, [], remarks)

    def _write(self, case: Case, files: Sequence[Path], found: Probabilities) -> dict[str, Any]:
        """Write a case's files; its `case_summary`."""
        scheme, (mask_file, *probability_files) = self.ensemble.scheme, files
        labels = self.rules(found.values, found.transform.spacing, scheme)
        used = used_modalities(case, self.ensemble.modalities, self.ensemble.optional)
        headers = (read_header(case.images[name], case.volumes.get(name)) for name in used)
        # Another image may store the same places in another order.
        header = next(each for each in headers if each.grid == found.transform.original)
        make_folder(mask_file.parent)
        for file in probability_files:
            parts = [model.part_of(case.id) for model in self.ensemble.models]
            members = tuple(map(Member, self.models, parts))
            of_case = case.id, scheme.names, self.ensemble.decode, header, members
            write_probabilities(file, found, Record(*of_case, self.config, self.made_by))
        write_mask(mask_file, found.transform.restore(labels), header, self.made_by)
        return case_summary(labels, found, scheme)


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """A result, and the seconds it took."""
    started = time.monotonic()
    return function(*arguments), time.monotonic() - started


def by_processes(make: Callable[[int], Predictor], processes: int, cases: Wanted) -> Outcomes:
    """The outcome of each case as they end, each predicted by one of several processes.

    The processes end at once if the caller stops iterating or is interrupted; what they have written stays.

    Args:
        make: called in each process with its number, from 0 on; must be picklable.
        processes: how many.
        cases: what to predict.

    Raises:
        DeadWorker: a process was ended from outside.
    """
    jobs = {name: (make, case, files) for name, (case, files) in cases.items()}
    with process_pool(processes) as pool:
        try:
            yield from each_result(pool, _by_this_process, jobs, "devices=1")
        except BaseException:  # nobody waits for cases that take minutes
            end_workers(pool)
            raise


_own: list[Predictor] = []  # of a worker process, made at its first case


def _by_this_process(make: Callable[[int], Predictor], case: Case, files: Sequence[Path]) -> Outcome:
    if not _own:
        _own.append(make(worker_number()))
    return _own[0].one(case, files)
