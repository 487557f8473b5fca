"""Random rotation, scaling and flips of a patch as one resampling: linear for the image, nearest for the mask."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional as F

from brats_lightning.core.checks import Number, as_probability, as_range
from brats_lightning.data.augment.randomness import happens, log_uniform, uniform
from brats_lightning.runtime.device import chunk_size


class RandomAffine:
    """Draws a rotation and a scaling about the centre of the patch.

    Args:
        p_rotation: probability of a rotation.
        rotation: largest angle in degrees about the (z, y, x) axis, each drawn uniformly in ±its own; ``[30, 0, 0]``
            rotates inside the axial plane only, which suits thick slices.
        p_scaling: probability of a scaling.
        scaling: [least, most] magnification, log-uniform; 2 doubles every length.
        isotropic: one factor for the three axes, else one for each.
    """

    def __init__(
        self,
        p_rotation: Number = 0.2,
        rotation: Sequence[Number] = (30.0, 30.0, 30.0),
        p_scaling: Number = 0.2,
        scaling: Sequence[Number] = (0.7, 1.4),
        isotropic: bool = True,
    ) -> None:
        self.p_rotation = as_probability("augmentation: affine.p_rotation", p_rotation)
        self.p_scaling = as_probability("augmentation: affine.p_scaling", p_scaling)
        self.scaling = as_range("augmentation: affine.scaling", scaling, above=0)
        self.rotation = tuple(float(degrees) for degrees in rotation)
        self.isotropic = isotropic
        if len(self.rotation) != 3 or not all(0 <= degrees <= 180 for degrees in self.rotation):
            raise ValueError(
                "augmentation: affine.rotation is the largest angle about the z, y and x axis in degrees, "
                f"each in [0, 180], got {list(rotation)}"
            )

    def draw(self, generator: torch.Generator, spacing: Sequence[Number] = (1.0, 1.0, 1.0)) -> np.ndarray | None:
        """The matrix for `apply_affine`, or None if neither a rotation nor a scaling is drawn."""
        angles, factors = [0.0] * 3, [1.0] * 3
        rotated = happens(self.p_rotation, generator)
        if rotated:
            angles = [uniform((-limit, limit), generator) for limit in self.rotation]
        scaled = happens(self.p_scaling, generator)
        if scaled and self.isotropic:
            factors = [log_uniform(self.scaling, generator)] * 3
        elif scaled:
            factors = [log_uniform(self.scaling, generator) for _ in range(3)]
        return affine_matrix(angles, factors, spacing) if rotated or scaled else None


def affine_matrix(
    angles: Sequence[Number], factors: Sequence[Number], spacing: Sequence[Number] = (1.0, 1.0, 1.0)
) -> Float64[np.ndarray, "3 3"]:
    """From an output voxel to the input voxel it shows, counted from the centre: ``diag(1 / (factors · s)) R diag(s)``.

    The rotation R is rigid in millimetres, whatever the spacing s.

    Args:
        angles: degrees about the (z, y, x) axis. A quarter turn about z is ``torch.rot90`` in the axes (y, x), about y
            in (z, x), about x in (z, y); what is scaled turns about x first, then about y, then about z.
        factors: magnification along z, y, x of the input.
        spacing: voxel size along z, y, x.
    """
    rotation = np.eye(3)
    for degrees, (first, second) in zip(angles, ((1, 2), (0, 2), (0, 1)), strict=True):
        cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = sine, -sine
        rotation = turn @ rotation
    size = np.asarray(spacing, dtype=np.float64)
    return rotation * size / size[:, None] / np.asarray(factors, dtype=np.float64)[:, None]


def apply_affine(
    image: Float32[Tensor, "c z y x"], mask: UInt8[Tensor, "z y x"], matrix: Float64[np.ndarray, "3 3"]
) -> None:
    """Resample image and mask of one sample **in place**: ``output(p) = input(matrix @ (p - centre) + centre)``.

    The image is interpolated linearly between the 8 voxels around a point, the mask takes the nearest; both are 0
    outside the patch. Equals ``torch.nn.functional.grid_sample(align_corners=True)``, whose three-dimensional kernel is
    slow on a CPU: here the position of the 8 voxels is found once for all channels, and their values are gathered by
    plain indexing from copies with a border of zeros, which needs no test of bounds.
    """
    shape = mask.shape
    padded = [length + 2 for length in shape]
    strides = (padded[1] * padded[2], padded[2], 1)
    corners = [z + y + x for z in (0, strides[0]) for y in (0, strides[1]) for x in (0, 1)]
    sources = [F.pad(channel, (1,) * 6).view(-1) for channel in image]
    labels = F.pad(mask, (1,) * 6).view(-1)

    axes = [torch.arange(length, device=image.device, dtype=torch.float32) - (length - 1) / 2 for length in shape]
    # The coordinates and corner values of a chunk are about 12 arrays of float32.
    step = max(1, chunk_size(image.device) // (shape[1] * shape[2]))
    for first in range(0, shape[0], step):
        slices = slice(first, first + step)
        z, y, x = axes[0][slices, None, None], axes[1][:, None], axes[2]
        lowest = nearest = torch.zeros((), dtype=torch.int32, device=image.device)
        fractions = []
        for row, length, stride in zip(matrix.tolist(), shape, strides, strict=True):
            # in the padded copy, whose first and last voxel along the axis are zero
            point = (row[0] * z + (row[1] * y + row[2] * x)).add_((length + 1) / 2).clamp_(0, length + 1)
            below = point.floor().clamp_(max=length)
            lowest = lowest + below.int().mul_(stride)
            nearest = nearest + point.round().int().mul_(stride)
            fractions.append(point.sub_(below).view(-1))
        lowest, nearest = lowest.view(-1), nearest.view(-1)
        for source, channel in zip(sources, image, strict=True):
            values = [source[corner:].index_select(0, lowest) for corner in corners]
            for fraction in reversed(fractions):  # along x, then y, then z
                values = [torch.lerp(a, b, fraction) for a, b in zip(values[::2], values[1::2], strict=True)]
            channel[slices] = values[0].view(-1, *shape[1:])
        mask[slices] = labels.index_select(0, nearest).view(-1, *shape[1:])
