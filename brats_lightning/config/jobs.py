"""Many jobs of one command in a process of their own, by Hydra's launchers: in turn, several at a time, or by SLURM."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from brats_lightning.config.command_line import quote
from brats_lightning.runtime.files import make_folder, write_json

_BEGIN = "from brats_lightning.config.jobs import begin; begin()"


def run_jobs(
    command: str, common: Sequence[str], jobs: Sequence[Sequence[str]], folder: Path, watch: Callable[[], None]
) -> None:
    """Run all jobs and wait for them; what they print goes to ``<folder>/<command>.log``.

    The jobs end with this process. Ctrl-C and SIGTERM reach them, and end this process when they have ended.

    Args:
        command: the name of a command, such as ``train``.
        common: its arguments for all jobs.
        jobs: the further overrides of each; its folder is the one named by its ``hydra.sweep.subdir``.
        folder: where the folders of the jobs are.
        watch: is called every second, and once more at the end.
    """
    listed = make_folder(folder / ".jobs") / f"{command}.json"
    write_json(listed, [list(job) for job in jobs])
    arguments = ["-m", *common, "hydra/sweeper=jobs", f"hydra.sweeper.file={quote(str(listed))}"]
    arguments.append(f"hydra.sweep.dir={quote(str(folder))}")
    asked = False
    words = [sys.executable, "-c", _BEGIN, command, *arguments]
    with (
        (folder / f"{command}.log").open("a") as output,
        subprocess.Popen(words, stdout=output, stderr=output) as process,
    ):

        def end(*_: Any) -> None:
            nonlocal asked
            asked = True
            process.terminate()

        before = signal.signal(signal.SIGTERM, end)
        try:
            while process.poll() is None:
                time.sleep(1)
                watch()
        except KeyboardInterrupt:  # a terminal has sent it to the jobs, too, for which both are one request
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    watch()
    if asked:
        raise SystemExit(128 + signal.SIGTERM)


def begin() -> None:
    """Run the command that the first argument names, in a process that ends with the one that started it."""
    from brats_lightning.runtime.workers import end_with_parent

    end_with_parent(os.getppid())
    name = sys.argv.pop(1)
    sys.argv[0] = name
    with suppress(KeyboardInterrupt):
        importlib.import_module(f"brats_lightning.{name}").main()
