"""Sweeps under a real SLURM, some of whose jobs are pre-empted, and a run that loses machines: ``make slurm-check``, or

    python -m tests.cluster.check --folder DIR

Starts a SLURM of one node, with two cores and no GPU, in a temporary folder, and stops it at the end. The jobs of a
sweep differ only in the number of their loaders, so that all must have the same losses, to the last bit, however often
they were pre-empted. It needs root, and Debian's packages slurm-wlm, munge and iproute2. Exits with 1 if something is
not as it should be.
"""

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.cluster import machines, slurm

STEPS = 300
SETTINGS = [
    *("experiment=quick", "model.widths=[8,16]", "sampling.size=[16,16,16]", "inference.window=[48,48,48]", "seed=0"),
    *(f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS // 2}", "trainer.log_every_n_steps=1"),
    *("trainer.precision=32-true", "protocols=[]", "inference.overlap=0", "~callbacks.precision_recall"),
    *("callbacks.latest.every_n_train_steps=20", "callbacks.progress.interval=0.2"),
]
LAUNCHER = ["launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1"]
SECONDS = 900  # after which a sweep, or a run that should come to a step, counts as stuck


def wait_for(step: int, log: Callable[[], str], processes: Sequence[subprocess.Popen]) -> None:
    """Wait until a run's log says that it has done so many steps, while all these processes run."""
    until = time.monotonic() + SECONDS
    while not any(int(done) >= step for done in re.findall(r"step (\d+) of", log())):
        assert all(process.poll() is None for process in processes), f"it ended before it came to step {step}"
        assert time.monotonic() < until, f"it does not come to step {step}"
        time.sleep(0.1)


class Sweep:
    """A sweep that runs, in a folder of its own."""

    def __init__(self, folder: Path, environment: dict[str, str], *overrides: str) -> None:
        self.folder, self.environment = folder, environment
        command = [sys.executable, "-m", "brats_lightning.train", "-m", *SETTINGS, *LAUNCHER, *overrides]
        command += [f"hydra.sweep.dir={folder}", f"paths.outputs={folder.parent}"]
        with (folder.parent / f"{folder.name}.log").open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.began = time.monotonic()  # for its duration

    def __enter__(self) -> "Sweep":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def log(self, job: int) -> str:
        """What a job has written so far."""
        return "".join(path.read_text() for path in self.folder.glob(f"{job}_*/train.log"))

    def wait_for(self, job: int, step: int) -> None:
        """Wait until a job has done so many steps."""
        wait_for(step, lambda: self.log(job), [self.process])

    def job_id(self, job: int) -> str:
        """SLURM's number of a running job."""
        listed = self.slurm("squeue", "-h", "-r", "-t", "running", "-o", "%i %A").split("\n")
        return next(line.split()[1] for line in listed if f"_{job} " in line)

    def tell_of_end(self, job: int) -> None:
        """Send the signal that SLURM sends before it ends a job."""
        # To the job's step: to all of a job, scancel of 22.05 takes the requeued job for an error and tries again.
        self.slurm("scancel", "--signal=USR2", f"{self.job_id(job)}.0")

    def slurm(self, *command: str) -> str:
        """The answer of a command of SLURM."""
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def ended(self, expected: int = 0) -> float:
        """Wait for the end, with that exit code; its seconds."""
        code = self.process.wait(timeout=SECONDS)
        said = (self.folder.parent / f"{self.folder.name}.log").read_text()[-2000:]
        assert code == expected, f"the sweep ended with {code}:\n{said}"
        return time.monotonic() - self.began


def curve(run: Path) -> list[tuple[int, float]]:
    """The losses that a run logged, over all its event files, by the time of their logging."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = []
    for file in (run / "tensorboard").glob("events.*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            points += [(event.wall_time, event.step, event.value) for event in events.Scalars("train/loss")]
    return [(step, value) for _, step, value in sorted(points)]


def check_jobs(sweep: Sweep, jobs: int, restarts: dict[int, int]) -> None:
    """All jobs have one curve and the same scores; those in ``restarts`` were resumed so many times, others never."""
    with (sweep.folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == jobs, rows
    assert not [row for row in rows if row.get("outcome")], rows
    runs = [next(sweep.folder.glob(f"{job}_*")) for job in range(jobs)]
    expected, scores = curve(runs[0]), json.loads((runs[0] / "metrics.json").read_text())
    assert [step for step, _ in expected] == sorted({step for step, _ in expected}), "job 0: not one curve"
    assert len(expected) == STEPS, f"job 0 logged {len(expected)} steps"
    for job, run in enumerate(runs):
        resumed = len(re.findall("resuming at step", sweep.log(job)))
        assert resumed == restarts.get(job, 0), f"job {job} was resumed {resumed} times"
        assert curve(run) == expected, f"job {job}: other steps or losses than job 0"
        found = json.loads((run / "metrics.json").read_text())
        assert found == scores, f"job {job}: other scores than job 0"


def preempted_sweep(folder: Path, environment: dict[str, str]) -> str:
    """Four jobs; one is told of its end as by submitit's signal, and one is requeued by an administrator."""
    with Sweep(folder, environment, "trainer=cpu", "data.workers=0,1,2,3") as sweep:
        sweep.wait_for(1, 50)
        sweep.tell_of_end(1)
        sweep.wait_for(2, 50)
        sweep.slurm("scontrol", "requeue", sweep.job_id(2))
        seconds = sweep.ended()
    check_jobs(sweep, 4, {1: 1, 2: 1})
    return f"a sweep of 4 jobs, one told of its end, one requeued: {seconds:.0f} s"


def preempted_ddp(folder: Path, environment: dict[str, str]) -> str:
    """Two jobs of two processes each; the second is told of its end."""
    with Sweep(folder, environment, "trainer=ddp_cpu", "data.workers=0,1") as sweep:
        sweep.wait_for(1, 50)
        sweep.tell_of_end(1)
        seconds = sweep.ended()
    check_jobs(sweep, 2, {1: 1})
    assert "hardware: 2 × " in sweep.log(1)
    return f"2 jobs of 2 processes, one told of its end: {seconds:.0f} s"


def time_limit(folder: Path, environment: dict[str, str]) -> str:
    """A job of two processes without an end, which may come back once from its time limit, and then has failed."""
    # To submitit, a job of ten minutes is at its limit whenever it is told of its end.
    limits = ["hydra.launcher.timeout_min=10", "hydra.launcher.signal_delay_s=60", "hydra.launcher.max_num_timeout=1"]
    saved: list[int] = []  # the steps at which it was stopped
    with Sweep(folder, environment, "trainer=ddp_cpu", "trainer.max_steps=1000000", *limits) as sweep:
        for stop in (1, 2):
            sweep.wait_for(0, sum(saved) + 50)
            number, used = sweep.slurm("squeue", "-h", "-t", "running", "-o", "%A %M").split()
            minutes = int(used.split(":")[0]) + 2  # the signal comes within a minute, however long the start took
            sweep.slurm("scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}")
            while len(saved) < stop:
                time.sleep(1)
                saved = [int(step) for step in re.findall(r"stopped at step \d+; step (\d+) is saved", sweep.log(0))]
                assert time.monotonic() - sweep.began < SECONDS, "the time limit does not come"
            if stop == 1:
                sweep.slurm("scontrol", "update", f"JobId={number}", "TimeLimit=10")
        seconds = sweep.ended(1)
    (row,) = csv.DictReader((folder / "sweep.csv").open())
    assert "hydra.launcher.max_num_timeout" in row["outcome"], row
    resumed = [int(step) for step in re.findall(r"resuming at step (\d+)", sweep.log(0))]
    assert resumed == saved[:1], f"stopped at {saved}, resumed at {resumed}"
    steps = [step for step, _ in curve(next(folder.glob("0_*")))]
    assert steps == list(range(saved[1])), "not one curve"
    return f"a job of 2 processes that reaches its time limit twice: {seconds:.0f} s"


def lost_machines(folder: Path, environment: dict[str, str]) -> str:
    """A run on two machines that loses the second, is resumed, loses the first, is resumed, and comes to its end."""
    run, waited = folder / "run", []
    settings = [*SETTINGS, "trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2", "trainer.max_steps=1000000"]
    arguments = [
        *settings,
        "trainer.val_check_interval=1000000",
        f"paths.outputs={folder.parent}",
        f"hydra.run.dir={run}",
    ]
    step = 0  # of the newest checkpoint
    for lost in (1, 0):
        with torchrun(arguments, environment, folder) as both:
            wait_for(step + 50, lambda: "".join(path.read_text() for path in run.glob("train.log")), both)
            machines.pull_cable(lost)
            machines.kill(lost)
            began = time.monotonic()
            code = both[1 - lost].wait(timeout=60)
            waited.append(time.monotonic() - began)
            assert code != 0, f"without machine {lost} the run ended as if it were complete"
        before, step = step, torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert step > before, f"nothing was saved after step {before}"
        arguments = [f"resume={run}"]
    with torchrun([f"resume={run}", f"trainer.max_steps={step + 20}"], environment, folder) as both:
        codes = [process.wait(timeout=SECONDS) for process in both]
    assert codes == [0, 0], f"the resumed run ended with {codes}"
    assert {number for number, _ in curve(run)} == set(range(step + 20)), "steps are missing"
    assert (run / "metrics.json").is_file()
    return f"a run that loses either of 2 machines ended after {waited[0]:.0f} s and {waited[1]:.0f} s"


@contextmanager
def torchrun(arguments: list[str], environment: dict[str, str], folder: Path) -> Iterator[list[subprocess.Popen]]:
    """One process of the program on each of two machines, started by torchrun as the manual says."""
    folder.mkdir(exist_ok=True)
    with machines.two_machines():
        processes = []
        for number in (0, 1):
            command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
            command += [f"--node-rank={number}", f"--master-addr={machines.ADDRESSES[0]}", "--master-port=29400"]
            command += ["-m", "brats_lightning.train", *arguments]
            with (folder / f"machine{number}.log").open("a") as log:
                processes.append(
                    subprocess.Popen(
                        machines.on(number, command),
                        env=environment | {"GLOO_SOCKET_IFNAME": machines.INTERFACE},  # the hosts' names are the same
                        stdout=log,
                        stderr=log,
                    )
                )
        yield processes


CHECKS = {check.__name__: check for check in (preempted_sweep, preempted_ddp, time_limit, lost_machines)}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the runs stay; default: a temporary one")
    parser.add_argument("--checks", default=",".join(CHECKS), help=f"of {', '.join(CHECKS)}")
    chosen = parser.parse_args(arguments)
    if why := slurm.lacking() or machines.lacking():
        raise SystemExit(f"slurm-check cannot run here: {why}")
    os.environ |= {"OMP_NUM_THREADS": "1"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the daemons are stopped, too
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary) / "runs").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        began, failed = time.monotonic(), 0
        with slurm.cluster(Path(temporary) / "cluster") as environment:
            for name in chosen.checks.split(","):
                try:
                    print("passed:", CHECKS[name](folder / name, environment), flush=True)
                except (AssertionError, LookupError, OSError, subprocess.SubprocessError, StopIteration) as error:
                    failed += 1
                    print(f"FAILED: {name}: {type(error).__name__}: {error}", flush=True)
        print(f"{failed or 'none'} of {len(chosen.checks.split(','))} failed, in {time.monotonic() - began:.0f} s")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
