"""Ending a run of a sweep early when its validations are clearly worse than those of other runs."""

import math
from collections.abc import Callable

import pytorch_lightning as pl


class Pruned(Exception):  # no error: the run is not worth its remaining steps
    """A run of a sweep was ended early; it has these scores."""

    def __init__(self, message: str, scores: dict[str, float]) -> None:
        super().__init__(message)
        self.scores = scores


class Pruning(pl.Callback):
    """Report each validation of a trial, and end the training after one if the sweep's pruner says so.

    The first of several processes asks, and all end after the same step, with their checkpoints.

    Args:
        objective: the score that is reported; NaN is not.
        report: called with step and score, says whether to end; None in the other processes, and outside of sweeps.
    """

    def __init__(self, objective: str, report: Callable[[int, float], bool] | None = None) -> None:
        self.objective, self.report = objective, report
        self.ended = ""  # when and with which score

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Report, and end the training if need be."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics.get(self.objective, math.nan))
        prune = self.report is not None and math.isfinite(score) and self.report(trainer.global_step, score)
        if trainer.strategy.broadcast(prune) and not trainer.should_stop:  # which is set where the training ends anyway
            self.ended = f"pruned at step {trainer.global_step} with {self.objective} {score:.4f}"
            trainer.should_stop = True


def check_pruned(trainer: pl.Trainer) -> None:
    """Raise `Pruned` after a fit that was ended early."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Pruning) and callback.ended:
            scores = {name: float(value) for name, value in sorted(trainer.callback_metrics.items()) if "/" in name}
            raise Pruned(callback.ended, scores)
