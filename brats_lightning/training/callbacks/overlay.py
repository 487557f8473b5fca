"""A picture per validation: the slice with the most tumour, with outlines of reference and prediction."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, UInt8
from pytorch_lightning.loggers import TensorBoardLogger

from brats_lightning.core.labels import IGNORE, known_classes

# NETC red, SNFH green, ET yellow, RC blue, further classes purple and cyan; of unknown class grey.
CLASS_COLOURS = np.array(
    [[0, 0, 0], [220, 50, 47], [60, 160, 60], [250, 200, 30], [60, 120, 220], [160, 80, 200], [0, 170, 170]], np.float32
)
UNKNOWN_COLOUR = np.float32(128)


def outlines(labels: UInt8[np.ndarray, "y x"]) -> np.ndarray:
    """Boolean mask of the labelled pixels next to a pixel of another label."""
    padded = np.pad(labels, 1)
    centre = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return (centre > 0) & np.any([centre != neighbour for neighbour in neighbours], axis=0)


def draw(
    image: Float[np.ndarray, "y x"], reference: UInt8[np.ndarray, "y x"], prediction: UInt8[np.ndarray, "y x"]
) -> UInt8[np.ndarray, "y w 3"]:
    """The slice three times, side by side: plain, with the reference's outlines, with the prediction's.

    The grey scale runs from the 1st to the 99th percentile of the non-zero pixels.
    """
    inside = image[image != 0]
    low, high = np.percentile(inside, (1, 99)) if inside.size else (0.0, 1.0)
    grey = np.where(image == 0, 0, np.clip((image - low) / max(high - low, 1e-6), 0, 1)) * 255
    bare = np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)
    panels = [bare]
    for labels in (reference, prediction):
        panel = bare.copy()
        edge = outlines(labels)
        panel[edge] = CLASS_COLOURS[np.minimum(labels[edge], len(CLASS_COLOURS) - 1)]
        panel[edge & (labels == IGNORE)] = UNKNOWN_COLOUR
        panels.append(panel)
    return np.concatenate(panels, axis=1).astype(np.uint8)


class Overlay(pl.Callback):
    """Add pictures (see `draw`) of the first validation cases to TensorBoard.

    Anterior is up and the patient's right is on the left. They show the second channel (T1c in the usual order), or the
    only one, in the slice with the most tumour in the reference, which is the same throughout the run.

    Args:
        cases: number of validation cases to draw.
    """

    def __init__(self, cases: int = 1) -> None:
        self.cases = cases

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *_: Any,
    ) -> None:
        """Draw one case."""
        logger = trainer.logger
        if batch_idx >= self.cases or outputs is None or not isinstance(logger, TensorBoardLogger):
            return
        mask = batch.mask.cpu().numpy()
        z = int((known_classes(mask) > 0).sum(axis=(1, 2)).argmax())
        channel = min(1, len(batch.image) - 1)
        image = batch.image[channel, z].to(torch.float32).cpu().numpy()
        picture = draw(image, mask[z], outputs["labels"][z].cpu().numpy())
        logger.experiment.add_image(f"val/{batch.case.id}", picture, trainer.global_step, dataformats="HWC")
