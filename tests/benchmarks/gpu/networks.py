"""Step time, memory and whole-volume inference of the recipes' networks and of MONAI's and nnU-Net's."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from brats_lightning.inference.windows import SlidingWindow
from tests.benchmarks.gpu.part import Cell, Rows, Size, gigabytes, seconds
from tests.benchmarks.step import CHANNELS, CLASSES, LAYOUTS, nnunet
from tests.benchmarks.workload import config

OURS = ("mets", "mets_large")
WIDTHS = (32, 64, 128, 256, 320, 320)  # of both, and of nnU-Net's


def contenders(size: Size) -> dict[str, Callable[[], nn.Module]]:
    """Networks by name; one whose package is missing raises an ImportError."""
    widths = [width // size.thinner for width in WIDTHS]

    def recipe(name: str) -> nn.Module:
        from hydra.utils import instantiate

        return instantiate(config(f"experiment={name}", f"model.widths={widths}".replace(" ", "")).model)

    def segresnet() -> nn.Module:
        from monai.networks.nets import SegResNet

        return SegResNet(3, max(8, 32 // size.thinner), CHANNELS, CLASSES)  # its norms have groups of 8

    return {
        **{f"experiment={name}": partial(recipe, name) for name in OURS},
        "MONAI SegResNet 32": segresnet,
        "nnU-Net PlainConvUNet 32–320": partial(nnunet, widths),
        "nnU-Net ResidualEncoderUNet L": partial(nnunet, widths, (1, 3, 4, 6, 6, 6)),
    }


def steps(size: Size, rows: Rows, scratch: Path) -> None:
    """Forward and backward pass from a fixed gradient, and AdamW, in bf16 autocast."""
    for name, make in contenders(size).items():
        _measured(rows, name, lambda make=make: _step(make, size))


def _step(make: Callable[[], nn.Module], size: Size) -> dict[str, Cell]:
    network = make().to(size.device).train()
    network.deep_supervision = 0  # of ours; nobody has its heads here
    ours = type(network).__module__.startswith("brats_lightning")
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], fused=True)
    shape = (size.batch, CHANNELS, *[size.patch] * 3)
    gradient = torch.randn((size.batch, CLASSES, *shape[2:]), device=size.device, dtype=torch.bfloat16)

    def step(image: torch.Tensor) -> None:
        with torch.autocast(size.device.type, torch.bfloat16):
            logits = network(image)
        assert logits.shape == gradient.shape
        logits.backward(gradient)
        optimizer.step()
        optimizer.zero_grad()

    found = {}
    for name in ("channels-last",) if ours else tuple(LAYOUTS):
        network.to(memory_format=LAYOUTS[name])  # type: ignore[call-overload]
        image = torch.randn(shape, device=size.device).contiguous(memory_format=LAYOUTS[name])
        found[name] = seconds(partial(step, image), size.device, size.repeats), image
    layout = min(found, key=lambda name: found[name][0])  # each in the faster of both
    best, image = found[layout]
    network.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    return {
        "step": Cell(1000 * best, "ms"),
        "patches": Cell(size.batch / best, "/s"),
        "memory": Cell(gigabytes(partial(step, image), size.device), "GB"),
        "parameters": Cell(sum(p.numel() for p in network.parameters()) / 1e6, "M"),
        "layout": Cell(None, layout),
    }


def volumes(size: Size, rows: Rows, scratch: Path) -> None:
    """A volume through each network by our sliding window, and through that of `mets` by MONAI's."""
    # Of the scans' own size, as a brain's box nearly is.
    image = torch.randn((CHANNELS, *size.volume[::-1]), device=size.device)
    window = SlidingWindow([size.patch] * 3, 0.5, size.batch)
    for name, make in contenders(size).items():
        _measured(rows, name, lambda make=make: _volume(make, size, lambda logits: window(logits, image)))

    def monai(logits: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        from monai.inferers import sliding_window_inference

        return sliding_window_inference(image[None], window.window, size.batch, logits, 0.5, mode="gaussian")[0]

    mets = contenders(size)[f"experiment={OURS[0]}"]
    _measured(rows, f"experiment={OURS[0]}, windows by MONAI", lambda: _volume(mets, size, monai))


def _volume(
    make: Callable[[], nn.Module], size: Size, infer: Callable[[Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]
) -> dict[str, Cell]:
    network = make().to(size.device, memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]

    def logits(windows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(size.device.type, torch.bfloat16):
            return network(windows.contiguous(memory_format=torch.channels_last_3d)).float()

    @torch.inference_mode()
    def work() -> None:
        assert infer(logits).argmax(0).cpu().shape == size.volume[::-1]

    taken = seconds(work, size.device, max(1, size.repeats // 3))
    return {"volume": Cell(taken, "s"), "memory": Cell(gigabytes(work, size.device), "GB")}


def _measured(rows: Rows, name: str, measure: Callable[[], dict[str, Cell]]) -> None:
    """Add a row; without a package or enough memory it says so, and the others go on."""
    try:
        cells = measure()
    except ImportError as error:
        cells = {"note": Cell(None, f"not installed: {error.name}")}
    except torch.OutOfMemoryError:
        cells = {"note": Cell(None, "not enough memory")}
    rows.add(name, **cells)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
