"""Building blocks of the networks: settings, normalisation, convolution blocks, up-sampling and the attention gate."""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

PerAxis = tuple[int, int, int]  # (z, y, x)
T = TypeVar("T")


class NetworkSettingError(ValueError):
    """A setting no network can be built from; the message says what to write instead."""


# In place where autograd allows it: the result, not the input, is what these need for the gradient.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def make_activation(name: str) -> nn.Module:
    """A new activation module by name."""
    return choose("activation", name, _ACTIVATIONS)()


def make_norm(name: str, channels: int) -> nn.Module:
    """A new affine normalisation of ``channels`` channels by name: instance, group (at most 8 groups) or batch."""
    return choose("norm", name, _NORMS)(channels)


def choose(setting: str, name: str, options: Mapping[str, T]) -> T:
    """``options[name]``, or an error that names the options."""
    if name in options:
        return options[name]
    near = get_close_matches(str(name), options, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise NetworkSettingError(f"{setting} must be one of {', '.join(options)}, got {name!r}{hint}")


def per_level(setting: str, value: Any, count: int, unit: str = "level") -> list[Any]:
    """``count`` values: a single one repeated, or the sequence itself if it has that many."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise NetworkSettingError(
            f"{setting} must be one value or {count}, one per {unit}, got {len(value)}: {list(value)}. "
            f"Give {count} values, or change the number of widths"
        )
    return list(value)


def per_axis(setting: str, value: int | Sequence[int]) -> PerAxis:
    """``2`` → ``(2, 2, 2)``; ``(1, 2, 2)`` stays; in order (z, y, x)."""
    numbers = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(numbers) != 3 or not all(isinstance(n, int) and n >= 1 for n in numbers):
        raise NetworkSettingError(f"{setting} must be a positive integer or three of them (z, y, x), got {value!r}")
    return numbers


class InstanceNorm(nn.Module):
    """Instance normalisation with the values, gradients and parameters of ``nn.InstanceNorm3d(channels, affine=True)``.

    Three differences, none in the mathematics. A single voxel, which torch refuses to normalise in training, gives the
    bias: the deepest level of a small patch needs that. A channels-last input keeps its layout: torch's own folds the
    batch into the channels, which copies such an input there and back. And the gradient is right for a batch of one
    that gets it in channels-last; torch's own (2.13, CPU) then scrambles it without a word. A batch of one is the case
    in which batch normalisation with the batch's own statistics is instance normalisation, so that is what each sample
    goes through.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
        """Each channel of each sample with mean 0 and variance 1, then scaled and shifted."""
        if torch.compiler.is_exporting():  # for a batch of any size
            return self._normalise(torch.instance_norm, x)
        if len(x) == 1 or x.is_contiguous(memory_format=torch.channels_last_3d):
            samples = [self._normalise(torch.batch_norm, sample) for sample in x.split(1)]
            return samples[0] if len(samples) == 1 else torch.cat(samples)
        return self._normalise(torch.instance_norm, x)

    def _normalise(self, norm: Callable[..., Tensor], x: Tensor) -> Tensor:
        # No running statistics, so the momentum (0.0) is never used.
        return norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps, torch.backends.cudnn.enabled)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.weight.numel()}, eps={self.eps}"


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": InstanceNorm,
    "group": lambda channels: nn.GroupNorm(math.gcd(8, channels), channels),
    "batch": nn.BatchNorm3d,
}


class Convolution(nn.Conv3d):
    """A convolution whose output has ``ceil(n / stride)`` voxels; without bias, which the norm behind it would undo.

    On a CPU two slices are computed in 32 bits: torch's bfloat16 kernel (2.13, oneDNN) leaves parts of the weights'
    gradient unwritten where input and output are two voxels deep. Only the deepest levels of a network are that small.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: PerAxis, stride: PerAxis) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        super().__init__(in_channels, out_channels, kernel, stride, padding, bias=False)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k _ _ _"]:
        """The convolved features."""
        if x.device.type == "cpu" and x.shape[2] == 2:
            with torch.autocast("cpu", enabled=False):
                return self._conv_forward(x.float(), self.weight.float(), None).to(x.dtype)
        return super().forward(x)


class SingleConvBlock(nn.Module):
    """Convolution, norm, activation. ``dropout`` acts between convolutions, so here it does nothing."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: PerAxis,
        stride: PerAxis,
        norm: str,
        activation: str,
        dropout: float | int,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.conv1 = Convolution(in_channels, out_channels, kernel, stride)
        self.norm1 = make_norm(norm, out_channels)
        self.activation = make_activation(activation)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k _ _ _"]:
        """Features of ``ceil(n / stride)`` voxels along each axis."""
        return self.activation(self.norm1(self.conv1(x)))


class ConvBlock(nn.Module):
    """The plain block: (convolution, norm, activation) twice, the first strided, dropout between the two."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: PerAxis,
        stride: PerAxis,
        norm: str,
        activation: str,
        dropout: float | int,
    ) -> None:
        super().__init__()
        self.conv1 = Convolution(in_channels, out_channels, kernel, stride)
        self.norm1 = make_norm(norm, out_channels)
        # Whole channels: neighbouring voxels are too alike for dropping single ones to hide anything.
        self.dropout = nn.Dropout3d(dropout) if dropout else nn.Identity()
        self.conv2 = Convolution(out_channels, out_channels, kernel, (1, 1, 1))
        self.norm2 = make_norm(norm, out_channels)
        self.activation = make_activation(activation)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k _ _ _"]:
        """Features of ``ceil(n / stride)`` voxels along each axis."""
        return self.activation(self.residue(x))

    def residue(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k _ _ _"]:
        """Everything up to the last activation."""
        x = self.dropout(self.activation(self.norm1(self.conv1(x))))
        return self.norm2(self.conv2(x))


class ResidualBlock(ConvBlock):
    """The plain block with a shortcut added before the last activation (He et al. 2016).

    Where channels or size change the shortcut is a strided 1×1×1 convolution, else the input itself. A norm behind that
    convolution would take another tenth of a step.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: PerAxis, stride: PerAxis, norm: str, *settings: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, norm, *settings)
        self.shortcut = self.make_shortcut(in_channels, out_channels, stride, norm)

    @staticmethod
    def make_shortcut(in_channels: int, out_channels: int, stride: PerAxis, norm: str) -> nn.Module:  # noqa: ARG004
        """What brings the input to the channels and size of the residue."""
        same = in_channels == out_channels and stride == (1, 1, 1)
        return nn.Identity() if same else Convolution(in_channels, out_channels, (1, 1, 1), stride)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b k _ _ _"]:
        """Features of ``ceil(n / stride)`` voxels along each axis."""
        return self.activation(self.residue(x).add_(self.shortcut(x)))


class BlockMean(nn.Module):
    """Means over blocks of ``stride`` voxels, at the border over what there is of a block.

    Where the size is a multiple of the stride, what ``nn.AvgPool3d(stride)`` computes. That one takes no bfloat16 on a
    CPU, and no size below the stride; elsewhere it copies channels-last features to another layout.
    """

    def __init__(self, stride: PerAxis) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c _ _ _"]:
        """Features of ``ceil(n / stride)`` voxels along each axis."""
        rest = [-n % s for n, s in zip(x.shape[2:], self.stride, strict=True)]
        if not any(rest):
            return self._means(x)
        padding = (0, rest[2], 0, rest[1], 0, rest[0])
        there = self._means(functional.pad(torch.ones_like(x[:1, :1]), padding))
        return self._means(functional.pad(x, padding)) / there

    def _means(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c _ _ _"]:
        for axis, stride in enumerate(self.stride, start=2):
            if stride > 1:  # by sums of strided views: torch's means over several axes are many times slower
                x = reduce(torch.add, x.unflatten(axis, (-1, stride)).unbind(axis + 1)) / stride
        return x

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.stride}"


class AveragedResidualBlock(ResidualBlock):
    """The residual block of ResNet-D (He et al. 2019, https://arxiv.org/abs/1812.01187).

    Where the size changes the shortcut averages each block of ``stride`` voxels instead of taking one of them; where
    the channels change, a 1×1×1 convolution and a norm follow.
    """

    @staticmethod
    def make_shortcut(in_channels: int, out_channels: int, stride: PerAxis, norm: str) -> nn.Module:
        """What brings the input to the channels and size of the residue."""
        parts: list[nn.Module] = []
        if stride != (1, 1, 1):
            parts.append(BlockMean(stride))
        if in_channels != out_channels:
            parts += [Convolution(in_channels, out_channels, (1, 1, 1), (1, 1, 1)), make_norm(norm, out_channels)]
        return nn.Sequential(*parts)


def _interpolation(stride: PerAxis) -> nn.Module:
    return nn.Upsample(scale_factor=tuple(float(s) for s in stride), mode="trilinear", align_corners=False)


_UPSAMPLINGS: dict[str, Callable[[int, int, PerAxis], nn.Module]] = {
    "transposed": lambda before, after, stride: nn.ConvTranspose3d(before, after, stride, stride),
    # The convolution first, which is the same map and cheaper.
    "trilinear": lambda before, after, stride: nn.Sequential(nn.Conv3d(before, after, 1), _interpolation(stride)),
}


def make_upsampling(name: str, in_channels: int, out_channels: int, stride: PerAxis) -> nn.Module:
    """A new module that multiplies the size by ``stride``: transposed convolution or trilinear interpolation."""
    return choose("upsampling", name, _UPSAMPLINGS)(in_channels, out_channels, stride)


def crop_to(x: Tensor, like: Tensor) -> Tensor:
    """The first voxels of ``x``, as many as ``like`` has, a view: ``s · ceil(n / s)`` up-sampled ones can exceed n."""
    depth, height, width = like.shape[2:]
    return x[:, :, :depth, :height, :width]


class PlainSkip(nn.Module):
    """The skip connection of a U-Net: the encoder's features as they are."""

    def __init__(self, *_: Any) -> None:  # every skip is made with channels and a stride
        super().__init__()

    def forward(self, skip: Float[Tensor, "b c z y x"], gating: Tensor) -> Float[Tensor, "b c z y x"]:  # noqa: ARG002
        """``skip`` itself."""
        return skip


class AttentionGate(nn.Module):
    """Additive attention gate on a skip connection (Oktay et al. 2018, https://arxiv.org/abs/1804.03999, eq. 1–2).

    ``α = sigmoid(ψ·ReLU(θ·skip + φ·gating + b) + b_ψ)`` on the grid of the coarser gating features, θ reading blocks of
    ``stride`` voxels; the skip is multiplied by α interpolated to its own grid. Inner channels: half the skip's.
    """

    def __init__(self, channels: int, gating_channels: int, stride: PerAxis) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.stride = stride
        self.theta = nn.Conv3d(channels, inner, kernel_size=stride, stride=stride, bias=False)
        self.phi = nn.Conv3d(gating_channels, inner, kernel_size=1)
        self.psi = nn.Conv3d(inner, 1, kernel_size=1)
        self.up = _interpolation(stride)

    def forward(
        self, skip: Float[Tensor, "b c z y x"], gating: Float[Tensor, "b g _ _ _"]
    ) -> Float[Tensor, "b c z y x"]:
        """The skip's features, each voxel scaled by its attention."""
        return skip * self.attention(skip, gating)

    def attention(
        self, skip: Float[Tensor, "b c z y x"], gating: Float[Tensor, "b g _ _ _"]
    ) -> Float[Tensor, "b 1 z y x"]:
        """Attention coefficients in (0, 1) on the skip's grid."""
        rest = [-n % s for n, s in zip(skip.shape[2:], self.stride, strict=True)]
        whole = functional.pad(skip, (0, rest[2], 0, rest[1], 0, rest[0])) if any(rest) else skip
        coarse = torch.sigmoid(self.psi(functional.relu(self.theta(whole) + self.phi(gating), inplace=True)))
        return crop_to(self.up(coarse), skip)


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """He initialisation (He et al. 2015) of one module, for ``network.apply``: weights 2 / fan-in, biases 0.

    Transposed convolutions, with no activation behind them, keep the variance (1 / fan-in). Gates start open
    (α ≈ 0.88), and averaged residual blocks as their shortcuts, as their authors advise; ``apply`` comes to a module
    after those in it.
    """
    if isinstance(module, nn.ConvTranspose3d):
        # Kernel and stride agree, so each output voxel sums over the channels of one input voxel.
        nn.init.normal_(module.weight, std=module.in_channels**-0.5)
    elif isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, AveragedResidualBlock):
        nn.init.zeros_(module.get_parameter("norm2.weight"))
    if isinstance(module, AttentionGate) and module.psi.bias is not None:
        nn.init.constant_(module.psi.bias, 2.0)
