"""The 3D U-Net, and the encoder-decoder its relatives share."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brats_lightning.models.blocks import (
    ConvBlock,
    NetworkSettingError,
    PerAxis,
    PlainSkip,
    crop_to,
    initialise,
    make_upsampling,
    per_axis,
    per_level,
)


class UNet(nn.Module):
    """3D U-Net (Çiçek et al. 2016, https://arxiv.org/abs/1606.06650) with strided convolutions for pooling.

    Level 0 has the input's resolution, each further level ``strides`` times fewer voxels. Any input size from one
    voxel up gives logits of the same size: a level has ``ceil(n / stride)`` voxels, and what up-sampling makes in
    excess is cropped to the skip. Unlike padding the input to a multiple of the total stride, this keeps invented
    voxels out of the normalisation and costs no copy.

    The heads for deep supervision always exist, so a checkpoint loads whatever ``deep_supervision`` is; those not in
    use are frozen (``requires_grad=False``), which also keeps distributed training from waiting for their gradients.

    With a ``stem`` of 2 level 0 itself has half the input's resolution along each axis, and the full-resolution head is
    a transposed convolution that gives each of its voxels 2³ logits of the input's: a step takes less than half the
    time, at the cost of fine borders.

    Args:
        in_channels: channels of the input, one per modality.
        out_channels: classes, the background among them.
        widths: channels of each level, the finest first; their number sets the depth.
        blocks: blocks per level of the encoder, one number or one per level.
        decoder_blocks: blocks per level of the decoder, one number or one per level but the deepest.
        kernel_sizes: odd kernel sizes, one or one per level; each an integer or three (z, y, x).
        strides: down-sampling factors, one or one per step from a level to the next; each an integer or three, e.g.
            ``[[1, 2, 2], 2, 2, 2]`` for slices thicker than the pixels in them.
        stem: down-sampling before level 0, undone by the full-resolution head; an integer or three. 1: none.
        norm: ``instance``, ``group`` or ``batch``.
        activation: ``leaky_relu``, ``relu``, ``elu``, ``silu`` or ``gelu``.
        dropout: probability of dropping a channel inside a block, one or one per level.
        upsampling: ``transposed`` (learned) or ``trilinear``.
        deep_supervision: lower-resolution heads in use while training, 0 to ``len(widths) - 2``.

    Raises:
        NetworkSettingError: a setting no network can be built from.
    """

    block: type[nn.Module] = ConvBlock
    decoder_block: type[nn.Module] | None = None  # None: those of the encoder
    first_block: type[nn.Module] | None = None  # before those of level 0
    skip: type[nn.Module] = PlainSkip

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        *,
        blocks: int | Sequence[int] = 1,
        decoder_blocks: int | Sequence[int] = 1,
        kernel_sizes: int | Sequence[int | Sequence[int]] = 3,
        strides: int | Sequence[int | Sequence[int]] = 2,
        stem: int | Sequence[int] = 1,
        norm: str = "instance",
        activation: str = "leaky_relu",
        dropout: float | int | Sequence[float | int] = 0.0,
        upsampling: str = "transposed",
        deep_supervision: int = 0,
    ) -> None:
        super().__init__()
        levels = len(widths)
        if levels < 2 or min(in_channels, out_channels, *widths) < 1:
            raise NetworkSettingError(
                "a network needs at least two widths and one channel in and out, all positive; "
                f"got widths {list(widths)}, in_channels {in_channels}, out_channels {out_channels}"
            )
        if not 0 <= deep_supervision <= levels - 2:
            raise NetworkSettingError(
                f"deep_supervision must be 0 to {levels - 2} (len(widths) - 2) lower-resolution heads, "
                f"got {deep_supervision}"
            )
        steps = [per_axis("strides", stride) for stride in per_level("strides", strides, levels - 1, "step down")]
        kernels = [per_axis("kernel_sizes", kernel) for kernel in per_level("kernel_sizes", kernel_sizes, levels)]
        if any(size % 2 == 0 for kernel in kernels for size in kernel):
            raise NetworkSettingError(f"kernel_sizes must be odd, so that a convolution keeps the size, got {kernels}")
        dropouts = per_level("dropout", dropout, levels)
        if not all(0 <= probability < 1 for probability in dropouts):
            raise NetworkSettingError(f"dropout must be probabilities from 0 to below 1, got {dropouts}")
        encoder_blocks = per_level("blocks", blocks, levels)
        decoder_counts = per_level("decoder_blocks", decoder_blocks, levels - 1, "level but the deepest")
        if min(*encoder_blocks, *decoder_counts) < 1:
            raise NetworkSettingError(
                f"a level needs at least one block, got blocks {encoder_blocks}, decoder_blocks {decoder_counts}"
            )

        def make_blocks(
            kinds: Sequence[type[nn.Module]], channels: int, level: int, stride: PerAxis = (1, 1, 1)
        ) -> nn.Module:
            width, settings = widths[level], (norm, activation, dropouts[level])
            inputs = [(channels, stride), *[(width, (1, 1, 1))] * (len(kinds) - 1)]
            pairs = zip(kinds, inputs, strict=True)
            return nn.Sequential(*(kind(c, width, kernels[level], s, *settings) for kind, (c, s) in pairs))

        self.deep_supervision = deep_supervision
        finest = per_axis("stem", stem)
        first = [self.first_block] if self.first_block else []
        self.encoder = nn.ModuleList([make_blocks([*first, *[self.block] * encoder_blocks[0]], in_channels, 0, finest)])
        self.decoder = nn.ModuleList()  # by level: the first is the last to be run
        for level in range(levels - 1):
            fine, coarse = widths[level], widths[level + 1]
            self.encoder.append(make_blocks([self.block] * encoder_blocks[level + 1], fine, level + 1, steps[level]))
            self.decoder.append(
                DecoderLevel(
                    self.skip(fine, coarse, steps[level]),
                    make_upsampling(upsampling, coarse, fine, steps[level]),
                    make_blocks([self.decoder_block or self.block] * decoder_counts[level], 2 * fine, level),
                )
            )
        self.heads = nn.ModuleList(nn.Conv3d(width, out_channels, kernel_size=1) for width in widths[:-1])
        if finest != (1, 1, 1):
            self.heads[0] = make_upsampling("transposed", widths[0], out_channels, finest)
        self.apply(initialise)
        for head in self.heads[deep_supervision + 1 :]:
            head.requires_grad_(False)
        # The layout in which these convolutions and norms are fastest, on CPUs and with mixed precision on GPUs; the
        # features follow the weights.
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k z y x"] | list[Float[Tensor, "b k _ _ _"]]:
        """Logits of the input's size; in training with deep supervision a list, full resolution first."""
        image, skips = x, []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        skips.pop()
        coarse_to_fine = []
        for level in reversed(self.decoder):
            x = level(x, skips.pop())
            coarse_to_fine.append(x)
        if self.training and self.deep_supervision:
            features = coarse_to_fine[::-1][: self.deep_supervision + 1]
            finest, *coarser = (head(f) for head, f in zip(self.heads, features, strict=False))
            return [crop_to(finest, image), *coarser]
        return crop_to(self.heads[0](x), image)


class DecoderLevel(nn.Module):
    """One step up: the coarser features up-sampled and joined with the skip, then blocks."""

    def __init__(self, skip: nn.Module, up: nn.Module, blocks: nn.Module) -> None:
        super().__init__()
        self.skip, self.up, self.blocks = skip, up, blocks

    def forward(
        self, coarse: Float[Tensor, "b g _ _ _"], skip: Float[Tensor, "b c z y x"]
    ) -> Float[Tensor, "b c z y x"]:
        """Features on the skip's grid."""
        return self.blocks(torch.cat((self.skip(skip, coarse), crop_to(self.up(coarse), skip)), dim=1))
