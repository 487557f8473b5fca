"""Losses of logits `(b, k, z, y, x)` and class indices `(b, z, y, x)` or memberships `(b, k, z, y, x)` of regions.

They return a scalar, or a dict with the total under `loss`.
"""

from brats_lightning.losses.composite import ChannelTarget as ChannelTarget
from brats_lightning.losses.composite import CompositeLoss as CompositeLoss
from brats_lightning.losses.deep_supervision import DeepSupervision as DeepSupervision
from brats_lightning.losses.dice import WeightedDiceLoss as WeightedDiceLoss
from brats_lightning.losses.focal import CategoricalFocalLoss as CategoricalFocalLoss
from brats_lightning.losses.instances import BlobLoss as BlobLoss
from brats_lightning.losses.instances import ComponentDiceLoss as ComponentDiceLoss
from brats_lightning.losses.instances import LesionFocalLoss as LesionFocalLoss
from brats_lightning.losses.known_voxels import KnownVoxels as KnownVoxels
from brats_lightning.losses.top_k import TopKCrossEntropy as TopKCrossEntropy
