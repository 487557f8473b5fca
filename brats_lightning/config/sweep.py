"""The table of a multirun: the settings in which its jobs differ, and their scores."""

import csv
import io
import itertools
import json
import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from brats_lightning.runtime.files import write_text

log = logging.getLogger(__name__)

FILE = "sweep.csv"
_ERROR, _DIVERGED = "error.txt", "diverged.txt"  # the reason, in the folder of a job without scores
OUTCOMES = ("metrics.json", _ERROR, _DIVERGED)  # a job leaves one of them
_FAILED = "failed"  # the column with the reason


def record_failure(job: Path, message: str, diverged: bool = False) -> None:
    """Write into a job's folder why it has no scores; for a sweep a loss that ``diverged`` is a result, no failure."""
    with suppress(OSError):  # the disk may be full, and the message was printed
        forget_outcome(job)
        write_text(job / (_DIVERGED if diverged else _ERROR), message + "\n")


def forget_outcome(job: Path) -> None:
    """Remove the outcome of an earlier run from a folder."""
    for name in OUTCOMES:
        (job / name).unlink(missing_ok=True)


class SweepTable(Callback):
    """Hydra's callback: after the last job, write ``sweep.csv`` and print its main columns, the best job first.

    Jobs without scores come last, with the reason. If one failed, the command's exit code is 1.
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Collect the outcomes from the folders of the jobs, wherever these ran."""
        folder = Path(config.hydra.sweep.dir)
        varied, rows = collect(folder, config.objective, config.objective_mode)
        if not rows:
            return
        failed = [row for row in rows if _FAILED in row]
        settings = ["job", *varied, *([_FAILED] if failed else [])]
        scores = sorted({name for row in rows for name in row} - set(settings))
        text = io.StringIO()
        writer = csv.DictWriter(text, [*settings, *scores], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / FILE, text.getvalue())
        best = f"best/{config.objective}"
        _print(rows, settings, [name for name in scores if name == best or re.fullmatch("test/.*dice_mean", name)])
        log.info("all scores of all jobs: %s", folder / FILE)
        if broken := [row for row in failed if not (folder / row["job"] / _DIVERGED).is_file()]:
            log.error("%d of %d jobs failed", len(broken), len(rows))
            raise SystemExit(1)


def collect(folder: Path, objective: str, mode: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The overrides in which jobs differ, and a row for each job: ``job`` (its folder), these overrides, its scores.

    Args:
        folder: of the multirun.
        objective: the score by which rows are sorted, best first; rows without it come last. A job without scores has
            the reason in ``failed``.
        mode: whether ``max`` or ``min`` is best.
    """
    overrides = {}
    for file in sorted(folder.glob("*/.hydra/overrides.yaml")):
        given: Any = OmegaConf.to_container(OmegaConf.load(file))
        pairs = (override.lstrip("+").split("=", 1) for override in given if "=" in override)
        overrides[file.parent.parent.name] = dict(pairs)
    keys = dict.fromkeys(itertools.chain(*overrides.values()))
    varied = [key for key in keys if len({job.get(key) for job in overrides.values()}) > 1]
    rows = [
        {"job": name} | {key: job.get(key, "") for key in varied} | _outcome(folder / name)
        for name, job in overrides.items()
    ]
    sign = -1 if mode == "max" else 1

    def place(row: dict[str, Any]) -> tuple[bool, float]:
        value = row.get(f"best/{objective}", row.get(objective))
        return (value is None, 0.0 if value is None else sign * value)

    return varied, sorted(rows, key=place)


def _outcome(job: Path) -> dict[str, Any]:
    """A job's scores, or the reason why it has none."""
    found = next((job / name for name in OUTCOMES if (job / name).is_file()), None)
    if found is None:
        return {_FAILED: "ended without scores; see its train.log"}
    return json.loads(found.read_text()) if found.suffix == ".json" else {_FAILED: found.read_text().strip()}


def _print(rows: list[dict[str, Any]], settings: list[str], scores: list[str]) -> None:
    from brats_lightning.runtime.console import show, table_of

    cells = [[row.get(column) for column in (*settings, *scores)] for row in rows]
    text = (["" if v is None else f"{v:.4f}" if isinstance(v, float) else v for v in row] for row in cells)
    show(table_of([*settings, *scores], text))
