"""Losses of logits `(b, k, z, y, x)` and class indices `(b, z, y, x)`: a scalar, or a dict, total under `loss`."""

from brats_lightning.losses.composite import ChannelTarget, CompositeLoss
from brats_lightning.losses.deep_supervision import DeepSupervision
from brats_lightning.losses.dice import WeightedDiceLoss
from brats_lightning.losses.focal import CategoricalFocalLoss

__all__ = ["CategoricalFocalLoss", "ChannelTarget", "CompositeLoss", "DeepSupervision", "WeightedDiceLoss"]
