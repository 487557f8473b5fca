"""A command: its config composed, its errors told in one line, its jobs of a multirun kept apart."""

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
) -> Callable[[], None]:
    """A command: compose ``conf/<config_name>.yaml`` with the command line and call ``function`` with the result.

    An error that says all there is to know is one line on stderr, and exit code 1. A job of a multirun leaves it in its
    folder, a sweeper is told the value of ``failed``, and the others go on; the exit code is 1 in the end. ``rewrite``
    changes the command line first, or raises a ValueError.
    """
    register_resolvers()
    composed = False
    failures: list[str] = []

    def run(cfg: DictConfig) -> Any:
        nonlocal composed
        composed = True
        # Lightning's advertisements and device lists drown what a user wants to know.
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
        # Lightning's, on a newer torch and beside SLURM, whose srun need not be used.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="The `srun` command is available")
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

    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(run)

    def command() -> None:
        arguments = sys.argv[1:]
        try:
            sys.argv[1:] = arguments = with_quoted_paths(rewrite(arguments))
            if bare_words(arguments):  # of which Hydra's message says nothing that helps
                raise SystemExit(1)
            main()
        except SystemExit as stop:
            if stop.code == 1 and not composed:
                from brats_lightning.config.hints import print_hints

                print_hints(config_dir(), config_name, arguments)
            raise
        except ValueError as error:  # of the command line; those of the job are told above
            if composed or not _raised_here(error):
                raise
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        except KeyboardInterrupt:  # where nothing is to be saved
            print("interrupted", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT) from None
        if failures:
            raise SystemExit(1)

    return command


def _message(error: Exception) -> str | None:
    """What to tell of an error that concerns a user's data, settings or disk; None of one that may be a fault of ours.

    A traceback would only hide it. A user's are those raised by this package, and those of files.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, ValueError | RuntimeError | OSError) and _raised_here(error) else None


def _raised_here(error: BaseException) -> bool:
    """Whether an error was raised by this package's own code."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return bool(trace and Path(trace.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1]))
