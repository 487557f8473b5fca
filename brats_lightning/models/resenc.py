"""The residual encoder of nnU-Net: a deep encoder of residual blocks, a plain decoder."""

from brats_lightning.models.blocks import AveragedResidualBlock, SingleConvBlock
from brats_lightning.models.unet import UNet


class ResEncUNet(UNet):
    """3D U-Net with a residual encoder (Isensee et al. 2024, https://arxiv.org/abs/2404.09556), nnU-Net's "ResEnc".

    A ``UNet``, with its arguments, but for its blocks: a single convolution first, then residual blocks that average in
    their shortcuts, and in the decoder single convolutions, ``decoder_blocks`` of them per level. With ``blocks=(1, 3,
    4, 6, 6, 6)`` and the weights of a ``ResidualEncoderUNet`` of ``dynamic-network-architectures`` it has its logits.
    """

    block = AveragedResidualBlock
    decoder_block = SingleConvBlock
    first_block = SingleConvBlock
