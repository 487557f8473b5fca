"""The table and the page of a multirun: the settings in which its jobs differ, their scores, and the best job."""

import itertools
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.command_line import command_text, config_dirs
from brats_lightning.config.outcomes import LOST, Ending, Outcome, outcome_of, value_of
from brats_lightning.config.trials import importances
from brats_lightning.config.values import read_yaml
from brats_lightning.runtime.files import csv_text, write_text

if TYPE_CHECKING:
    from brats_lightning.evaluation.report.sweep import Sweep

log = logging.getLogger(__name__)

FILE, PAGE = "sweep.csv", "sweep.html"
_OWN = ("ckpt_path",)  # settings that say how a job was run, not with what


class SweepTable(Callback):
    """Hydra's callback: after the last job, write ``sweep.csv`` and ``sweep.html``, and print the main columns.

    The best job comes first, those that did not end last, with the reason. If one failed, the command's exit code is 1.
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Collect the outcomes from the folders of the jobs, wherever these ran."""
        from brats_lightning.evaluation.report.sweep import sweep_page

        folder, sweeper = Path(config.hydra.sweep.dir), config.hydra.sweeper
        sweep = collect(folder, config.objective, config.objective_mode)
        if not sweep.jobs:
            return
        write_text(folder / FILE, csv_text(_table(sweep)))
        _print(_table(sweep, rf"best/{re.escape(sweep.objective)}|test/.*dice_mean"))
        if "storage" in sweeper:
            sweep = replace(sweep, importances=importances(sweeper))
        command = "" if sweep.best is None else command_of(folder / sweep.best.name)
        write_text(folder / PAGE, sweep_page(sweep, command))
        log.info("all scores of all jobs: %s; with figures: %s", folder / FILE, folder / PAGE)
        if command:
            print(f"\nThe best job again, by itself:\n  {command}")
        if failed := sum(job.failed for job in sweep.jobs):
            log.error("%d of %d jobs failed", failed, len(sweep.jobs))
            raise SystemExit(1)


def collect(folder: Path, objective: str, mode: str) -> "Sweep":
    """The jobs of a multirun in ``folder``, with the overrides in which they differ and their scores.

    Args:
        folder: of the multirun.
        objective: the score by which jobs are compared.
        mode: whether ``max`` or ``min`` is best.
    """
    from brats_lightning.evaluation.report.sweep import Job, Sweep

    overrides = {}
    for file in sorted(folder.glob("*/.hydra/overrides.yaml"), key=lambda file: _natural(file.parts[-3])):
        pairs = (override.lstrip("+").split("=", 1) for override in read_yaml(file) if "=" in override)
        overrides[file.parent.parent.name] = dict(pairs)
    keys = dict.fromkeys(itertools.chain(*overrides.values()))
    varied = [key for key in keys if key not in _OWN and len({job.get(key) for job in overrides.values()}) > 1]
    jobs = []
    for name, given in overrides.items():
        outcome = outcome_of(folder / name) or Outcome({}, Ending.FAILED, LOST)
        value = value_of(outcome.scores, objective)
        jobs.append(
            Job(
                name=name,
                settings={key: given.get(key, "") for key in varied},
                value=math.nan if value is None else value,
                outcome=outcome.reason,
                failed=outcome.ending is Ending.FAILED,
                scores=outcome.scores,
            )
        )
    return Sweep(folder.name, objective, mode, varied, jobs)


def _table(sweep: "Sweep", which: str = ".*") -> list[list[Any]]:
    """A row for each job, best first, below the names of the columns: settings, outcome, and scores named like that."""
    scores = sorted({name for job in sweep.jobs for name in job.scores if re.fullmatch(which, name)})
    outcome = ["outcome"] if any(job.outcome for job in sweep.jobs) else []
    rows = [
        [job.name, *job.settings.values(), *(job.outcome for _ in outcome), *map(job.scores.get, scores)]
        for job in sweep.ranked
    ]
    return [["job", *sweep.varied, *outcome, *scores], *rows]


def command_of(job: Path) -> str:
    """The command that trains a job of a multirun by itself."""
    hydra = OmegaConf.load(job / ".hydra/hydra.yaml").hydra
    given = [text for text in hydra.overrides.task if text.split("=", 1)[0] not in (*_OWN, "launcher")]
    if not any(text.startswith("seed=") for text in given) and (job / "config.yaml").is_file():
        given.append(f"seed={OmegaConf.load(job / 'config.yaml').seed}")  # which was drawn
    return command_text("train", *(f"--config-dir={folder}" for folder in config_dirs(hydra)), *given)


def _natural(name: str) -> list[int | str]:
    """Sorts ``2_unet`` before ``10_unet``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _print(table: Sequence[Sequence[Any]]) -> None:
    from brats_lightning.evaluation.report.wording import rounded
    from brats_lightning.runtime.console import show, table_of

    columns, *rows = table
    text = (["" if v is None else f"{v:.4f}" if isinstance(v, float) else rounded(v) for v in row] for row in rows)
    show(table_of(columns, text))
