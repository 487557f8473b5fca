"""Precision and recall of the voxels of each region at all thresholds, pooled over the validation cases."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float32, Int64, UInt8

from brats_lightning.core.labels import IGNORE, LabelScheme, in_classes
from brats_lightning.training.trackers import Curve, trackers

THRESHOLDS = 101  # 0, 0.01, … 1
_NEVER = 0.005  # probability of any tumour below which a voxel counts as 0 for each region


class PrecisionRecall(pl.Callback):
    """Show a curve for each region at each validation."""

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Begin at zero."""
        self._counts = np.zeros((len(pl_module.scheme.regions), 2, THRESHOLDS), np.int64)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """Count the voxels of a case."""
        if outputs is not None and trackers(trainer):
            self._counts += count_probabilities(outputs["probabilities"], batch.case.mask(), pl_module.scheme)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Add up all processes, and draw."""
        if trainer.sanity_checking or not trackers(trainer):
            return
        counts = trainer.strategy.reduce(torch.from_numpy(self._counts).to(pl_module.device), reduce_op="sum")
        if trainer.is_global_zero:
            tables = zip(pl_module.scheme.regions, counts.cpu().numpy(), strict=True)
            curves = {region: curve(outside, inside) for region, (outside, inside) in tables if inside.any()}
            for tracker in trackers(trainer):
                tracker.add_precision_recall(curves, trainer.global_step)


def count_probabilities(
    probabilities: Float32[np.ndarray, "k z y x"], mask: UInt8[np.ndarray, "z y x"], scheme: LabelScheme
) -> Int64[np.ndarray, "regions 2 thresholds"]:
    """For each region the voxels outside and inside it by probability, rounded down to a threshold.

    Voxels of unknown class do not count.
    """
    near = ((probabilities[0] < 1 - _NEVER) | (mask > 0)) & (mask != IGNORE)
    labels, close = mask[near], probabilities[:, near]
    counts = np.zeros((len(scheme.regions), 2, THRESHOLDS), np.int64)
    far = int((mask != IGNORE).sum()) - len(labels)
    for table, classes in zip(counts, scheme.regions.values(), strict=True):
        p = close[sorted(classes)].sum(axis=0)
        step = np.clip((p * (THRESHOLDS - 1) + 1e-4).astype(np.int64), 0, THRESHOLDS - 1)
        inside = in_classes(labels, classes)
        table[0] = np.bincount(step[~inside], minlength=THRESHOLDS)
        table[1] = np.bincount(step[inside], minlength=THRESHOLDS)
        table[0, 0] += far
    return counts


def curve(outside: Int64[np.ndarray, " n"], inside: Int64[np.ndarray, " n"]) -> Curve:
    """True positives, false positives, true negatives, false negatives, precision and recall at each threshold."""
    tp, fp = (np.cumsum(counts[::-1])[::-1] for counts in (inside, outside))
    precision = tp / np.maximum(tp + fp, 1)
    return tp, fp, outside.sum() - fp, inside.sum() - tp, precision, tp / max(1, int(inside.sum()))
