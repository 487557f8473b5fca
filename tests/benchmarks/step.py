"""The training step's arithmetic: forward and backward pass of our networks and the peers', against matrix products."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brats_lightning.models import AttentionUNet, ResUNet, UNet
from brats_lightning.runtime.memory import keep_freed_memory
from tests.benchmarks.measure import Goal, Options, Row, timed

CHANNELS, CLASSES, SIDE = 4, 4, 96
NARROW, WIDE = (16, 32, 64, 128, 256), (32, 64, 128, 256, 320)
OURS = {"UNet": UNet, "AttentionUNet": AttentionUNet, "ResUNet": ResUNet}
LAYOUTS = {"channels-first": torch.contiguous_format, "channels-last": torch.channels_last_3d}
MATRIX = 2048
LIMIT = f"limit: bf16 matrix product {MATRIX}³"


def rows(options: Options) -> Iterator[Row]:
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    for widths, peers, of_limit in ((NARROW, _narrow_peers(), 0.60), (WIDE, _wide_peers(), 0.70)):
        steps = [Step(name, make()) for name, make in peers.items()]
        for name, network in OURS.items():
            ours = Step(name, network(CHANNELS, CLASSES, widths), ("channels-last",))
            yield Row(
                f"step {name} {widths[0]}",
                f"training step {CHANNELS}×{SIDE}³, {name} {widths[0]}–{widths[-1]}: {ours.gflop:.0f} GFLOP",
                "ms/GFLOP",
                {
                    "ours": timed(ours, ours.gflop / 1e3),
                    **{peer.title: timed(peer, peer.gflop / 1e3) for peer in steps},
                    LIMIT: MatrixProduct(),
                },
                goals=[*(Goal(peer.title, at_least=1) for peer in steps), Goal(LIMIT, at_most=round(1 / of_limit, 2))],
                check=lambda ours=ours, steps=steps: "; ".join(step.describe() for step in (ours, *steps)),
                note="forward and backward pass from a fixed gradient of the logits, batch 1, bf16 autocast; "
                f"goal: {of_limit:.2f} of the limit's rate; freed memory is kept, for everybody, as our "
                "training does by itself; each peer in the faster of both layouts; nobody compiled",
            )


def _narrow_peers() -> dict[str, Callable[[], nn.Module]]:
    from monai.networks.nets import AttentionUnet, SegResNet
    from monai.networks.nets import UNet as MonaiUNet

    strides = (2,) * (len(NARROW) - 1)
    return {
        "MONAI UNet 16–256, 2 residual units": partial(
            MonaiUNet, 3, CHANNELS, CLASSES, NARROW, strides, num_res_units=2
        ),
        "MONAI AttentionUnet 16–256": partial(AttentionUnet, 3, CHANNELS, CLASSES, NARROW, strides),
        "MONAI SegResNet 16": partial(SegResNet, 3, 16, CHANNELS, CLASSES),
    }


def nnunet(widths: Sequence[int], blocks: Sequence[int] | None = None) -> nn.Module:
    """nnU-Net's network as it plans it, without the heads of deep supervision, which nobody has here.

    ``blocks`` are the residual blocks of each level of the encoder; None makes the plain network.
    """
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    stages = len(widths)
    strides = [1] + [2] * (stages - 1)
    sizes = (CHANNELS, stages, widths, nn.Conv3d, 3, strides)
    settings = {
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }
    if blocks is None:
        network = PlainConvUNet(*sizes, 2, CLASSES, 2, **settings)
    else:
        network = ResidualEncoderUNet(*sizes, blocks, CLASSES, 1, **settings)
    network.decoder.seg_layers[:-1].requires_grad_(False)
    return network


def _wide_peers() -> dict[str, Callable[[], nn.Module]]:
    from monai.networks.nets import SegResNet

    return {
        "nnU-Net PlainConvUNet 32–320": partial(nnunet, WIDE),
        "MONAI SegResNet 32": partial(SegResNet, 3, 32, CHANNELS, CLASSES),
    }


class Step:
    """A forward and backward pass of a network, in the fastest of some layouts.

    ``gflop`` counts convolutions and matrix products, a multiplication and an addition being two, as torch does.
    """

    def __init__(self, name: str, network: nn.Module, layouts: tuple[str, ...] = tuple(LAYOUTS)) -> None:
        self.network = network
        self.parameters = sum(p.numel() for p in network.parameters()) / 1e6
        seconds = {}
        for layout in layouts:
            self._arrange(LAYOUTS[layout])
            seconds[layout] = _least_of(3, self) if len(layouts) > 1 else 0.0
        layout = min(seconds, key=lambda key: seconds[key])
        self._arrange(LAYOUTS[layout])
        counter = FlopCounterMode(display=False)
        with counter:
            self()
        self.gflop = counter.get_total_flops() / 1e9
        self.name, self.title = name, f"{name}, {layout}"

    def _arrange(self, layout: torch.memory_format) -> None:
        self.network.to(memory_format=layout)  # type: ignore[call-overload]
        generator = torch.Generator().manual_seed(0)
        shape = (1, CHANNELS, SIDE, SIDE, SIDE)
        self.image = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
        gradient = torch.randn((1, CLASSES, *shape[2:]), generator=generator).contiguous(memory_format=layout)
        self.gradient = gradient.to(torch.bfloat16)

    def __call__(self) -> Tensor:
        self.network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.network(self.image)
        logits.backward(self.gradient)
        return logits

    def describe(self) -> str:
        """What the step was, having seen that it is the whole of one."""
        logits = self()
        assert logits.shape == self.gradient.shape, f"{self.name}: logits {tuple(logits.shape)}"
        assert logits.dtype == torch.bfloat16, f"{self.name}: logits of {logits.dtype}"
        idle = [name for name, p in self.network.named_parameters() if p.requires_grad and p.grad is None]
        assert not idle, f"{self.name}: no gradient for {idle}"
        return f"{self.name} {self.parameters:.1f} M parameters, {self.gflop:.0f} GFLOP"


class MatrixProduct:
    """Milliseconds per GFLOP of the product of two bf16 matrices: the median of some."""

    def __init__(self) -> None:
        self.a, self.b = torch.randn(2, MATRIX, MATRIX).to(torch.bfloat16)

    def __call__(self) -> float:
        work = timed(lambda: self.a @ self.b, 2 * MATRIX**3 / 1e12)
        return sorted(work() for _ in range(21))[10]


def _least_of(times: int, step: Callable[[], object]) -> float:
    seconds = []
    for _ in range(times):
        gc.collect()
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
