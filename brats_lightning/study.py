"""Compare ideas by cross-validation in one command: ``python -m brats_lightning.study folds=5 'arms={…}'``."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.entry_point import entry_point
from brats_lightning.config.jobs import run_jobs
from brats_lightning.config.outcomes import Ending, forget_outcome
from brats_lightning.runtime.files import csv_text, make_folder, write_json, write_text
from brats_lightning.runtime.locks import claimed

if TYPE_CHECKING:
    from brats_lightning.config.study import Study
    from brats_lightning.config.study_job import Job
    from brats_lightning.data.cases import Case
    from brats_lightning.evaluation.study import HeldOut

log = logging.getLogger(__name__)


def study(cfg: DictConfig) -> dict[str, Any]:
    """Train every arm × fold × seed, predict and score what each held out, and compare the arms.

    Args:
        cfg: a resolved config as ``conf/study.yaml`` composes it.

    Returns:
        The content of ``summary.json``; with ``dry_run`` the jobs and what they take.

    Raises:
        StudyError: settings that make no study, or others than those that the folder's study began with.
        CaseError: there are faulty cases, and ``data.on_bad_case`` is ``error``.
        SystemExit: jobs failed; their reasons are in the table.
    """
    from brats_lightning.config.build import cases_of
    from brats_lightning.config.study import Study
    from brats_lightning.config.study_job import packages

    asked = Study.of(cfg)
    configs = asked.configs()
    asked.check(configs)
    first = next(iter(configs.values()))
    cfg = cfg.copy()
    cfg.data, cfg.protocols = first.data, first.protocols  # by which all arms are scored
    cases = [case for case in cases_of(first) if case.mask is not None]
    plan = _announce(asked, configs, cases)
    if cfg.dry_run:
        return plan
    with claimed(make_folder(asked.folder) / ".lock", f"the study {asked.folder}"):
        _fill_cache(asked, configs)
        asked.record(configs)
        _train(asked)
        _predict(asked, configs)
        trust = tuple(sorted({name for config in configs.values() for name in packages(config)}))
        summary = _results(asked, cfg, cases, trust)
    if failed := [job for job in asked.jobs if not job.predicted]:
        log.error("%d of %d jobs failed; the same command tries them again", len(failed), len(asked.jobs))
        raise SystemExit(1)
    return summary


def _announce(asked: "Study", configs: Mapping[str, DictConfig], cases: Sequence["Case"]) -> dict[str, Any]:
    """Show the jobs, how far they are, and what those that are left take."""
    from brats_lightning.config.study_estimate import estimate
    from brats_lightning.data.nifti import UnreadableFile, read_header
    from brats_lightning.runtime.console import show, table_of

    shapes = []
    for case in cases:
        with suppress(UnreadableFile):  # which is reported when the cache is filled
            shapes.append(read_header(next(iter(case.images.values()))).grid.shape[::-1])
    held_out = shapes[:: asked.folds]
    here = not _by_slurm()
    rows, hours, written = [], 0.0, 0
    for arm, config in configs.items():
        each = estimate(config, here, len(cases) - len(held_out), held_out)
        own = [job for job in asked.jobs if job.arm == arm]
        left = [job for job in own if not job.trained]
        if left:
            hours += len(left) * (math.nan if each.hours is None else each.hours)
        written += len(left) * each.bytes
        rows.append([arm, " ".join(asked.arms[arm]) or "–", len(own), len(own) - len(left), _hours(each.hours)])
    show(table_of(["arm", "overrides", "jobs", "finished", "time each"], rows, f"study {asked.folder}"))
    log.info(
        "%d cases, %d folds, seeds %s: %d trainings left, about %s and %.1f GB", len(cases), asked.folds,
        ", ".join(map(str, asked.seeds)), sum(not job.trained for job in asked.jobs), _hours(hours), written / 1e9,
    )  # fmt: skip
    return {"jobs": [str(job) for job in asked.jobs], "hours": hours, "bytes": written}


def _by_slurm() -> bool:
    return "slurm" in str(HydraConfig.get().runtime.choices.get("hydra/launcher"))


def _hours(hours: float | None) -> str:
    if hours is None or math.isnan(hours):
        return "an unknown time"
    if hours < 1 / 60:
        return "less than a minute" if hours else "no time"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


def _fill_cache(asked: "Study", configs: Mapping[str, DictConfig]) -> None:
    """Preprocess the cases for every arm, and deal their patients into the folds if that has not been done."""
    from brats_lightning.config.build import build_data, describe_data, with_spacing
    from brats_lightning.config.study import FOLDS, check_folds, check_start

    for number, cfg in enumerate(configs.values()):
        dealing: Any = OmegaConf.merge(with_spacing(cfg), {"data": asked.first_fold(cfg)})
        del dealing.sampling, dealing.copy_paste  # which would read the training cases
        data = build_data(dealing)
        if not number:
            log.info("data: %s", describe_data(cfg))
        data.prepare_data()
        if not number and not (asked.folder / FOLDS).is_file():
            data.setup("fit")
            folds = data.folds(asked.folds)
            check_folds([split.val for split in folds])
            write_json(asked.folder / FOLDS, [asdict(split) for split in folds])
    for arm, cfg in configs.items():
        check_start(arm, cfg, asked.folder / FOLDS, asked.folds)


class _Progress:
    """Says of each job that it has ended, by looking at its folder."""

    def __init__(self, what: str, jobs: Sequence["Job"], state: Callable[["Job"], str | None]) -> None:
        self.what, self.jobs, self.state = what, jobs, state
        self.ended = {job for job in jobs if state(job)}
        log.info("%s: %d of %d jobs are left", what, len(jobs) - len(self.ended), len(jobs))

    def __call__(self) -> None:
        for job in self.jobs:
            if job not in self.ended and (state := self.state(job)):
                self.ended.add(job)
                log.info("%s %d of %d: %s: %s", self.what, len(self.ended), len(self.jobs), job, state.splitlines()[0])


def _train(asked: "Study") -> None:
    """Run the trainings that are left; those that failed in an earlier start are tried again."""
    from brats_lightning.config.study import StudyError

    for job in asked.jobs:
        if job.outcome and job.outcome.ending == Ending.FAILED:
            forget_outcome(job.folder)
    crashed: set[Job] = set()
    while left := [job for job in asked.jobs if job.outcome is None and job not in crashed]:
        for job in left:
            job.check_free()
        shown = _Progress("training", asked.jobs, lambda job: job.outcome and (job.outcome.reason or "finished"))
        run_jobs("train", [*asked.flags, *asked.shared], [job.training() for job in left], asked.folder, shown)
        if not any(job.outcome for job in left):  # the first of them was killed, and with it their common process
            last = (asked.folder / "train.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            if not any(job.folder.exists() for job in left):
                raise StudyError(f"no training could be started: {' '.join(last)}")
            log.error("%s: was killed, perhaps out of memory; train.log ends: %s", left[0], " ".join(last))
            crashed.add(left[0])


def _predict(asked: "Study", configs: Mapping[str, DictConfig]) -> None:
    trained = [job for job in asked.jobs if job.trained]
    if left := [job for job in trained if not job.predicted]:
        shown = _Progress("prediction", trained, lambda job: "finished" if job.predicted else None)
        flags = list(asked.flags)
        if _by_slurm():  # a job requests what its trainer needs, and `predict` has none
            gpus = "null" if all(cfg.trainer.accelerator == "cpu" for cfg in configs.values()) else "1"
            resources = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": gpus}
            flags += [f"hydra.launcher.{name}={value}" for name, value in resources.items()]
        run_jobs("predict", flags, [job.prediction(configs[job.arm]) for job in left], asked.folder, shown)


def _results(asked: "Study", cfg: DictConfig, cases: Sequence["Case"], trust: Sequence[str]) -> dict[str, Any]:
    """Score all predictions; write the tables, the ensembles and the page."""
    from brats_lightning.config.build import describe_data
    from brats_lightning.config.study_results import HeldOutCases, settings_text
    from brats_lightning.evaluation.bootstrap import Bootstrap
    from brats_lightning.evaluation.report.pages import study_page
    from brats_lightning.evaluation.results import by_protocol
    from brats_lightning.evaluation.scoring import case_workers
    from brats_lightning.evaluation.study import compare_arms, score_rows

    scores: list[Mapping[str, HeldOut]] = []
    chosen_rules: list[dict[str, Any]] = []
    with case_workers(cfg.processes) as pool:
        held_out = HeldOutCases(asked, cfg, cases, trust, pool)
        tunings: dict[str, list[Any]] = {}
        for (arm, seed), chosen in held_out.predicted().items():
            scores.append(held_out.score(arm, seed, chosen))
            if cfg.tune is not None and (tuning := held_out.tune(arm, seed, chosen)):
                scores.append(held_out.score(arm, seed, chosen, tuned=True))
                tunings.setdefault(arm, []).append(tuning)
                chosen_rules += [
                    {"arm": arm, "seed": seed, "fold": fold, "chosen": settings_text(tuning.rules[number])}
                    for fold, number in sorted(tuning.chosen.items())
                ]
        for arm in asked.arms:
            held_out.write_choice(arm, tunings.get(arm, []))
    arms = {arm: asked.write_arm(arm) for arm in asked.arms}
    found = {protocol: [own[protocol] for own in scores] for protocol in held_out.scoring.protocols}
    patient_of, bootstrap = {case.id: case.patient for case in cases}, Bootstrap(cfg.resamples, 0)
    summary = {protocol: compare_arms(own, protocol, patient_of, bootstrap) for protocol, own in found.items()}
    for name, tuned in (("scores", False), ("tuned_scores", True)):
        rows = {protocol: [each for each in own if each.tuned == tuned] for protocol, own in found.items()}
        if all(rows.values()):
            tables = {protocol: csv_text(score_rows(own, held_out.fold_of)) for protocol, own in rows.items()}
            for file, text in by_protocol(name, tables).items():
                write_text(asked.folder / file, text)
    write_json(asked.folder / "summary.json", summary)
    jobs = [
        {"arm": job.arm, "seed": job.seed, "fold": job.fold, "cases": len(held_out.folds[job.fold]), "state": job.state}
        | {"finished": job.predicted}
        for job in asked.jobs
    ]
    facts = {"folds": asked.folds, "seeds": asked.seeds, "data": describe_data(cfg), "jobs": jobs, "arms": arms}
    write_text(asked.folder / "report.html", study_page(cfg.name, facts | {"tuning": chosen_rules}, summary))
    _show(summary, asked)
    return summary


def _show(summary: Mapping[str, Any], asked: "Study") -> None:
    """The main score of each arm, on the terminal."""
    from brats_lightning.evaluation.report.wording import number
    from brats_lightning.metrics.official import headline_columns
    from brats_lightning.runtime.console import show, table_of

    for protocol, found in summary.items():
        column = headline_columns(protocol)[0]
        rows = []
        for name, method in found["methods"].items():
            cells = (row[column] for row in method["scores"].values())
            texts = [f"{number(cell['mean'])} [{number(cell['low'])}, {number(cell['high'])}]" for cell in cells]
            rows.append([name, *texts, method["cases"]])
        if rows:
            regions = next(iter(found["methods"].values()))["scores"]
            show(table_of(["arm", *map(str.upper, regions), "cases"], rows, f"{column}, {protocol}"))
    log.info("report: %s", asked.folder / "report.html")


main = partial(entry_point, "study", study)

if __name__ == "__main__":
    main()
