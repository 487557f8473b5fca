"""Choosing the best checkpoint of a run."""

import logging
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from brats_lightning.runtime.files import replace_file
from brats_lightning.training.processes import is_first_process

if TYPE_CHECKING:
    import pytorch_lightning as pl

log = logging.getLogger(__name__)


class Best(NamedTuple):
    """A checkpoint, and the score by which it was chosen; None if nothing was validated."""

    path: Path
    score: float | None


def best_checkpoint(trainer: "pl.Trainer", folder: Path) -> Best:
    """The ``best.ckpt`` of a fit that has ended; if nothing was validated, the last weights are written to it."""
    callbacks: list[Any] = trainer.checkpoint_callbacks
    callback = next((c for c in callbacks if getattr(c, "monitor", None) is not None), None)
    if callback is not None and callback.best_model_score is not None:
        return Best(Path(callback.best_model_path), float(callback.best_model_score))
    folder = Path(trainer.strategy.broadcast(str(folder)))
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    trainer.save_checkpoint(last, weights_only=False)
    if trainer.is_global_zero:
        log.warning("nothing was validated: best.ckpt is the last one")
        _copy(last, best)
    trainer.strategy.barrier("best.ckpt")
    return Best(best, None)


def take_if_better(checkpoint: Path, score: float, best: Best, mode: str) -> Best:
    """Copy a checkpoint to ``best.ckpt`` if its score, unless NaN, is better than that of the fit's ``best``.

    ``mode`` says whether ``max`` or ``min`` is better. Returns the better of the two.
    """
    sign = 1 if mode == "max" else -1
    if math.isnan(score) or (best.score is not None and sign * best.score >= sign * score):
        return best
    target = best.path.with_name("best.ckpt")
    if is_first_process():
        _copy(checkpoint, target)
    return Best(target, score)


def _copy(source: Path, target: Path) -> None:
    replace_file(target, lambda temporary: shutil.copyfile(source, temporary), durable=True)
