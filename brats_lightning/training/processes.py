"""Several processes for one job: the others are started from the job's saved, resolved config.

Lightning would start them by repeating the command line. In Hydra's multirun each would then run the whole sweep again,
and with Optuna each would draw its own hyperparameters. The saved config is the same for all, whatever was drawn, and
includes the user's ``--config-dir``. Processes that torchrun or SLURM starts are left alone.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from brats_lightning.runtime import signals

if TYPE_CHECKING:
    from pytorch_lightning import Trainer
    from pytorch_lightning.plugins.environments import ClusterEnvironment

# Seconds of silence before a connection is probed, and between the probes; lost probes, and milliseconds without an
# answer to data, after which it fails.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_first_process() -> bool:
    """Whether this process is the one that reports and writes, by its environment variables."""
    return all(int(os.environ.get(name, 0)) == 0 for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"))


def started_from_outside() -> bool:
    """Whether a launcher (torchrun, srun) started several processes of this job, each with the same command line."""
    return _started() > 1


def _started() -> int:
    return max(int(os.environ.get("WORLD_SIZE", 1)), _srun_tasks())


def _srun_tasks() -> int:
    # SLURM_NTASKS is that of the allocation, in which this program may have been started fewer times.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def cluster_environment() -> "ClusterEnvironment | None":
    """The trainer's environment in a SLURM job; None elsewhere, since Lightning recognises the other launchers.

    Lightning assumes that srun starts a process for each task of the allocation. In a batch script without srun and
    under ``srun -n1`` it would wait for processes that nobody starts; under salloc's srun each process would start all
    others again.
    """
    from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if "SLURM_JOB_ID" not in os.environ or TorchElasticEnvironment.detect():
        return None
    # submitit requeues a job, once `exit_codes` passes SLURM's notice on to it; Lightning would do so at the same time.
    return SLURMEnvironment(auto_requeue=False) if _srun_tasks() > 1 else LightningEnvironment()


def check_processes(trainer: "Trainer") -> None:
    """Refuse a trainer whose number of processes differs from those that a launcher started: each would train alone.

    Raises:
        ValueError: the numbers differ.
    """
    wanted = trainer.num_devices * trainer.num_nodes
    if started_from_outside() and wanted != _started():
        raise ValueError(
            f"{_started()} processes were started, but trainer.devices and trainer.num_nodes make {wanted}: set these "
            "(trainer=ddp), or start the program once, without srun or torchrun"
        )


@contextmanager
def other_processes(trainer: "Trainer", command: Sequence[str]) -> Iterator[None]:
    """Run the block with the trainer's other local processes, and restore the environment afterwards.

    Starts none for a single device, or if a launcher has started them.

    Args:
        trainer: its devices determine how many processes there are.
        command: of each other process, which finds its rank in ``LOCAL_RANK``.
    """
    local = trainer.num_devices if trainer.world_size > 1 else 1
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if local == 1 or environment is None or environment.creates_processes_externally:
        try:
            yield
        finally:
            _leave_group()
        return

    saved = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ |= {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": str(environment.node_rank()),
        "WORLD_SIZE": str(trainer.world_size),
        "LOCAL_RANK": "0",
    }
    others = [subprocess.Popen(command, env=os.environ | {"LOCAL_RANK": str(rank)}) for rank in range(1, local)]
    finished = threading.Event()
    threading.Thread(target=_watch, args=(others, finished), daemon=True).start()
    try:
        yield
        if failed := [process.args for process in others if process.wait()]:
            raise RuntimeError(f"{len(failed)} of the job's processes failed; their messages are above")
    finally:
        finished.set()
        for process in others:
            process.kill()  # no effect on finished ones; one that waits for this process ignores softer signals
            process.wait()
        _leave_group()
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def exit_codes() -> Iterator[None]:
    """Exit with a signal's code after an interruption, and turn an error of the loader into one line.

    Raises:
        SystemExit: a signal ended the block, whose run is now saved; or submitit has requeued the job.
        RuntimeError: submitit will do so in another process of the job, which must not be ended by this one's code.
        LoaderError: a process of the loader failed.
    """
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    from brats_lightning.data.loading import LoaderError, loader_failure

    with signals.listening():
        try:
            yield
            return
        except (SIGTERMException, signals.Interrupted) as error:
            signum = signals.received() or int(getattr(error, "signum", signal.SIGTERM))
        except (RuntimeError, LoaderError) as error:
            failure = error if isinstance(error, LoaderError) else loader_failure(error)
            if failure is None:
                raise
            if not (received := signals.received()):  # sent to the whole group, it ended a reader that had just started
                raise failure from error
            signum = received
    if signals.pass_on(signum) and not is_first_process():
        raise RuntimeError("stopped, as the job's first process, which requeues the job or says why not")
    raise SystemExit(128 + signum)


def notice_lost_machines() -> None:
    """Let this process's connections fail half a minute after the machine at their other end is gone.

    A process that dies closes its connections, but a machine without power or network does not, and the others would
    wait for it for half an hour or more. Call it when the processes have connected to each other.
    """
    for number in os.listdir("/proc/self/fd") if sys.platform == "linux" else ():  # noqa: PTH208
        with suppress(OSError), socket.socket(fileno=os.dup(int(number))) as connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEPALIVE.items():
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _leave_group() -> None:
    import torch

    # The next job of a sweep runs in the same process and forms its own group.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _watch(processes: list[subprocess.Popen], finished: threading.Event) -> None:
    # When a process dies, this one waits for it in a collective operation, which Python's exceptions don't interrupt.
    while not finished.is_set():
        failed = [process for process in processes if process.poll() not in (None, 0)]
        if failed:
            print(
                f"A training process failed (exit code {failed[0].returncode}); stopping.", file=sys.stderr, flush=True
            )
            for process in processes:
                process.kill()
            os._exit(1)  # nothing softer ends a thread in a collective operation
        time.sleep(0.5)
