"""Running a command: its config is composed, its errors become one block, a failed job does not end a multirun."""

import io
import logging
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from brats_lightning.config.command_line import bare_words, shell_faults, unknown_flags, with_quoted_paths
from brats_lightning.config.outcomes import Ending, record_ending
from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.config.run_folder import named_folder, remove_unused
from brats_lightning.runtime.locks import InUse
from brats_lightning.runtime.signals import take_notices_once
from brats_lightning.training.processes import is_first_process

log = logging.getLogger(__name__)

_FULL = "HYDRA_FULL_ERROR"  # a variable: with it Hydra raises errors instead of printing them


def entry_point(
    config_name: str,
    function: Callable[[DictConfig], Any],
    failed: Callable[[DictConfig], Any] = lambda _: None,
    rewrite: Callable[[Sequence[str]], Sequence[str]] = list,
) -> None:
    """Run a command: compose ``conf/<config_name>.yaml`` with the command line and call ``function`` with the result.

    An error of the user's settings or data is a message on stderr, and the exit code is 1; a run folder with nothing
    of value in it is removed. A failed job of a multirun leaves the message in its folder, its sweeper gets the value
    of ``failed`` and the other jobs run; the exit code is 1 at the end. ``rewrite`` changes the command line first, or
    raises a ValueError. With the variable HYDRA_FULL_ERROR, errors are tracebacks.
    """
    register_resolvers()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of a terminal or locale that lacks a character: it shows as "?"
            stream.reconfigure(errors="replace")
    full = os.environ.get(_FULL) == "1"
    failures: list[str] = []

    def run(cfg: DictConfig) -> Any:
        _quieten()
        take_notices_once()
        job = HydraConfig.get()
        try:
            return function(resolved(cfg))
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout):
                raise
            multirun = job.mode == RunMode.MULTIRUN
            if full and not multirun:
                raise
            message = _explained(error, config_name, list(job.overrides.task))
            if not multirun:
                if message is not None:
                    _fail(message)
                traceback.print_exception(error)  # without Hydra's part of it
                raise SystemExit(1) from None
            if message is None:
                log.exception("job %s failed", job.job.num)
                message = f"{type(error).__name__}: {error}"
            else:
                print(f"error: {message}", file=sys.stderr)
            failures.append(message)
            if is_first_process() and not isinstance(error, InUse):  # whose outcome is still to come
                record_ending(Path(job.runtime.output_dir), Ending.FAILED, message)
            return failed(cfg)

    arguments = sys.argv[1:]
    try:
        _check(arguments, config_name)
        sys.argv[1:] = arguments = with_quoted_paths(rewrite(arguments))
        named_folder(arguments)
        os.environ[_FULL] = "1"
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(run)()
    except KeyboardInterrupt:  # at a point where there is nothing to save
        remove_unused()
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # as of `--help | head`
        if not _nobody_reads(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:  # before the job, or with HYDRA_FULL_ERROR in it
        message = None if full else _explained(error, config_name, arguments)
        if message is None:
            raise
        _fail(message)
    finally:
        if not full:
            os.environ.pop(_FULL, None)
    if failures:
        raise SystemExit(1)


def _nobody_reads(stream: Any) -> bool:
    """Whether a stream is a pipe whose other end is closed."""
    if not isinstance(stream, io.TextIOWrapper):
        return False
    poll = select.poll()
    poll.register(stream, 0)  # for errors alone
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _check(arguments: Sequence[str], config_name: str) -> None:
    """End here if the command line has faults that Hydra would not explain."""
    from brats_lightning.config import hints

    if flags := unknown_flags(arguments):
        forms = [
            f"{typed}: settings have no dashes: {hints.with_known_name(config_name, meant)}"
            for typed, meant in flags.items()
        ]
        _fail("\n".join(forms), code=2)
    if faults := shell_faults(arguments):
        _fail("\n".join(faults))
    if bare_words(arguments):
        _fail("\n".join(hints.of_words(config_name, arguments)))


def _explained(error: BaseException, config_name: str, arguments: Sequence[str]) -> str | None:
    from brats_lightning.config.errors import explanation

    return explanation(error, config_name, arguments)


def _fail(message: str, code: int = 1) -> NoReturn:
    remove_unused()
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code) from None


def _quieten() -> None:
    # Lightning's tips and device lists would bury what a user wants to know.
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # Lightning warns on a newer torch, and wherever SLURM's srun is installed, even if it is not used.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # resumed
