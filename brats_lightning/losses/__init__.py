"""Losses of logits `(b, k, z, y, x)` and class indices `(b, z, y, x)` or memberships `(b, k, z, y, x)` of regions.

They return a scalar, or a dict with the total under `loss`.
"""

from brats_lightning.losses.composite import ChannelTarget, CompositeLoss
from brats_lightning.losses.deep_supervision import DeepSupervision
from brats_lightning.losses.dice import WeightedDiceLoss
from brats_lightning.losses.focal import CategoricalFocalLoss
from brats_lightning.losses.instances import BlobLoss, ComponentDiceLoss, LesionFocalLoss

__all__ = [
    "BlobLoss",
    "CategoricalFocalLoss",
    "ChannelTarget",
    "ComponentDiceLoss",
    "CompositeLoss",
    "DeepSupervision",
    "LesionFocalLoss",
    "WeightedDiceLoss",
]
