"""ResUNet: a U-Net of residual blocks."""

from brats_lightning.models.blocks import ResidualBlock
from brats_lightning.models.unet import UNet


class ResUNet(UNet):
    """3D residual U-Net (after Zhang et al. 2018, https://arxiv.org/abs/1711.10684).

    A ``UNet``, with its arguments, whose blocks add a shortcut; theirs activates before the convolutions, this after.
    """

    block = ResidualBlock
