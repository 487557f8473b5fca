"""Optuna sweeps whose jobs only pretend to train: what is drawn, recorded, and taken up again after a kill."""

import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

optuna = pytest.importorskip("optuna")
from brats_lightning.config.outcomes import Ending, record_ending, write_scores  # noqa: E402
from brats_lightning.config.trials import Trials, importances, opened, pruning, shown  # noqa: E402

OptunaSweeper = pytest.importorskip("hydra_plugins.brats_lightning_optuna").OptunaSweeper
LR = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


class Killed(BaseException):
    """In place of the signal."""


class Jobs:
    """A launcher; ``does`` says what comes of a job, by its trial's number and learning rate."""

    def __init__(self, folder, does):
        self.folder, self.does, self.lines = folder, does, []

    def launch(self, jobs, initial_job_idx):
        for overrides in jobs:
            given = dict(text.split("=", 1) for text in overrides)
            job = self.folder / given["hydra.sweep.subdir"].replace("${name}", "unet")
            (job / ".hydra").mkdir(parents=True, exist_ok=True)
            recorded = {"hydra": {"overrides": {"hydra": [f"hydra.sweeper.trial={given['hydra.sweeper.trial']}"]}}}
            OmegaConf.save(OmegaConf.create(recorded), job / ".hydra/hydra.yaml")
            self.lines.append(given)
            self.does(int(given["hydra.sweeper.trial"]), float(given.get("optimizer.lr", 0)), job)


def trains(number, lr, job):
    write_scores(job, {"best/val/dice_mean": -abs(math.log10(lr) + 3), "val/dice_mean": -9.0})


@pytest.fixture
def sweep(composed, tmp_path, monkeypatch):
    """Run a sweep in a folder of the given name; returns its launcher."""

    def run(*overrides, name="sweep", does=trains, n=5, arguments=(LR,)):
        folder = f"hydra.sweep.dir={tmp_path / name}"
        composed(
            "hparams_search=optuna", f"hydra.sweeper.n_trials={n}", folder, "hydra.sweeper.params=null", *overrides
        )
        hydra = OmegaConf.to_container(HydraConfig.instance().cfg.hydra)
        config = OmegaConf.create({"objective": "val/dice_mean", "objective_mode": "max", "hydra": hydra})
        monkeypatch.setattr(HydraConfig, "get", lambda: config.hydra)
        sweeper = OptunaSweeper()
        sweeper.config, sweeper.hydra_context = config, SimpleNamespace(config_loader=None)
        sweeper.launcher = Jobs(tmp_path / name, does)
        run.settings = config.hydra.sweeper
        sweeper.sweep(list(arguments))
        return sweeper.launcher

    return run


def trials_of(settings):
    with opened(settings) as study:
        return study.get_trials()


def states(settings):
    return [trial.state.name for trial in trials_of(settings)]


def rates(jobs):
    return [given["optimizer.lr"] for given in jobs.lines]


def test_values_of_the_best_checkpoints_are_recorded(sweep, tmp_path):
    jobs = sweep(arguments=[LR, "seed=0"])
    found = trials_of(sweep.settings)
    assert [trial.number for trial in found] == [0, 1, 2, 3, 4]
    assert [str(trial.params["optimizer.lr"]) for trial in found] == rates(jobs)
    assert [trial.value for trial in found] == [-abs(math.log10(float(lr)) + 3) for lr in rates(jobs)]
    assert all(1e-4 <= float(lr) <= 1e-2 for lr in rates(jobs))
    assert {given["seed"] for given in jobs.lines} == {"0"}
    assert sorted(path.name for path in tmp_path.glob("sweep/*_*")) == [f"{i}_unet" for i in range(5)]


def test_a_sweep_goes_on_to_trials_in_all_and_draws_the_same(sweep):
    whole = sweep(name="whole")
    begun = sweep(n=2)
    more = sweep(n=5)
    assert rates(begun) + rates(more) == rates(whole)
    assert len(sweep(n=5).lines) == 5  # a finished sweep adds as many again
    assert len(sweep(n=12).lines) == 2


def test_a_killed_trial_goes_on_with_its_values(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr("brats_lightning.config.trials.newest_checkpoint", lambda run: run / "checkpoints/last.ckpt")

    def killed(number, lr, job):
        if number == 2:
            raise Killed
        trains(number, lr, job)

    whole = sweep(name="whole")
    with pytest.raises(Killed):
        sweep(does=killed)
    assert states(sweep.settings) == ["COMPLETE", "COMPLETE", "RUNNING"]
    again = sweep()
    assert rates(again) == rates(whole)[2:]
    assert states(sweep.settings) == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 3
    first = again.lines[0]
    assert (first["hydra.sweep.subdir"], first["hydra.sweeper.trial"]) == ("2_unet", "3")
    assert first["ckpt_path"] == f'"{tmp_path}/sweep/2_unet/checkpoints/last.ckpt"'
    assert not any("ckpt_path" in given for given in again.lines[1:])


def test_a_trial_that_is_killed_again_and_again_is_given_up(sweep):
    def killed(number, lr, job):
        raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            sweep(does=killed, n=1)
    assert not sweep(n=1).lines
    assert trials_of(sweep.settings)[-1].user_attrs["reason"] == "the sweep was killed 3 times while it ran"


def test_a_job_that_outlived_its_sweep_is_not_run_again(sweep, tmp_path):
    def leaves(number, lr, job):
        if number == 0:
            trains(number, lr, job)  # finished by itself after the sweep was killed
        raise Killed

    with pytest.raises(Killed):
        sweep(does=leaves)
    with pytest.raises(Killed):
        sweep(does=leaves)
    assert states(sweep.settings) == ["COMPLETE", "RUNNING"]
    code = "import sys\nfrom pathlib import Path\nfrom brats_lightning.runtime.locks import claimed\n"
    code += "with claimed(Path(sys.argv[1]), 'x'):\n    print(flush=True)\n    sys.stdin.read()\n"
    lock = [sys.executable, "-c", code, str(tmp_path / "sweep/1_unet/.lock")]
    with subprocess.Popen(lock, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        job.stdout.readline()
        assert len(sweep(n=3).lines) == 1
        job.stdin.close()
    assert states(sweep.settings) == ["COMPLETE", "RUNNING", "COMPLETE"]


def test_what_does_not_end_well_does_not_end_the_sweep(sweep):
    def mixed(number, lr, job):
        if number == 0:
            record_ending(job, Ending.FAILED, "out of memory")
        elif number == 1:
            record_ending(job, Ending.DIVERGED, "the loss is nan")
        elif number == 2:
            write_scores(job, {"best/val/dice_mean": math.nan})
        elif number == 3:
            record_ending(job, Ending.PRUNED, "pruned at step 2")
        elif number == 4:
            raise RuntimeError("a worker died\nfor want of memory")
        else:
            trains(number, lr, job)

    sweep(does=mixed, n=6)
    found = trials_of(sweep.settings)
    assert [trial.state.name for trial in found] == ["FAIL", "COMPLETE", "COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    assert (found[1].value, found[2].value) == (-math.inf, -math.inf)
    assert found[0].user_attrs["reason"] == "out of memory"
    assert found[4].user_attrs["reason"] == "RuntimeError: a worker died"


def test_several_jobs_at_a_time(sweep):
    def one_dies(number, lr, job):
        if number == 1:
            raise RuntimeError("a worker died")
        trains(number, lr, job)

    sweep("hydra.sweeper.n_jobs=2", does=one_dies, n=3)
    assert states(sweep.settings) == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_grid_has_each_combination_once(sweep):
    arguments = ["model=unet,resunet", "data.fold=range(0,3)", "optimizer.lr=0.1"]
    jobs = sweep("hydra/sweeper/sampler=grid", n=4, arguments=arguments).lines
    jobs += sweep("hydra/sweeper/sampler=grid", n=20, arguments=arguments).lines
    combinations = {(given["model"], given["data.fold"]) for given in jobs}
    assert len(jobs) == 6
    assert combinations == {(model, fold) for model in ("unet", "resunet") for fold in "012"}


def test_any_sampler_by_its_name(sweep):
    settings = ["hydra/sweeper/sampler=random", "hydra.sweeper.sampler._target_=optuna.samplers.QMCSampler"]
    halton = rates(sweep(*settings, "+hydra.sweeper.sampler.qmc_type=halton"))
    assert len(set(halton)) == 5
    with pytest.raises(ValueError, match=r"^hydra\.sweeper\.sampler: .*no_such"):
        sweep("hydra/sweeper/sampler=random", "+hydra.sweeper.sampler.no_such=1", name="other")


@pytest.mark.parametrize(
    ("overrides", "arguments", "message"),
    [
        (["hydra.sweeper.n_jobs=0"], [LR], "hydra.sweeper.n_jobs must be 1 or more, got 0"),
        (["hydra.sweeper.direction=up"], [LR], "hydra.sweeper.direction must be minimize or maximize, got 'up'"),
        (["hydra.sweeper.storage=null"], [LR], "hydra.sweeper.storage must be the URL of a database"),
        (["hydra.sweeper.storage=nowhere"], [LR], "hydra.sweeper.storage=nowhere: "),
        (["hydra.sweeper.storage='sqlite:////no/such/a.db'"], [LR], "hydra.sweeper.storage=sqlite:////no/such/a.db: "),
        (["hydra.sweeper.pruner={_target_:optuna.pruners.ThresholdPruner}"], [LR], "hydra.sweeper.pruner: "),
        ([], ["seed=1"], "hydra/sweeper=optuna has nothing to draw"),
    ],
)
def test_bad_settings_are_named(sweep, overrides, arguments, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        sweep(*overrides, arguments=arguments)


def test_a_study_keeps_its_direction_and_choices(sweep):
    sweep(n=1, arguments=["model=a,b"])
    with pytest.raises(ValueError, match=r"is minimize, but study sweep in sqlite:.* has maximize"):
        sweep("hydra.sweeper.direction=minimize")
    with pytest.raises(ValueError, match="choose another study or folder"):
        sweep(n=2, arguments=["model=a,c"])


def test_one_process_sweeps_in_a_folder(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without torchrun and srun"):
        sweep()


def test_passwords_are_not_shown():
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert shown("nonsense") == "nonsense"


def test_a_clearly_worse_run_is_pruned(sweep, tmp_path):
    answers = {}

    def reports(number, lr, job):
        report = pruning("val/dice_mean", number).report
        answers[number] = [report(step, score) for step, score in ((2, 0.1 * number), (4, 0.5))]
        trains(number, lr, job)

    sweep("hydra.sweeper.pruner.n_startup_trials=2", n=3, does=reports)
    assert answers == {0: [False, False], 1: [False, False], 2: [False, False]}
    with opened(sweep.settings) as study:
        trial = Trials(study, tmp_path / "sweep", "val/dice_mean").ask({})
        assert pruning("val/dice_mean", trial.number).report(2, 0.05)  # the median of 0, 0.1 and 0.2 is 0.1
        assert trial.study.get_trials()[-1].intermediate_values == {2: 0.05}
    assert pruning("val/dice_mean", 0).report(6, 0.0) is False  # has ended, as in a run by a config of a sweep
    assert pruning("val/dice_mean", None).report is None


def test_the_key_that_matters_is_the_most_important(sweep):
    arguments = [LR, "data.fold=range(0,3)"]
    sweep("hydra/sweeper/sampler=random", n=9, arguments=arguments)
    assert importances(sweep.settings) == {}  # too few
    sweep("hydra/sweeper/sampler=random", n=20, arguments=arguments)
    found = importances(sweep.settings)
    assert list(found) == ["optimizer.lr", "data.fold"]
    assert sum(found.values()) == pytest.approx(1)
    assert found["optimizer.lr"] > 0.7
