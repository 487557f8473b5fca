"""Running a command: its config is composed, its errors become one line, a failed job does not end a multirun."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from brats_lightning.config.command_line import bare_words, with_quoted_paths
from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.config.sweep import record_failure


def entry_point(
    config_name: str,
    function: Callable[[DictConfig], Any],
    failed: Callable[[DictConfig], Any] = lambda _: None,
    rewrite: Callable[[Sequence[str]], Sequence[str]] = list,
) -> None:
    """Run a command: compose ``conf/<config_name>.yaml`` with the command line and call ``function`` with the result.

    An error of the user's settings or data is one line on stderr, and the exit code is 1. A failed job of a multirun
    leaves that line in its folder, its sweeper gets the value of ``failed`` and the other jobs run; the exit code is 1
    at the end. ``rewrite`` changes the command line first, or raises a ValueError.
    """
    register_resolvers()
    composed = False
    failures: list[str] = []

    def run(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        # Lightning's tips and device lists would bury what a user wants to know.
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
        # Lightning warns on a newer torch, and wherever SLURM's srun is installed, even if it is not used.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # resumed
        job = HydraConfig.get()
        try:
            return function(resolved(cfg))
        except Exception as error:
            message = _message(error)
            multirun = job.mode == RunMode.MULTIRUN
            if not multirun and (message is None or os.environ.get("HYDRA_FULL_ERROR")):
                raise
            if message is None:
                logging.getLogger(__name__).exception("job %s failed", job.job.num)
                message = f"{type(error).__name__}: {error}"
            else:
                print(f"error: {message}", file=sys.stderr)
            if not multirun:
                raise SystemExit(1) from None
            failures.append(message)
            record_failure(Path(job.runtime.output_dir), message)
            return failed(cfg)

    arguments = sys.argv[1:]
    try:
        sys.argv[1:] = arguments = with_quoted_paths(rewrite(arguments))
        if bare_words(arguments):  # Hydra's message about these doesn't help
            raise SystemExit(1)
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(run)()
    except SystemExit as stop:
        if stop.code == 1 and not composed:
            from brats_lightning.config.hints import print_hints

            print_hints(config_dir(), config_name, arguments)
        raise
    except ValueError as error:  # about the command line; those of the job are handled in `run`
        if composed or not _raised_here(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # at a point where there is nothing to save
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    if failures:
        raise SystemExit(1)


def _message(error: Exception) -> str | None:
    """The message of an error about the user's data, settings or disk, where a traceback would only hide it, else None.

    These are the errors raised by this package, and those about files. Any other may be a bug.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, ValueError | RuntimeError | OSError) and _raised_here(error) else None


def _raised_here(error: BaseException) -> bool:
    """Whether this package's own code raised the error."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return bool(trace and Path(trace.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1]))
