"""Two CPU processes: what each trained, by its own account, in single runs and sweeps."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from brats_lightning.runtime import signals
from brats_lightning.train import train
from brats_lightning.training import processes
from tests.conftest import TINY

# A loss that writes down what its process trains with.
SPY = """
import json, os
from pathlib import Path
import torch
from torch.nn import functional as F

class Spy(torch.nn.Module):
    def __init__(self, folder, sharpness):
        super().__init__()
        self.folder, self.record = Path(folder), {"sharpness": sharpness, "seed": torch.initial_seed()}

    def forward(self, logits, target):
        if "MASTER_PORT" in os.environ:  # the processes are up
            port, rank = os.environ["MASTER_PORT"], os.environ["LOCAL_RANK"]
            (self.folder / f"{port}_{rank}.json").write_text(json.dumps(self.record | {"rank": rank}))
        return F.cross_entropy(logits.float(), target.long())
"""


@pytest.fixture
def split_file(tmp_path, composed):
    """Three cases for validation and one for the test: no multiples of two processes."""
    from brats_lightning.synthetic.phantom import phantom_cases

    settings = dict(composed("data=phantom_tiny").data.source)
    settings.pop("_target_")
    ids = [case.id for case in phantom_cases(**settings)]
    patients = sorted({name[:-4] for name in ids})
    of = {patient: [name for name in ids if name.startswith(patient)] for patient in patients}
    single = [patient for patient in patients if len(of[patient]) == 1]
    chosen = {"test": of[single[0]], "val": [of[p][0] for p in single[1:4]]}
    held_out = {single[0], *single[1:4]}
    chosen["train"] = [name for patient in patients if patient not in held_out for name in of[patient]]
    (tmp_path / "split.json").write_text(json.dumps(chosen))
    return tmp_path / "split.json"


@pytest.fixture
def sweep(tmp_path, shared_outputs, split_file):
    """Run the command in a fresh process with the user's own config folder; returns each run's folder."""
    (tmp_path / "spy.py").write_text(SPY)
    (tmp_path / "notes").mkdir()
    (tmp_path / "conf/loss").mkdir(parents=True)
    (tmp_path / "conf/loss/spy.yaml").write_text(f"_target_: spy.Spy\nfolder: {tmp_path}/notes\nsharpness: 1.0\n")

    def run(*arguments: str, succeeds: bool = True, killed_after: int | None = None) -> list[Path]:
        command = [
            sys.executable, "-m", "brats_lightning.train", *arguments, *TINY, "trainer=ddp_cpu",
            "loss=spy",
            f"paths.outputs={tmp_path}/out", f"paths.cache_dir={shared_outputs}/cache",
            f"paths.phantom_dir={shared_outputs}/phantoms", f"data.split_file={split_file}",
            "trainer.max_steps=2", "trainer.val_check_interval=2", "data.workers=0",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        if killed_after is not None:  # so many notes
            with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
                while len(list(run.notes.iterdir())) < killed_after:
                    assert process.poll() is None
                    time.sleep(0.1)
                process.kill()
            return []
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=540)
        assert (done.returncode == 0) is succeeds, done.stdout + done.stderr
        return sorted(path.parent for path in (tmp_path / "out").rglob("config.yaml") if path.parent.name != ".hydra")

    run.notes = tmp_path / "notes"
    return run


def notes_by_job(folder):
    jobs = {}
    for path in folder.iterdir():
        jobs.setdefault(path.name.split("_")[0], []).append(json.loads(path.read_text()))
    return list(jobs.values())


def check(runs, notes, jobs):
    """Both ranks of each job trained the same values; every case was counted once."""
    assert len(notes) == jobs
    for pair in notes:
        assert {note["rank"] for note in pair} == {"0", "1"}
        assert pair[0]["sharpness"] == pair[1]["sharpness"]
        assert pair[0]["seed"] == pair[1]["seed"]
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        assert (metrics["val/cases_dice_wt"], metrics["test/cases_dice_wt"]) == (3, 1)


def test_sweep_without_a_seed_and_with_the_users_config_folder(sweep, tmp_path):
    runs = sweep("-m", "--config-dir", f"{tmp_path}/conf", "loss.sharpness=2.0,3.0", "seed=null")
    notes = notes_by_job(sweep.notes)
    assert len(runs) == 2
    check(runs, notes, jobs=2)
    assert {pair[0]["sharpness"] for pair in notes} == {2.0, 3.0}
    assert notes[0][0]["seed"] != notes[1][0]["seed"]  # drawn anew for each job


def test_optuna_sweep_killed_and_resumed(sweep, tmp_path):
    pytest.importorskip("optuna")
    first = (
        "        self.steps = getattr(self, 'steps', 0) + 1\n"  # the processes wait for each other before the second
    )
    hang = "        if self.steps == 2 and len(list(self.folder.iterdir())) > 2:\n            time.sleep(600)\n"
    (tmp_path / "spy.py").write_text("import time\n" + SPY.replace("        return", f"{first}{hang}        return"))
    options = [
        "-m", "--config-dir", f"{tmp_path}/conf", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2",
        "hydra.sweeper.study_name=killed", "loss.sharpness=interval(1.0,9.0)", "trainer.precision=bf16-mixed",
    ]  # fmt: skip
    sweep(*options, killed_after=4)
    (tmp_path / "spy.py").write_text(SPY)
    runs = sweep(*options)
    assert [run.name[:2] for run in runs] == ["0_", "1_"]
    notes = notes_by_job(sweep.notes)
    check(runs, notes, jobs=3)
    assert len({pair[0]["sharpness"] for pair in notes}) == 2  # the third tried those of the killed one again


def test_a_process_that_fails_stops_the_others(sweep, tmp_path):
    failing = "            1 / (1 - int(os.environ['LOCAL_RANK']))\n            port, rank ="
    (tmp_path / "spy.py").write_text(SPY.replace("            port, rank =", failing))
    runs = sweep("--config-dir", f"{tmp_path}/conf", succeeds=False)
    assert not (runs[0] / "metrics.json").exists()


# One learns nothing, so that its scores are those of equal weights; the other learns by losses that depend on the whole
# batch. All that is drawn at random is switched on.
STILL = {"optimizer.lr": 0.0}
LEARNING = {"optimizer.lr": 0.05, "loss.parts.dice.batch": True, "loss.parts.focal.class_weights": [0.1, 1.0, 2.0, 3.0]}
SAME = [
    *("experiment=quick", "model.widths=[4,8,16]", "sampling.size=[16,16,16]", "inference.window=[24,24,24]"),
    *("augmentation=strong", "copy_paste=lesions", "optimizer=sgd", "seed=0", "trainer.precision=32-true"),
    *(
        "trainer.max_steps=20",
        "trainer.val_check_interval=20",
        "trainer.log_every_n_steps=1",
        *("model.deep_supervision=1", "protocols=[brats2026]"),
        *("~callbacks.pictures", "~callbacks.precision_recall"),
    ),
]


def curve(run, name):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [point.value for point in events.Scalars(name)]


def test_two_processes_train_like_one(tmp_path, shared_outputs, split_file, composed):
    """The same batches of four, by one process or two; so are losses, gradients and scores."""
    folder = tmp_path / "conf/experiment"
    folder.mkdir(parents=True)
    same = [*SAME, f"data.split_file={split_file}"]
    alone, names = {}, ("still", "learning")
    for name, settings in zip(names, (STILL, LEARNING), strict=True):
        own = {"defaults": ["quick", "_self_"], **OmegaConf.from_dotlist([f"{k}={v}" for k, v in settings.items()])}
        OmegaConf.save(own, folder / f"{name}.yaml")
        (folder / f"{name}.yaml").write_text("# @package _global_\n" + (folder / f"{name}.yaml").read_text())
        given = [f"{key}={value}" for key, value in settings.items()]
        train(composed(*same, *given, "trainer=cpu", "data.batch_size=4", plain=True, run=name))
        alone[name] = tmp_path / name
    command = [
        *(sys.executable, "-m", "brats_lightning.train", "-m", "--config-dir", f"{tmp_path}/conf"),
        *(
            *same[1:],
            "experiment=still,learning",
            "trainer=ddp_cpu",
            "data.batch_size=2",
            f"hydra.sweep.dir={tmp_path}/two",
        ),
        *(f"paths.cache_dir={shared_outputs}/cache", f"paths.phantom_dir={shared_outputs}/phantoms"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    together = dict(zip(names, sorted(tmp_path.glob("two/*_*")), strict=True))
    for name in names:
        for score in ("train/loss", "train/loss_dice", "train/loss_focal", "train/patch_accuracy"):
            one, two = curve(alone[name], score), curve(together[name], score)
            assert len(one) == len(two) == 20
            voxels = 3 / (4 * 16**3)  # whose class rounding may change
            np.testing.assert_allclose(two, one, rtol=0, atol=voxels if score.endswith("accuracy") else 1e-5)
    losses = curve(alone["learning"], "train/loss")
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05
    one, two = (json.loads((runs["still"] / "metrics.json").read_text()) for runs in (alone, together))
    scores = {key for key in one if key.startswith(("val/", "test/"))}
    assert {key: two[key] for key in scores} == {key: one[key] for key in scores}
    assert (two["val/cases_dice_wt"], two["test/cases_dice_wt"]) == (3, 1)
    assert two["val/loss"] > 0


class OneDevice:
    num_devices, world_size = 1, 1
    strategy = object()


def test_a_single_device_starts_nothing():
    before = dict(os.environ)
    with processes.other_processes(OneDevice(), ["/bin/false"]):
        assert dict(os.environ) == before


def test_the_environment_is_restored_and_no_group_is_left(monkeypatch):
    from pytorch_lightning.plugins.environments import LightningEnvironment

    class Strategy:
        cluster_environment = LightningEnvironment()

    class TwoDevices:
        num_devices, world_size, strategy = 2, 2, Strategy()

    monkeypatch.setenv("MASTER_PORT", "23456")
    before = dict(os.environ)
    with processes.other_processes(TwoDevices(), ["/bin/true"]):
        assert (os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]) == ("0", "2")
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()


# What SLURM 22.05 sets for one program in an allocation of two tasks.
SALLOC = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
SBATCH = SALLOC | {"SLURM_JOB_NAME": "job.sh", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture
def variables_of(monkeypatch):
    """An environment with these variables and without others of launchers."""

    def make(variables):
        for name in [*os.environ]:
            if name.startswith("SLURM_") or name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return make


@pytest.mark.parametrize(
    ("variables", "first", "outside"),
    [
        ({}, True, False),
        ({"LOCAL_RANK": "1"}, False, False),
        ({"RANK": "0", "WORLD_SIZE": "4"}, True, True),
        ({"RANK": "3", "WORLD_SIZE": "4"}, False, True),
        (SALLOC, True, False),
        (SBATCH, True, False),
        (SBATCH | SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, True, False),
        (SALLOC | SRUN, True, True),
        (SALLOC | SRUN | {"SLURM_PROCID": "1"}, False, True),
    ],
)
def test_who_reports(variables_of, variables, first, outside):
    variables_of(variables)
    assert processes.is_first_process() is first
    assert processes.started_from_outside() is outside


@pytest.mark.parametrize(
    ("variables", "starts"),
    [(SALLOC, True), (SBATCH, True), (SBATCH | SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, True), (SALLOC | SRUN, False)],
    ids=["salloc", "sbatch", "srun -n1", "srun -n2"],
)
def test_the_trainer_and_we_agree_on_who_starts_the_processes(composed, variables_of, variables, starts):
    from brats_lightning.config.build import build_trainer

    variables_of(variables | {"SLURM_NTASKS_PER_NODE": "2"})
    trainer = build_trainer(composed("trainer=ddp_cpu", "logger=none"))
    assert trainer.world_size == 2
    environment = trainer.strategy.cluster_environment
    assert environment.creates_processes_externally is not starts
    assert not getattr(environment, "auto_requeue", False)  # which submitit does
    assert processes.started_from_outside() is not starts


@pytest.mark.parametrize(("rank", "ended_by"), [("0", SystemExit), ("1", RuntimeError)])
def test_slurms_notice_is_passed_on_when_the_run_is_saved(variables_of, monkeypatch, rank, ended_by):
    """To submitit, which requeues the job in its first process; another must not end that one by its exit code."""
    variables_of(SBATCH | SRUN | {"SLURM_PROCID": rank})
    monkeypatch.setattr(signals, "_SIGNALS", (*signals._SIGNALS, signal.SIGUSR2))
    order = []

    @processes.exit_codes()
    def run():
        os.kill(os.getpid(), signal.SIGUSR2)
        order.append("saved")
        signals.check()

    before = signal.signal(signal.SIGUSR2, lambda *_: order.append("requeued"))
    try:
        with pytest.raises(ended_by):
            run()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert order == ["saved", "requeued"]


def test_connections_fail_when_a_machine_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        processes.notice_lost_machines()
        options = [client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        options += [client.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
        client.send(b"still open")
    assert options == [1, 10, 5, 4, 30_000]


@pytest.mark.parametrize("variables", [SALLOC | SRUN | {"SLURM_NTASKS_PER_NODE": "2"}, {"WORLD_SIZE": "2"}])
def test_processes_that_are_no_devices_are_refused(composed, variables_of, variables):
    from brats_lightning.config.build import build_trainer

    variables_of(variables)
    with pytest.raises(ValueError, match=r"^2 processes were started, .* make 1: set these \(trainer=ddp\), or start"):
        build_trainer(composed("logger=none"))


def test_what_slurm_needs_is_one_line(composed, variables_of):
    from brats_lightning.config.build import build_trainer

    variables_of(SALLOC | SRUN)
    with pytest.raises(ValueError, match=r"^trainer: You set `--ntasks=2`.*Use `--ntasks-per-node=2` instead"):
        build_trainer(composed("trainer=ddp_cpu", "logger=none"))


def test_no_hint_where_srun_is_installed(tmp_path, composed, shared_outputs):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text("#!/bin/sh\n")
    (tmp_path / "bin/srun").chmod(0o755)
    command = [
        sys.executable, "-m", "brats_lightning.train", *TINY, "trainer=cpu", "trainer.max_steps=1", "test_on=null",
        "+trainer.limit_val_batches=0", f"paths.outputs={tmp_path}/out", f"paths.cache_dir={shared_outputs}/cache",
        f"paths.phantom_dir={shared_outputs}/phantoms",
    ]  # fmt: skip
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "`srun`" not in done.stdout + done.stderr
