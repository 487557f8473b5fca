"""Checkpoints of networks so small that what they predict can be worked out by hand."""

from pathlib import Path

import torch
from torch import nn

from brats_lightning.core.labels import LabelScheme
from brats_lightning.inference.ensemble import CHECKPOINT_FORMAT


class Ours(nn.Conv3d):
    """A network of a package that nobody trusts unasked."""


def save_checkpoint(
    path: Path, network: nn.Module, model: dict, *, labels=("netc", "snfh", "et"), target="classes", **settings
) -> Path:
    """A checkpoint as a run leaves it; ``settings`` replace the data settings' defaults or the window's."""
    window = {"window": [8, 8, 8], "overlap": 0.25, "batch_size": 1, "mirror_axes": []}
    data = {
        "modalities": ["t1c"],
        "optional": [],
        "normalisation": {"method": "minmax", "low": 0.5, "high": 99.5},
        "preprocessing": {"spacing": None, "fit": "none", "size": None},
        "label_map": None,
        "ignore_label": None,
        "affine_tolerance": 0.1,
    }
    assert set(settings) <= {*window, *data, "source"}
    config = {
        "model": model,
        "target": target,
        "inference": {"_target_": "brats_lightning.inference.windows.SlidingWindow"}
        | {name: settings.get(name, value) for name, value in window.items()},
        "postprocessing": {"_target_": "brats_lightning.inference.postprocessing.Postprocessing"},
        "data": data | {name: v for name, v in settings.items() if name not in window} | {"labels": list(labels)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"network.{k}": v for k, v in network.state_dict().items()}
    torch.save({"state_dict": weights, "config": config, "format": CHECKPOINT_FORMAT}, path)
    return path


def voxelwise(path: Path, weight: list[list[float]], bias: list[float], **settings) -> Path:
    """A checkpoint of one 1×1×1 convolution: logits = weight (classes × channels) @ values + bias."""
    classes, channels = len(weight), len(weight[0])
    network = nn.Conv3d(channels, classes, 1)
    network.weight.data = torch.tensor(weight).reshape(classes, channels, 1, 1, 1)
    network.bias.data = torch.tensor(bias)
    model = {"_target_": "torch.nn.Conv3d", "in_channels": channels, "out_channels": classes, "kernel_size": 1}
    return save_checkpoint(path, network, model, **settings)


def bright_is_et(path: Path, threshold: float = 0.5, channels: int = 1, **settings) -> Path:
    """ET where the first channel is above ``threshold`` (with minmax: of its range), background elsewhere."""
    weight = [[0.0] * channels for _ in range(LabelScheme(settings.get("labels", ("netc", "snfh", "et"))).num_classes)]
    weight[3][0] = 40.0
    bias = [0.0, -50.0, -50.0, -40.0 * threshold] + [-50.0] * (len(weight) - 4)
    return voxelwise(path, weight, bias, **settings)
