"""Hydra's multirun over a list of jobs: each has overrides of its own, which need not be a product of choices."""

import json
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class JobList(Sweeper):
    """``hydra/sweeper=jobs``: the jobs of a file, by whichever launcher.

    Args:
        file: JSON, a list with the list of overrides of each job; they follow those of the command line.
    """

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs."""
        jobs = json.loads(self.file.read_text(encoding="utf-8"))
        return self.launcher.launch([[*arguments, *job] for job in jobs], initial_job_idx=0)
