"""Size of the configured networks: ``python -m tests.benchmarks.networks``.

Parameters; arithmetic of a training step (forward and backward); memory of what the forward pass keeps for the
backward pass under bf16 autocast, the bulk of a training's memory besides 16 bytes per parameter for weights,
gradients and AdamW's moments. Per patch of 128³ voxels: counted at 64³ and multiplied by 8, since both grow with the
number of voxels.
"""

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from brats_lightning.config.resolvers import config_dir, register_resolvers

NETWORKS, SIZES = ("unet", "attention_unet", "resunet", "resenc"), ("small", "base", "large")
SIDE, MEASURED = 128, 64


def measure(network: nn.Module, channels: int) -> tuple[float, float, float]:
    """(million parameters, TFLOP per step, GiB kept) for a patch of ``SIDE``³."""
    scale = (SIDE / MEASURED) ** 3
    image = torch.zeros((1, channels, *[MEASURED] * 3)).contiguous(memory_format=torch.channels_last_3d)
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(image)
        logits.sum().backward()
    count = sum(p.numel() for p in network.parameters())
    return count / 1e6, counter.get_total_flops() * scale / 1e12, sum(kept.values()) * scale / 2**30


def main() -> None:
    """Print the table."""
    register_resolvers()
    print(f"| network | size | parameters | TFLOP per step and {SIDE}³ patch | GiB kept per patch |")
    print("|---|---|---|---|---|")
    for name in NETWORKS:
        for size in SIZES:
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                cfg = compose("train", [f"model={name}", f"model/size={size}"])
            network = instantiate(cfg.model)
            parameters, flops, kept = measure(network, cfg.data.in_channels)
            print(f"| {name} | {size} | {parameters:.1f} M | {flops:.2f} | {kept:.1f} |", flush=True)


if __name__ == "__main__":
    main()
