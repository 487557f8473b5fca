"""A package run here under the limits of a challenge, and how long its container would take for all cases."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brats_lightning.data.cases import CaseError, Problem
from brats_lightning.data.layouts.brats import find_inputs
from brats_lightning.inference.container import Outcome
from brats_lightning.inference.submission import mask_faults

log = logging.getLogger(__name__)

# In the namespaces of `unshare`, whose network has no device: the input is mounted over itself, read-only.
_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


@dataclass(frozen=True)
class DryRun:
    """What a dry run measured.

    Attributes:
        outcome: of the cases.
        hours: predicted for all cases on this machine.
        limits: which ones held: ``no network``, ``read-only input`` and ``memory``.
    """

    outcome: Outcome
    hours: float
    limits: tuple[str, ...]


def dry_run(
    package: Path, inputs: Path, masks: Path, labels: Sequence[int], cases: int, memory: int, processes: int = 1
) -> DryRun:
    """Run a package's entry point on a folder of cases.

    The hours are those of all cases at the mean pace of these, and of one start of the program.

    Args:
        package: folder that ``python -m brats_lightning.package`` has made.
        inputs: folder with a folder for each case.
        masks: folder for the masks, which does not exist or is empty.
        labels: that masks may have.
        cases: number of cases for which the hours are predicted.
        memory: bytes of data that each process may have.
        processes: that share the cases.

    Raises:
        CaseError: cases without a mask, or with a faulty one.
        ValueError: the program ended before its end.
    """
    prefix, limits = _limited(inputs, memory)
    if absent := {"no network", "read-only input", "memory"} - set(limits):
        log.warning("this machine does not let the dry run set these limits: %s", ", ".join(sorted(absent)))
    with tempfile.TemporaryDirectory() as scratch:
        summary = Path(scratch) / "summary.json"
        command = [sys.executable, "-m", "brats_lightning.inference.container", str(package)]
        command += ["--input", str(inputs), "--output", str(masks), "--summary", str(summary)]
        code = subprocess.run([*prefix, *command], check=False).returncode
        if not summary.is_file():
            raise ValueError(f"dry_run: the package ended with exit code {code}; its messages are above")
        outcome = Outcome(**json.loads(summary.read_text(encoding="utf-8")))
    if problems := _faults(outcome, inputs, masks, labels):
        raise CaseError(problems)
    if not outcome.seconds:
        raise ValueError("dry_run: the program was ended again and again; its messages are above")
    seconds, tried = sum(outcome.seconds.values()), len(outcome.seconds)
    start = max(0.0, outcome.total - seconds / min(processes, tried))
    hours = (start + cases * seconds / tried / processes) / 3600
    return DryRun(outcome, hours, limits)


def _faults(outcome: Outcome, inputs: Path, masks: Path, labels: Sequence[int]) -> list[Problem]:
    problems = [Problem(name, "-", "no case found in it", "images of a case", "see input") for name in outcome.strange]
    for case in find_inputs(inputs):
        if case.id in outcome.failed:
            problems.append(Problem(case.id, "-", "no mask", "a mask", "see the messages above"))
        else:
            file = masks / f"{case.id}.nii.gz"
            problems += [Problem(case.id, file.name, *fault) for fault in mask_faults(file, labels, case, max_share=1)]
    return problems


def _limited(inputs: Path, memory: int) -> tuple[list[str], tuple[str, ...]]:
    """The beginning of a command that limits what follows, as far as this machine lets us, and what it limits."""
    prefix: list[str] = []
    limits: list[str] = []
    unshare = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--net"]
    if _works([*unshare, "true"]):
        prefix, limits = unshare, ["no network"]
        read_only = [*unshare, "--mount", "sh", "-c", _READ_ONLY, str(inputs)]
        if _works([*read_only, "true"]):
            prefix, limits = read_only, [*limits, "read-only input"]
    limit = ["prlimit", f"--data={memory}"]
    if _works([*limit, "true"]):
        prefix, limits = [*prefix, *limit], [*limits, "memory"]
    return prefix, tuple(limits)


def _works(command: Sequence[str]) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0
