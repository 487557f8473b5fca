"""Networks: `(b, c, z, y, x)` intensities in, `(b, k, z, y, x)` logits out, for any size."""

from brats_lightning.models.attention_unet import AttentionUNet as AttentionUNet
from brats_lightning.models.blocks import NetworkSettingError as NetworkSettingError
from brats_lightning.models.resenc import ResEncUNet as ResEncUNet
from brats_lightning.models.resunet import ResUNet as ResUNet
from brats_lightning.models.unet import UNet as UNet
