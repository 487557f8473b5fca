"""The table and the page of a multirun: the settings in which its jobs differ, their scores, and the best job."""

import csv
import io
import itertools
import logging
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.outcomes import Ending, names_of, outcome_of
from brats_lightning.config.trials import importances
from brats_lightning.config.values import read_yaml
from brats_lightning.runtime.files import write_text

if TYPE_CHECKING:
    from brats_lightning.evaluation.report.sweep import Sweep

log = logging.getLogger(__name__)

FILE, PAGE = "sweep.csv", "sweep.html"
_OUTCOME = "outcome"  # the column of what came of jobs without scores
_OWN = ("ckpt_path",)  # settings that say how a job was run, not with what


class SweepTable(Callback):
    """Hydra's callback: after the last job, write ``sweep.csv`` and ``sweep.html``, and print the main columns.

    The best job comes first, those that did not end last, with the reason. If one failed, the command's exit code is 1.
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Collect the outcomes from the folders of the jobs, wherever these ran."""
        from brats_lightning.evaluation.report.sweep import sweep_page

        folder = Path(config.hydra.sweep.dir)
        varied, rows = collect(folder, config.objective, config.objective_mode)
        if not rows:
            return
        settings = ["job", *varied, *([_OUTCOME] if any(_OUTCOME in row for row in rows) else [])]
        scores = sorted({name for row in rows for name in row} - set(settings))
        text = io.StringIO()
        writer = csv.DictWriter(text, [*settings, *scores], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / FILE, text.getvalue())
        best = names_of(config.objective)[0]
        _print(rows, settings, [name for name in scores if name == best or re.fullmatch("test/.*dice_mean", name)])
        page = _page(config, varied, rows)
        write_text(folder / PAGE, sweep_page(page))
        log.info("all scores of all jobs: %s; with figures: %s", folder / FILE, folder / PAGE)
        if page.command:
            print(f"\nThe best job again, by itself:\n  {page.command}")
        if failed := [row for row in rows if _failed(folder / row["job"])]:
            log.error("%d of %d jobs failed", len(failed), len(rows))
            raise SystemExit(1)


def collect(folder: Path, objective: str, mode: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The overrides in which jobs differ, and a row for each job: ``job`` (its folder), these overrides, its scores.

    Args:
        folder: of the multirun.
        objective: the score by which rows are sorted, best first; rows without it come last, after them those of jobs
            that did not end, with the reason in ``outcome``.
        mode: whether ``max`` or ``min`` is best.
    """
    overrides = {}
    for file in sorted(folder.glob("*/.hydra/overrides.yaml"), key=lambda file: _natural(file.parts[-3])):
        pairs = (override.lstrip("+").split("=", 1) for override in read_yaml(file) if "=" in override)
        overrides[file.parent.parent.name] = dict(pairs)
    keys = dict.fromkeys(itertools.chain(*overrides.values()))
    varied = [key for key in keys if key not in _OWN and len({job.get(key) for job in overrides.values()}) > 1]
    rows = [
        {"job": name} | {key: job.get(key, "") for key in varied} | _outcome(folder / name)
        for name, job in overrides.items()
    ]
    sign = -1 if mode == "max" else 1

    def place(row: dict[str, Any]) -> tuple[bool, bool, float]:
        value = next((row[name] for name in names_of(objective) if row.get(name) is not None), None)
        return (_OUTCOME in row, value is None, 0.0 if value is None else sign * value)

    return varied, sorted(rows, key=place)


def _page(config: DictConfig, varied: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> "Sweep":
    """What the page shows of the rows of `collect`."""
    from brats_lightning.evaluation.report.sweep import Job, Sweep

    folder, jobs = Path(config.hydra.sweep.dir), []
    for row in sorted(rows, key=lambda row: _natural(row["job"])):
        outcome = outcome_of(folder / row["job"])
        scores = {} if outcome is None else outcome.scores
        value = next((scores[name] for name in names_of(config.objective) if scores.get(name) is not None), None)
        jobs.append(
            Job(
                name=row["job"],
                settings={key: row[key] for key in varied},
                value=math.nan if value is None else float(value),
                outcome=str(row.get(_OUTCOME, "")),
                failed=outcome is None or outcome.ending is Ending.FAILED,
                scores=scores,
            )
        )
    sweeper = config.hydra.sweeper
    found = importances(sweeper) if "storage" in sweeper else {}
    page = Sweep(folder.name, config.objective, config.objective_mode, varied, jobs, importances=found)
    return page if page.best is None else replace(page, command=command_of(folder / page.best.name))


def command_of(job: Path) -> str:
    """The command that trains a job of a multirun by itself."""
    hydra = OmegaConf.load(job / ".hydra/hydra.yaml").hydra
    sources = [source for source in hydra.runtime.config_sources if source.provider == "command-line"]
    given = [text for text in hydra.overrides.task if text.split("=", 1)[0] not in (*_OWN, "launcher")]
    if not any(text.startswith("seed=") for text in given) and (job / "config.yaml").is_file():
        given.append(f"seed={OmegaConf.load(job / 'config.yaml').seed}")  # which was drawn
    folders = [f"--config-dir={source.path}" for source in sources]
    return shlex.join(["python", "-m", "brats_lightning.train", *folders, *given])


def _natural(name: str) -> list[int | str]:
    """Sorts ``2_unet`` before ``10_unet``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _outcome(job: Path) -> dict[str, Any]:
    """A job's scores, or the reason why it has none."""
    outcome = outcome_of(job)
    if outcome is None:
        return {_OUTCOME: "ended without scores; see its train.log"}
    return dict(outcome.scores) | ({_OUTCOME: outcome.reason} if outcome.ending else {})


def _failed(job: Path) -> bool:
    outcome = outcome_of(job)
    return outcome is None or outcome.ending is Ending.FAILED


def _print(rows: list[dict[str, Any]], settings: list[str], scores: list[str]) -> None:
    from brats_lightning.evaluation.report.wording import rounded
    from brats_lightning.runtime.console import show, table_of

    cells = [[row.get(column) for column in (*settings, *scores)] for row in rows]
    text = (["" if v is None else f"{v:.4f}" if isinstance(v, float) else rounded(v) for v in row] for row in cells)
    show(table_of([*settings, *scores], text))
