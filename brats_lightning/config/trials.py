"""The trials of an Optuna sweep: asked for, told, and taken up again after the sweep was killed."""

import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from brats_lightning.config.build import settings_of
from brats_lightning.config.command_line import quote
from brats_lightning.config.outcomes import Ending, Outcome, outcome_of, value_of
from brats_lightning.config.resume import ResumeError, newest_checkpoint
from brats_lightning.config.search_space import Space
from brats_lightning.runtime.files import UnwritableFile
from brats_lightning.runtime.locks import InUse, claimed
from brats_lightning.training.processes import is_first_process

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    from brats_lightning.training.callbacks.pruning import Pruning

log = logging.getLogger(__name__)

_NAME = "sweep"  # of a study without one
# What is kept with a trial: the folders of the sweep and of an interrupted job, how often it was begun, why it failed.
_SWEEP, _JOB, _TRIES, _REASON = "sweep", "job", "tries", "reason"
_MOST_TRIES = 3  # values with which the sweep was killed as often as this are not tried again
_FEW = 10  # trials from which no importance follows
_NUMBER = re.compile(r"^ *- hydra\.sweeper\.trial=(\d+)$", re.MULTILINE)  # in the overrides of a job


@contextmanager
def opened(settings: DictConfig) -> "Iterator[Study]":
    """The study of a sweep with the settings ``hydra.sweeper``, made if need be; its database is closed afterwards.

    Raises:
        ValueError: there is no such database, or no such pruner, or the study has another direction.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with settings_of("hydra.sweeper.pruner"):
        pruner = hydra.utils.instantiate(settings.pruner) if settings.pruner else optuna.pruners.NopPruner()
    file = settings.storage.startswith("sqlite")
    options = {"connect_args": {"timeout": 60}} if file else {"pool_pre_ping": True}  # seconds to wait for the others
    name = settings.study_name or _NAME
    try:
        storage = optuna.storages.RDBStorage(settings.storage, engine_kwargs=options)
        study = optuna.create_study(
            storage=storage, study_name=name, direction=settings.direction, pruner=pruner, load_if_exists=True
        )
    except (ImportError, ValueError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise ValueError(f"hydra.sweeper.storage={shown(settings.storage)}: {str(error).splitlines()[0]}") from error
    study.stop = lambda: None  # type: ignore[method-assign]  # called by samplers without more values; the loop is ours
    try:
        if (known := study.direction.name.lower()) != settings.direction:
            raise ValueError(
                f"hydra.sweeper.direction is {settings.direction}, but study {name} in {shown(settings.storage)} has "
                f"{known}; choose another hydra.sweeper.study_name or hydra.sweep.dir"
            )
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def shown(url: str) -> str:
    """A database's URL without its password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string()
    except ArgumentError:
        return url


def importances(settings: DictConfig) -> dict[str, float]:
    """How much each key mattered, with 1 as their sum, largest first; empty for too few trials, or one key."""
    import optuna

    with opened(settings) as study, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of choices that few trials had
        ended = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        keys = {key for trial in ended for key in trial.params}
        if sum(math.isfinite(trial.value or 0.0) for trial in ended) < _FEW or len(keys) < 2:
            return {}
        found = optuna.importance.get_param_importances(study)
    return {key.lstrip("+"): value for key, value in found.items()}


class Trials:
    """The trials of the sweep in a folder; other machines may have more trials of the same study.

    Args:
        study: of them.
        folder: of the sweep, with a folder for each job.
        objective: the score that is a trial's value.
    """

    def __init__(self, study: "Study", folder: Path, objective: str) -> None:
        self.study, self.folder, self.objective = study, folder.absolute(), objective

    def counted(self) -> int:
        """Trials that have ended or are running; those that were killed don't count."""
        return sum(map(_counts, self.study.get_trials(deepcopy=False)))

    def ended(self) -> int:
        """Those of `counted` that are not running, or were not when their sweep was killed."""
        return sum(_counts(trial) and trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def best(self) -> "FrozenTrial | None":
        """The trial with the best value of the study, if any has one."""
        from optuna.trial import TrialState

        ended = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = 1 if self.study.direction.name == "MAXIMIZE" else -1
        finite = (trial for trial in ended if trial.value is not None and math.isfinite(trial.value))
        return max(finite, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def ask(self, space: Space) -> "Trial":
        """The next trial: one that was killed, with the same values, or else a new one.

        Raises:
            ValueError: the study has other choices for a key.
        """
        try:
            trial = self.study.ask(space)
        except ValueError as error:
            raise ValueError(f"{error}: what was drawn before does not fit; choose another study or folder") from error
        if trial.user_attrs.get(_SWEEP) != str(self.folder):  # new, or begun on another machine, whose files stay there
            trial.set_user_attr(_JOB, "")
            trial.set_user_attr(_SWEEP, str(self.folder))
        return trial

    def place(self, trial: "Trial", template: str) -> list[str]:
        """The overrides of a trial's job that say where it runs and which trial it is.

        Args:
            trial: of the job.
            template: of the job folder's name, ``hydra.sweep.subdir`` with its references to other values.
        """
        begun, checkpoint = trial.user_attrs[_JOB], []
        name = begun or template.replace("${hydra.job.num}", str(trial.number))
        if begun:
            with suppress(ResumeError):  # it was killed before its first checkpoint
                checkpoint = [f"ckpt_path={quote(str(newest_checkpoint(self.folder / begun)))}"]
            log.info("trial %d %s %s", trial.number, "goes on in" if checkpoint else "starts again in", begun)
        return [f"hydra.sweep.subdir={name}", f"hydra.sweeper.trial={trial.number}", *checkpoint]

    def tell(self, trial: "Trial", outcome: Outcome) -> None:
        """Record what came of a trial; a NaN score and a loss that diverged are the worst value."""
        from optuna.trial import TrialState

        worst = -math.inf if self.study.direction.name == "MAXIMIZE" else math.inf
        value = value_of(outcome.scores, self.objective)
        if outcome.ending is Ending.PRUNED:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif outcome.ending is Ending.DIVERGED:
            self.study.tell(trial, worst)
        elif value is not None:
            self.study.tell(trial, worst if math.isnan(value) else value)
        else:
            trial.set_user_attr(_REASON, outcome.reason or f"no score {self.objective}")
            self.study.tell(trial, state=TrialState.FAIL)

    def settle(self, trials: Sequence["Trial"], reason: str) -> list[Outcome]:
        """Record what came of trials whose jobs have ended; one without any outcome failed, for ``reason``."""
        jobs = self._jobs()
        found = [outcome_of(jobs[trial.number]) if trial.number in jobs else None for trial in trials]
        outcomes = [outcome or Outcome({}, Ending.FAILED, reason) for outcome in found]
        for trial, outcome in zip(trials, outcomes, strict=True):
            self.tell(trial, outcome)
        return outcomes

    def recover(self) -> None:
        """Take up the trials that were running when the sweep in this folder was killed.

        A job that ended meanwhile counts; one that still runs, as on a cluster, is left alone; the others failed, and
        their values are the next to be tried.
        """
        from optuna.trial import Trial, TrialState

        jobs = self._jobs()
        for frozen in self.study.get_trials(states=(TrialState.RUNNING,)):
            job = jobs.get(frozen.number)
            if job is None and frozen.user_attrs.get(_SWEEP) != str(self.folder):
                continue  # of another machine
            trial = Trial(self.study, frozen._trial_id)
            tries = frozen.user_attrs.get(_TRIES, 1)
            if job is not None and (outcome := outcome_of(job)) is not None:
                self.tell(trial, outcome)
            elif job is not None and _in_use(job):
                log.warning("trial %d still runs in %s, and counts", frozen.number, job)
            elif tries >= _MOST_TRIES:
                self.tell(trial, Outcome({}, Ending.FAILED, f"the sweep was killed {tries} times while it ran"))
                log.warning("trial %d was killed %d times; not tried again", frozen.number, tries)
            else:
                self.study.tell(trial, state=TrialState.FAIL)
                again = {_SWEEP: str(self.folder), _JOB: job.name if job else "", _TRIES: tries + 1}
                self.study.enqueue_trial(frozen.params, user_attrs=again)
                log.info("trial %d was killed while it ran", frozen.number)

    def drop(self, trials: Sequence["Trial"]) -> None:
        """Take back trials whose jobs could not be started; they don't count."""
        from optuna.trial import TrialState

        for trial in trials:
            self.study.tell(trial, state=TrialState.FAIL)

    def _jobs(self) -> dict[int, Path]:
        """The folders of the jobs, by the numbers of their trials."""
        found = {}
        for file in self.folder.glob("*/.hydra/hydra.yaml"):
            if match := _NUMBER.search(file.read_text(encoding="utf-8")):
                found[int(match[1])] = file.parents[1]
        return found


def _counts(trial: "FrozenTrial") -> bool:
    attribute = {"FAIL": _REASON, "RUNNING": _SWEEP}.get(trial.state.name)
    return trial.state.name != "WAITING" and (attribute is None or attribute in trial.user_attrs)


def _in_use(job: Path) -> bool:
    try:
        with claimed(job / ".lock", f"the run folder {job}"):
            return False
    except InUse:
        return True
    except UnwritableFile:
        return False


def pruning(objective: str, trial: int | None) -> "Pruning":
    """The callback that prunes the run of a trial, by the sweeper's settings; without effect outside of sweeps.

    Only the first process knows these, so that no config or checkpoint has the password of a database.
    """
    from brats_lightning.training.callbacks.pruning import Pruning

    settings: Any = HydraConfig.get().sweeper if HydraConfig.initialized() else {}
    if trial is None or "storage" not in settings or not is_first_process():
        return Pruning(objective)

    def report(step: int, score: float) -> bool:
        from optuna.exceptions import OptunaError
        from optuna.trial import Trial
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with opened(settings) as study:
                (own,) = (each for each in study.get_trials(deepcopy=False) if each.number == trial)
                reported = Trial(study, own._trial_id)
                reported.report(score, step)
                return bool(reported.should_prune())
        except (ValueError, OptunaError, SQLAlchemyError) as error:
            log.warning("trial %d, step %d was not reported: %s", trial, step, error)
            return False

    return Pruning(objective, report)
