"""Pictures of the best, the median and the worst validation case, where it matters."""

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
from jaxtyping import UInt8

from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.evaluation.slices import Shown, draw_case
from brats_lightning.training.trackers import trackers


@dataclass(frozen=True)
class _Predicted:
    """A validated case and the labels predicted for it, packed: hundreds of cases are kept until the last is done."""

    case: CachedCase
    packed: bytes
    dice: float  # mean of the regions, after post-processing

    @property
    def labels(self) -> UInt8[np.ndarray, "z y x"]:
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.case.shape)


class CasePictures(pl.Callback):
    """Show pictures at each validation: see `draw_case`.

    With several processes, those of the first one's cases.
    """

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Forget the cases of the last validation."""
        self._cases: list[_Predicted] = []

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Keep a case."""
        if outputs is None or not trackers(trainer) or not trainer.is_global_zero:
            return
        packed = zlib.compress(outputs["labels"].cpu().numpy().tobytes(), 1)
        dice = pl_module.case_scores["val"].of(batch.case.id)["dice_mean"]
        # Undefined where reference and prediction are empty, which is as good as can be.
        self._cases.append(_Predicted(batch.case, packed, 1.0 if math.isnan(dice) else dice))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw."""
        if trainer.sanity_checking or not self._cases:
            return
        ranked = sorted(self._cases, key=lambda each: each.dice)
        chosen = {"worst": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "best": ranked[-1]}
        for name, each in chosen.items():
            if name == "worst" or each is not chosen["worst"]:
                scored = f"{name} of {len(ranked)} cases by Dice after post-processing"
                title = f"{scored}, drawn before it · step {trainer.global_step}"
                picture = draw_case(Shown.of(title, each.case, each.labels, pl_module.scheme))
                for tracker in trackers(trainer):
                    tracker.add_picture(f"validation/{name}", picture, trainer.global_step)
        self._cases = []
