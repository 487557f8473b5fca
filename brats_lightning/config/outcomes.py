"""What came of a job of a multirun, as a file in its folder, wherever the job ran."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from brats_lightning.runtime.files import write_json, write_text

LOST = "ended without scores; see its train.log"  # the reason of a job that was killed
_SCORES = "metrics.json"


class Ending(StrEnum):
    """How a job ended before its time: the name of the file with the reason. Only a failure is a fault."""

    FAILED = "error.txt"
    DIVERGED = "diverged.txt"
    PRUNED = "pruned.txt"


class Outcome(NamedTuple):
    """The scores of a job, None for NaN; if it did not end, how and why, with the scores so far."""

    scores: Mapping[str, float | int | None]
    ending: Ending | None = None
    reason: str = ""


def record_ending(job: Path, ending: Ending, reason: str) -> None:
    """Write into a job's folder why it ended before its time."""
    with suppress(OSError):  # the disk may be full, and the message was printed
        forget_outcome(job)
        write_text(job / ending, reason + "\n")


def write_scores(job: Path, scores: Mapping[str, float]) -> None:
    """Write the scores of a job into its folder, null for those that are no number."""
    write_json(job / _SCORES, {name: value if math.isfinite(value) else None for name, value in scores.items()})


def forget_outcome(job: Path, scores: bool = True) -> None:
    """Remove from a folder how an earlier run ended, and its scores, unless they stay."""
    for name in (*([_SCORES] if scores else []), *Ending):
        (job / name).unlink(missing_ok=True)


def outcome_of(job: Path) -> Outcome | None:
    """What came of the job in a folder; None if it still runs or was killed."""
    ending = next((ending for ending in Ending if (job / ending).is_file()), None)
    scores = json.loads((job / _SCORES).read_text(encoding="utf-8")) if (job / _SCORES).is_file() else None
    if ending is None:
        return None if scores is None else Outcome(scores)
    return Outcome(scores or {}, ending, (job / ending).read_text(encoding="utf-8").strip())


def value_of(scores: Mapping[str, float | int | None], objective: str) -> float | None:
    """The value of a job's ``objective``: of its best checkpoint, else of its last validation; None if it has neither.

    NaN if the score is not defined.
    """
    name = next((name for name in (f"best/{objective}", objective) if name in scores), None)
    value = None if name is None else scores[name]
    return None if name is None else math.nan if value is None else float(value)
