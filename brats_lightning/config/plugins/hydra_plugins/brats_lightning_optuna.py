"""Hydra's sweeper ``hydra/sweeper=optuna``: each run of a multirun is a trial of an Optuna study in a database.

The same command with the same sweep folder goes on where it was interrupted. Hydra imports this file at each start, so
that Optuna is imported later.
"""

import logging
import math
import re
import time
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import hydra
import numpy as np
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brats_lightning.config.build import settings_of
from brats_lightning.config.outcomes import LOST, Outcome, value_of
from brats_lightning.config.search_space import Space, as_overrides, combinations, search_space
from brats_lightning.config.trials import Trials, opened, shown
from brats_lightning.runtime.files import make_folder
from brats_lightning.runtime.locks import claimed
from brats_lightning.training.processes import started_from_outside

log = logging.getLogger(__name__)

_GRID = "optuna.samplers.BruteForceSampler"
_SEQUENCE = "optuna.samplers.QMCSampler"  # the points of one seed belong together


class OptunaSweeper(Sweeper):
    """Draws the values of jobs by ask-and-tell, and learns what came of them from their folders.

    Its settings are ``hydra.sweeper``, see ``conf/hydra/sweeper/optuna.yaml``.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, **_: Any) -> None: ...

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a launcher needs."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run jobs until ``n_trials`` have ended in the study, or as many again if they have.

        Raises:
            ValueError: settings that make no search, or another process sweeps in this folder.
            ModuleNotFoundError: Optuna is not installed.
        """
        import optuna  # noqa: F401  # where it is missing, nothing else is worth saying

        settings, folder = self.config.hydra.sweeper, make_folder(self.config.hydra.sweep.dir)
        _check(settings)
        params = [f"{key}={value}" for key, value in (settings.params or {}).items() if value is not None]
        space, fixed = search_space([*params, *arguments], self.hydra_context.config_loader)
        if not space:
            raise ValueError("hydra/sweeper=optuna has nothing to draw; give hydra.sweeper.params, or key=choice(…)")
        with claimed(folder / ".lock", f"the sweep's folder {folder}"), opened(settings) as study:
            trials = Trials(study, folder, self.config.objective)
            # An interrupted sweep goes on to its number; one that has reached it, to as many again.
            wanted = (trials.ended() // settings.n_trials + 1) * settings.n_trials
            trials.recover()
            self._run(trials, space, fixed, wanted)

    def _run(self, trials: Trials, space: Space, fixed: Sequence[str], wanted: int) -> None:
        settings, begun = self.config.hydra.sweeper, trials.counted()
        if settings.sampler._target_ == _GRID:
            wanted = min(wanted, combinations(space))
        self._introduce(trials, space, begun, wanted)
        start = time.monotonic()
        while (count := trials.counted()) < wanted:
            batch = []
            for number in range(count, min(count + settings.n_jobs, wanted)):
                trials.study.sampler = self._sampler(number)
                batch.append(trials.ask(space))
            for trial, outcome in zip(batch, self._launch(trials, batch, fixed), strict=True):
                done = trials.counted()
                left = (time.monotonic() - start) / max(1, done - begun) * (wanted - done)
                log.info("%s", _line(trials, trial.number, outcome, f"{done} of {wanted} done", left))

    def _launch(self, trials: Trials, batch: Sequence[Any], fixed: Sequence[str]) -> list[Outcome]:
        template = OmegaConf.to_container(self.config.hydra.sweep)["subdir"]  # type: ignore[call-overload,index]
        jobs = [[*fixed, *as_overrides(trial.params), *trials.place(trial, template)] for trial in batch]
        reason = LOST
        try:
            self.launcher.launch(jobs, initial_job_idx=batch[0].number)
        except (HydraException, OmegaConfBaseException):  # settings that no trial can have
            trials.drop(batch)
            raise
        except Exception as error:  # a launcher's: it lost a job, and says nothing of the others
            log.error("%s: %s", type(error).__name__, error)
            reason = f"{type(error).__name__}: {_first_line(str(error))}"
        return trials.settle(batch, reason)

    def _sampler(self, number: int) -> Any:
        """Optuna's sampler for the ``number``-th trial, which draws the same also after an interruption."""
        node = self.config.hydra.sweeper.sampler
        own = {}
        if node.get("seed") is not None and node._target_ != _SEQUENCE:
            own["seed"] = int(np.random.SeedSequence((node.seed, number)).generate_state(1)[0])
        with settings_of("hydra.sweeper.sampler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna says of some samplers that they are experimental
            return hydra.utils.instantiate(node, **own)

    def _introduce(self, trials: Trials, space: Space, begun: int, wanted: int) -> None:
        settings = self.config.hydra.sweeper
        sampler = settings.sampler._target_.rpartition(".")[2]
        pruner = settings.pruner._target_.rpartition(".")[2] if settings.pruner else "no pruner"
        log.info("%s %s over %s (%s, %s)", settings.direction, trials.objective, ", ".join(space), sampler, pruner)
        log.info("%d of %d trials are done; study: %s", begun, wanted, shown(settings.storage))
        same = "" if settings.study_name else f" with hydra.sweep.dir={trials.folder}"
        log.info("after an interruption, the same command%s goes on", same)


def _check(settings: DictConfig) -> None:
    if settings.direction not in ("minimize", "maximize"):
        raise ValueError(f"hydra.sweeper.direction must be minimize or maximize, got {settings.direction!r}")
    for name in ("n_trials", "n_jobs"):
        if settings[name] < 1:
            raise ValueError(f"hydra.sweeper.{name} must be 1 or more, got {settings[name]}")
    if not settings.storage:
        raise ValueError("hydra.sweeper.storage must be the URL of a database, such as sqlite:////shared/study.db")
    if started_from_outside():  # each process would draw its own values
        raise ValueError("an Optuna sweep starts the processes of its runs itself: start it without torchrun and srun")


def _first_line(reason: str) -> str:
    return re.split("[;\n]", reason)[0]  # without the advice


def _line(trials: Trials, number: int, outcome: Outcome, done: str, left: float) -> str:
    """What came of a trial, the best so far, and the time left."""
    value = value_of(outcome.scores, trials.objective)
    result = f"{trials.objective} {'undefined' if value is None or math.isnan(value) else f'{value:.4f}'}"
    words = [f"trial {number}: {_first_line(outcome.reason) or result}"]
    if (best := trials.best()) is not None:
        words.append(f"best {best.value:.4f} in trial {best.number}")
    words.append(done)
    if left:
        words.append(f"about {timedelta(seconds=round(left))} left")
    return " · ".join(words)
