"""The page of a multirun, ``sweep.html``: its jobs, which settings mattered, and the best job's command."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from brats_lightning.evaluation.report import sweep_figures
from brats_lightning.evaluation.report.pages import environment
from brats_lightning.evaluation.report.sweep_figures import Job

_PED_ANOVA = "PED-ANOVA by Optuna: how much a setting decides whether a job is one of the best"
_ETA_SQUARED = "The share of the variance of the score that each setting explains by itself"


@dataclass(frozen=True)
class Sweep:
    """A multirun.

    Args:
        name: of it.
        objective: the score by which jobs are compared.
        mode: whether ``max`` or ``min`` of it is best.
        varied: the settings in which the jobs differ.
        jobs: in the order of their numbers.
        importances: of the settings, if an optimiser knows them.
    """

    name: str
    objective: str
    mode: str
    varied: Sequence[str]
    jobs: Sequence[Job]
    importances: Mapping[str, float] = field(default_factory=dict)

    @property
    def ranked(self) -> list[Job]:
        """The jobs, best first; then those that did not end, then those without a score."""
        sign = -1 if self.mode == "max" else 1
        return sorted(self.jobs, key=lambda job: (bool(job.outcome), math.isnan(job.value), sign * job.value))

    @property
    def best(self) -> Job | None:
        """The job with the best score, if any has one."""
        first = next(iter(self.ranked), None)
        return None if first is None or first.outcome or math.isnan(first.value) else first


def sweep_page(sweep: Sweep, command: str) -> str:
    """The page, with the command that trains the best job again if one has a score."""
    importances, source = sweep.importances, _PED_ANOVA
    if not importances:
        importances, source = explained_variance(sweep), _ETA_SQUARED
    varied = sorted(sweep.varied, key=lambda name: -importances.get(name, 0.0))
    charts = {}
    if len(sweep.jobs) > 1 and sweep.best is not None:
        charts["history"] = sweep_figures.history_chart(sweep.jobs, sweep.objective, sweep.mode)
        charts["parallel"] = sweep_figures.parallel_chart(sweep.ranked, varied, sweep.objective)
    if importances:
        charts["importance"] = sweep_figures.importance_chart(importances)
    columns = _columns(sweep.jobs)
    template = environment().get_template("sweep.html")
    return template.render(
        title=f"Sweep: {sweep.name}",
        sweep=sweep,
        charts=charts,
        source=source,
        columns=columns,
        command=command,
        rows=[(job, [_number(job.scores.get(name)) for name in columns]) for job in sweep.ranked],
    )


def explained_variance(sweep: Sweep) -> dict[str, float]:
    """The share of the variance of the objective that each setting explains by itself (η²), largest first.

    It is the variance between the means of the setting's values, weighted by jobs, over the variance of all jobs. A
    setting of which every job has another value would explain everything and is left out, with all others if no
    variance is left.
    """
    jobs = [job for job in sweep.jobs if not job.outcome and math.isfinite(job.value)]
    values = np.array([job.value for job in jobs])
    found: dict[str, float] = {}
    for name in sweep.varied if len(jobs) > 2 and np.ptp(values) > 0 else ():
        own = [job.settings.get(name, "") for job in jobs]
        _, group, counts = np.unique(own, return_inverse=True, return_counts=True)
        if 1 < len(counts) < len(jobs):
            means = np.bincount(group, values) / counts
            found[name] = float(counts @ (means - values.mean()) ** 2 / len(jobs) / values.var())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _number(score: float | int | None) -> float | int:
    return math.nan if score is None else score


def _columns(jobs: Sequence[Job]) -> list[str]:
    """The scores in the table besides the objective: the means of the test."""
    names = dict.fromkeys(name for job in jobs for name in job.scores)
    return [name for name in names if name.startswith("test/") and name.endswith("_mean")]
