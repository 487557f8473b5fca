"""Batched augmentation on the batch's own device: flips, rotation and scaling in one resampling, intensity changes."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from brats_lightning.core.checks import Number, as_probability
from brats_lightning.data.augment.affine import RandomAffine, apply_affine
from brats_lightning.data.augment.intensity import IntensityChange
from brats_lightning.data.augment.randomness import happens, new_seed


class Augmentation:
    """Draws and applies every change for each sample separately.

    The parts and the default probabilities are nnU-Net's (Isensee et al., Nature Methods 2021, supplement; trainer of
    nnU-Net v2).

    Args:
        flip: probability of mirroring along (z, y, x); x is left-right.
        affine: draws rotation and scaling, or None.
        intensity: the intensity changes by name, applied in this order; None leaves one out.
        sequence_dropout: probability with which each modality of ``data.optional`` is taken from a sample; it happens
            where patches are read, before differences of modalities are formed.
    """

    def __init__(
        self,
        flip: Sequence[Number] = (0.0, 0.0, 0.5),
        affine: RandomAffine | None = None,
        intensity: Mapping[str, IntensityChange | None] | None = None,
        sequence_dropout: Number = 0.0,
    ) -> None:
        if len(flip) != 3:
            raise ValueError(f"augmentation: flip is one probability for each of z, y and x, got {list(flip)}")
        self.flip = tuple(as_probability("augmentation: flip", p) for p in flip)
        self.affine = affine
        self.sequence_dropout = as_probability("augmentation: sequence_dropout", sequence_dropout)
        self.intensity = {name: change for name, change in (intensity or {}).items() if change is not None}

    def __call__(
        self,
        image: Float[Tensor, "b c z y x"],
        mask: UInt8[Tensor, "b z y x"],
        generator: torch.Generator,
        spacing: Sequence[Sequence[Number]] | None = None,
    ) -> tuple[Float[Tensor, "b c z y x"], UInt8[Tensor, "b z y x"]]:
        """Augment a batch **in place** and return it.

        Each sample has its own random numbers, seeded from ``generator``: what one sample gets depends neither on the
        others nor on the device (only the noise itself is drawn on the device).

        Args:
            image: float32, 0 outside the brain.
            mask: class index.
            generator: usually the CPU's, also for tensors on a GPU.
            spacing: voxel size (z, y, x) of each sample in mm, for rigid rotations of anisotropic voxels.

        Raises:
            ValueError: an image that is not float32; reduced precision is for the network, not for resampling.
        """
        if image.dtype != torch.float32:
            raise ValueError(f"augmentation works in float32, got an image of {image.dtype}; augment before autocast")
        for index in range(image.shape[0]):
            draws = torch.Generator().manual_seed(new_seed(generator))
            self._augment(image[index], mask[index], draws, spacing[index] if spacing is not None else (1.0, 1.0, 1.0))
        return image, mask

    def _augment(self, image: Tensor, mask: Tensor, draws: torch.Generator, spacing: Sequence[Number]) -> None:
        flipped = [axis for axis, p in enumerate(self.flip) if happens(p, draws)]
        matrix = self.affine.draw(draws, spacing) if self.affine is not None else None
        if matrix is not None:
            matrix[:, flipped] *= -1
            apply_affine(image, mask, matrix)
        elif flipped:
            for volume in (*image, mask):
                volume.copy_(volume.flip(flipped))
        for change in self.intensity.values():
            change(image, draws)
