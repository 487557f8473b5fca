"""What a run is, for those who follow it: the arrangement of its curves, config and network, and how fast it is."""

import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from brats_lightning.core.labels import LabelScheme
from brats_lightning.runtime.memory import held_memory
from brats_lightning.training.module import Segmentation
from brats_lightning.training.trackers import Layout, trackers


class Dashboard(pl.Callback):
    """Arranges the curves, shows config and network, and logs speed and memory as often as the loss.

    ``speed/waiting_for_data`` is the share of the time in which the training waited for its next batch. Validations do
    not count. Nothing here makes the host wait for a GPU.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Arrange the curves and describe the run."""
        if isinstance(pl_module, Segmentation) and trainer.is_global_zero and (followers := trackers(trainer)):
            curves = layout(pl_module.score_names, pl_module.scheme, pl_module.protocols)
            for tracker in followers:
                tracker.add_config(pl_module.config, network_table(pl_module.network), curves, trainer.global_step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._restart(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Start the clock anew."""
        self._restart(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:  # noqa: ARG002
        """Log what was measured since the last time."""
        self._patches += len(batch.image) * trainer.world_size
        steps, every = trainer.global_step - self._first, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or not steps or trainer.global_step % every:
            return
        seconds, device = time.perf_counter() - self._began, trainer.strategy.root_device
        loader: Any = trainer.train_dataloader
        waited = loader.waited - self._waited
        memory = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else held_memory()
        values = {"steps_per_second": steps / seconds, "patches_per_second": self._patches / seconds}
        values |= {"waiting_for_data": waited / seconds, "memory_gb": memory / 1e9}
        for logger in trainer.loggers:
            logger.log_metrics({f"speed/{name}": value for name, value in values.items()}, trainer.global_step)
        self._restart(trainer)

    def _restart(self, trainer: pl.Trainer) -> None:
        self._began, self._patches, self._first = time.perf_counter(), 0, trainer.global_step
        self._waited = getattr(trainer.train_dataloader, "waited", 0.0)  # not there before the first batch


def layout(score_names: Sequence[str], scheme: LabelScheme, protocols: Sequence[str]) -> Layout:
    """Curves that are read together, as TensorBoard's custom scalars take them: category → title → kind and tags."""

    def validation(*names: str) -> list[Any]:
        return _lines(*(f"val/{name}" for name in names if name in score_names))

    def of(prefix: str) -> list[str]:
        return [name for name in score_names if name.startswith(prefix)]

    regions = ["dice_mean", *(f"dice_{region}" for region in scheme.regions)]
    lesions = {f"Lesions by {protocol}": validation(*of(f"{protocol}/")) for protocol in protocols}
    return {
        "Training": {
            "Loss": _lines("train/loss", "val/loss"),
            "Parts of the loss": _lines("train/loss_.*"),
            "Dice of the patches": _lines("train/patch_dice_.*"),
            "Learning rate": _lines("lr-.*"),
        },
        "Validation, mean over cases": {
            "Dice of regions": validation(*regions),
            "Dice of classes": validation(*(name for name in of("dice_") if name not in regions)),
            "IoU": validation(*of("iou_")),
            **lesions,
        },
        "Speed": {
            "Steps and patches per second": _lines("speed/(steps|patches)_per_second"),
            "Share of the time waiting for data": _lines("speed/waiting_for_data"),
            "Memory in GB": _lines("speed/memory_gb"),
        },
    }


def network_table(network: nn.Module, depth: int = 2) -> str:
    """Markdown: the network's parts down to a depth, with their parameters."""
    lines = ["| part | class | parameters |", "|---|---|---:|"]
    for name, part in network.named_modules():
        count = sum(parameter.numel() for parameter in part.parameters())
        if count and name.count(".") < depth:
            lines.append(f"| {name or 'all'} | {type(part).__name__} | {count:,} |")
    return "\n".join(lines)


def _lines(*tags: str) -> list[Any]:
    """A chart of the curves whose tags match, each from beginning to end."""
    return ["Multiline", [f"{tag}$" for tag in tags]]
