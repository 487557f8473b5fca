"""nnU-Net's network, loss and sampling as parts of our configs (Isensee et al. 2021; defaults of nnU-Net v2)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from brats_lightning.core.geometry import Ints
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.sampling.patches import UniformPatches
from brats_lightning.losses import DeepSupervision
from brats_lightning.models import UNet


class PlainConvUNet(UNet):
    """The default network: our U-Net has its architecture, and this is its initialisation.

    A test copies the weights of the original (package dynamic_network_architectures) and gets its outputs. The original
    is not used itself: its instance normalisation is slow in the channels-last layout, and on a CPU of wrong gradient
    there for a batch of one (see `brats_lightning.models.blocks.InstanceNorm`).
    """

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int]) -> None:
        super().__init__(in_channels, out_channels, widths, deep_supervision=len(widths) - 2)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(layer.weight, a=1e-2)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class DiceCrossEntropy(DeepSupervision):
    """Soft Dice of the foreground classes, negated, + cross-entropy, at all resolutions but the coarsest.

    The i-th resolution weighs 2⁻ⁱ, the coarsest 0, with sum 1; its target is the nearest voxel's. Dice is::

        (2 Σ p y + smooth) / (Σ p + Σ y + smooth)

    Args:
        batch_dice: sums over the batch, as planned where a patch is less than a quarter of the usual volume.
        smooth: in numerator and denominator.
    """

    def __init__(self, batch_dice: bool = True, smooth: float = 1e-5) -> None:
        super().__init__(self.at_one_resolution)
        self.batch_dice, self.smooth = batch_dice, smooth

    def forward(self, logits: Tensor | list[Tensor], target: Tensor) -> Tensor:
        if isinstance(logits, Tensor):
            return self.at_one_resolution(logits, target)
        used = logits[:-1] if len(logits) > 1 else logits
        weights = [2.0**-i for i in range(len(used))]
        values = []
        for level in used:
            nearest = functional.interpolate(target[:, None].float(), level.shape[2:], mode="nearest-exact")[:, 0]
            values.append(self.at_one_resolution(level, nearest))
        return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)

    def at_one_resolution(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (b, k, z, y, x) and class indices (b, z, y, x)."""
        logits, target = logits.float(), target.long()
        entropy = functional.cross_entropy(logits, target)
        p = logits.softmax(1)[:, 1:].flatten(2)
        y = functional.one_hot(target, logits.shape[1]).movedim(-1, 1)[:, 1:].flatten(2)
        sums = torch.stack([(p * y).sum(2), p.sum(2) + y.sum(2)])
        if self.batch_dice:
            sums = sums.sum(1)
        dice = (2 * sums[0] + self.smooth) / (sums[1] + self.smooth)
        return entropy - dice.mean()


class ForegroundOversampling(UniformPatches):
    """A fraction of the patches is centred on a voxel of a class: the class uniform among the case's, then its voxel.

    The others are uniform. Cases are drawn with replacement.

    Args:
        size: (z, y, x) of the patch in voxels.
        ratio: of the patches that are centred on foreground.
    """

    def __init__(self, size: Sequence[int], ratio: float) -> None:
        super().__init__(size)
        self.ratio = ratio
        self._locations: dict[str, list[np.ndarray]] = {}

    def draw_start(self, case: CachedCase, size: Ints, rng: np.random.Generator) -> Ints:
        classes = self._class_locations(case)
        if not classes or rng.random() >= self.ratio:
            return super().draw_start(case, size, rng)
        voxels = classes[rng.integers(len(classes))]
        voxel = np.unravel_index(voxels[rng.integers(len(voxels))], case.shape)
        start = []
        for extent, length, v in zip(case.shape, size, voxel, strict=True):
            room = extent - length
            start.append(min(max(int(v) - length // 2, 0), room) if room >= 0 else room // 2)
        z, y, x = start
        return z, y, x

    def case_weights(self, cases: Sequence[CachedCase]) -> np.ndarray:
        return np.full(len(cases), 1 / len(cases))

    def _class_locations(self, case: CachedCase) -> list[np.ndarray]:
        """Flat indices of the voxels of each class that the case has."""
        if case.id not in self._locations:
            mask = case.mask()
            found = (np.flatnonzero(mask == label) for label in range(1, int(mask.max(initial=0)) + 1))
            self._locations[case.id] = [voxels for voxels in found if len(voxels)]
        return self._locations[case.id]
