"""Networks: `(b, c, z, y, x)` intensities in, `(b, k, z, y, x)` logits out, for any size."""

from brats_lightning.models.attention_unet import AttentionUNet
from brats_lightning.models.blocks import NetworkSettingError
from brats_lightning.models.resunet import ResUNet
from brats_lightning.models.unet import UNet

__all__ = ["AttentionUNet", "NetworkSettingError", "ResUNet", "UNet"]
