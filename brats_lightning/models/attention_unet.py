"""Attention U-Net: a U-Net with gated skip connections."""

from brats_lightning.models.blocks import AttentionGate
from brats_lightning.models.unet import UNet


class AttentionUNet(UNet):
    """3D Attention U-Net (Oktay et al. 2018, https://arxiv.org/abs/1804.03999).

    A ``UNet``, with its arguments, whose skips are scaled voxel by voxel by what the coarser level attends to.
    """

    skip = AttentionGate
