"""The scores of a run that is trained further."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl


class OutdatedScores(pl.Callback):
    """Forget the scores of a resumed run before a step changes its weights; one that is finished keeps them.

    Args:
        forget: removes them.
    """

    def __init__(self, forget: Callable[[], None]) -> None:
        self._forget = forget
        self._done = False

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Forget them before the first step."""
        if not self._done and trainer.is_global_zero:
            self._forget()
        self._done = True
