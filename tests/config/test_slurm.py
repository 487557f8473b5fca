"""What ``launcher=slurm`` requests: the script that it would submit. `tests/cluster` runs a real SLURM."""

import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from brats_lightning.config.entry_point import entry_point
from brats_lightning.config.resolvers import config_dir, register_resolvers

submitit = pytest.importorskip("submitit")
pytest.importorskip("hydra_plugins.hydra_submitit_launcher")


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """The options, and the other lines, of the script that a sweep of two jobs hands to ``sbatch``."""
    for name, text in (("sbatch", "echo Submitted batch job 7"), ("srun", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(submitit.core.core.Job, "results", lambda _: [None])
    register_resolvers()

    def submit(*overrides):
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            line = ["launcher=slurm", f"hydra.sweep.dir={tmp_path}/sweep", "hydra.job.name=train", *overrides]
            cfg = compose("train", line, return_hydra_config=True)
        launcher = instantiate(cfg.hydra.launcher)
        launcher.setup(hydra_context=None, task_function=print, config=cfg)
        launcher.launch([["seed=0"], ["seed=1"]], 0)
        (script,) = (tmp_path / "sweep").glob(".submitit/*/*_submission.sh")
        lines = script.read_text().splitlines()
        options = [line.removeprefix("#SBATCH --").partition("=") for line in lines if line.startswith("#SBATCH")]
        return {name: value for name, _, value in options}, [line for line in lines if line and line[0] != "#"]

    return submit


REQUESTS = ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("1", "1", "1", "8", "32GB", "1440")),  # the machine that submits may have no GPU
        (["trainer=gpu"], ("1", "1", "1", "8", "32GB", "1440")),
        (["trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2"], ("2", "4", "4", "8", "128GB", "1440")),
        (["trainer=ddp", "trainer.devices=[0,1]"], ("1", "2", "2", "8", "64GB", "1440")),
        (["trainer=cpu"], ("1", "1", None, "8", "32GB", "1440")),
        (["trainer=ddp_cpu", "trainer.num_nodes=3"], ("3", "2", None, "8", "64GB", "1440")),
        (
            ["hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=4", "hydra.launcher.mem_gb=7"],
            ("1", "1", None, "4", "7GB", "1440"),
        ),
        (
            ["trainer=ddp", "trainer.devices=2", "hydra.launcher.gpus_per_node=4", "hydra.launcher.timeout_min=60"],
            ("1", "2", "4", "8", "64GB", "60"),
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_job_requests_what_its_trainer_needs(submitted, overrides, expected):
    options, _ = submitted(*overrides)
    assert tuple(options.get(name) for name in REQUESTS) == expected


def test_the_script(submitted, tmp_path):
    options, lines = submitted("trainer=ddp", "trainer.devices=2", "hydra.launcher.partition=gpu")
    assert options["array"] == "0-1%2"
    assert options["signal"] == "USR2@120"  # of submitit, to each process, ahead of the limit
    assert options["open-mode"] == "append"  # a job that comes back keeps its output
    assert options["partition"] == "gpu"
    setup, executor, command = lines
    assert setup == "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
    assert executor == "export SUBMITIT_EXECUTOR=slurm"
    assert command.startswith("srun ")
    assert command.endswith(f"-u -m submitit.core._submit {tmp_path}/sweep/.submitit/%j")


def test_only_the_first_process_of_a_job_records_its_failure(tmp_path, monkeypatch):
    """Another one, which the first one's end has stopped, would replace the reason."""

    def fail(cfg):
        raise ValueError("of this process")

    for rank, recorded in (("1", 0), ("0", 1)):
        monkeypatch.setenv("SLURM_PROCID", rank)
        line = ["brats-train", "-m", "seed=0", f"hydra.sweep.dir={tmp_path}", "hydra/job_logging=none"]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit):
            entry_point("train", fail)
        assert len(list(tmp_path.glob("*/error.txt"))) == recorded
