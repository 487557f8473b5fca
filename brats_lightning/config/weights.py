"""The weights that a network starts from: ``weights=FILE``, all of them or those that match."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from brats_lightning.config.allow_list import CheckpointError
from brats_lightning.config.checkpoint import load_weights, network_weights, read_checkpoint, split_of
from brats_lightning.config.command_line import typed
from brats_lightning.config.nnunet import is_nnunet, read_nnunet
from brats_lightning.config.values import leaves, within
from brats_lightning.core.labels import LabelScheme
from brats_lightning.core.targets import make_target
from brats_lightning.models.transfer import Axes, Transfer, Weights, channel_axes, transfer
from brats_lightning.runtime.console import as_text, table_of

_DECIDING = ("model", "target", "target_extra", "data.modalities", "data.labels")  # which weights a network has
_FOLLOW = ("model.in_channels", "model.out_channels")
_CHOICES = {"UNet": "unet", "AttentionUNet": "attention_unet", "ResUNet": "resunet", "ResEncUNet": "resenc"}
_MODES = ("strict", "matching")
Make = Callable[[Mapping[str, Any]], nn.Module]  # a network of the settings `model`


def start_from(cfg: DictConfig, network: nn.Module, make: Make) -> str:
    """Load the checkpoint ``weights`` into a config's network, as ``weights_mode`` says; what was loaded, in words.

    Raises:
        CheckpointError: no checkpoint, weights of another network, or none that match.
        ValueError: another mode.
    """
    mode = cfg.get("weights_mode", _MODES[0])  # which the config of an older run lacks
    if mode not in _MODES:
        raise ValueError(f"weights_mode must be {' or '.join(_MODES)}, got {mode!r}")
    strict = mode == "strict"
    if is_nnunet(Path(cfg.weights).expanduser()):
        weights, settings = read_nnunet(cfg.weights, cfg.data.labels)
        done = _load_nnunet(cfg, network, make, weights, settings) if strict else _match(cfg, network, make, weights)
    else:
        checkpoint = read_checkpoint(cfg.weights, "weights")
        saved = checkpoint["config"]
        weights = Weights(network_weights(checkpoint), tuple(saved["data"]["modalities"]), _outputs(saved))
        done = _load_ours(cfg, network, checkpoint) if strict else _match(cfg, network, make, weights)
    return f"all {len(done.loaded + done.adapted)} of {cfg.weights}" if strict else _described(cfg, weights, done)


def trained_before(cfg: DictConfig) -> list[str] | None:
    """The cases that ``weights`` were trained on, in one run or several; None if that is not known."""
    if cfg.weights is None:
        return []
    path = Path(cfg.weights).expanduser()
    if is_nnunet(path):
        return None
    checkpoint = read_checkpoint(path, "weights")
    split, before = split_of(path, checkpoint), checkpoint.get("seen", [])
    return None if split is None or before is None else sorted({*split["train"], *before})


def _load_ours(cfg: DictConfig, network: nn.Module, checkpoint: Mapping[str, Any]) -> Transfer:
    """All weights of a checkpoint of this program."""
    try:
        load_weights(network, checkpoint, f"weights={cfg.weights} are of another network")
    except CheckpointError as error:
        if settings := _fitting(checkpoint["config"], cfg):
            raise CheckpointError(f"{str(error).partition(': ')[0]}; they fit one with {settings}") from error
        raise
    return Transfer(loaded=list(network.state_dict()))


def _load_nnunet(
    cfg: DictConfig, network: nn.Module, make: Make, weights: Weights, settings: Mapping[str, Any]
) -> Transfer:
    """All weights of a checkpoint of nnU-Net, whose channels may be in another order."""
    alike = {"in_channels": 1, "out_channels": 1, "deep_supervision": 0, "dropout": 0.0}  # none is of the architecture
    configured: Any = cfg.model
    with torch.device("meta"):
        here = make({**configured, **{key: value for key, value in alike.items() if key in configured}})
        theirs = make({**settings, **alike})
    if repr(here) != repr(theirs):
        raise CheckpointError(
            f"weights={cfg.weights} are of another network; they fit one with {_fitting({'model': settings}, cfg)}"
        )
    channels = [
        ("modalities", weights.inputs, tuple(cfg.data.modalities)),
        ("outputs", weights.outputs, _outputs(cfg)),
    ]
    differ = [f"{what} {', '.join(a)}, not {', '.join(b)}" for what, a, b in channels if set(a) != set(b)]
    if differ:
        raise CheckpointError(
            f"weights={cfg.weights} are of a network with the {' and the '.join(differ)}: set data.modalities, "
            "data.labels, target and target_extra to have the same, or weights_mode=matching"
        )
    done = _match(cfg, network, make, weights)
    if done.left:
        raise CheckpointError(f"weights={cfg.weights}: {', '.join(done.left[:3])} … are not among them")
    return done


def _match(cfg: DictConfig, network: nn.Module, make: Make, weights: Weights) -> Transfer:
    """The weights that fit."""

    def axes(key: str) -> Axes:
        if key not in cfg.model:
            return {}
        settings: Any = cfg.model
        return channel_axes(network, make({**settings, key: settings[key] + 1}), settings[key])

    with torch.random.fork_rng(devices=[]):  # the numbers that a run draws stay the same
        ends = axes("in_channels"), axes("out_channels")
    done = transfer(network, weights, tuple(cfg.data.modalities), _outputs(cfg), ends)
    if not done.loaded and not done.adapted:
        first = next(iter(weights.tensors), "none")
        raise CheckpointError(
            f"weights={cfg.weights} are of another network: none ({first} …) has the name and the shape of one of "
            f"{cfg.model._target_}"
        )
    return done


def _outputs(config: Mapping[str, Any] | DictConfig) -> tuple[str, ...]:
    """Names of the output channels of a config's network."""
    scheme = LabelScheme(tuple(config["data"]["labels"]))
    return make_target(config["target"], scheme, extra=config.get("target_extra")).names


def _fitting(saved: Mapping[str, Any], cfg: DictConfig) -> str:
    """The settings that a config's network would need for the weights of another config, as they are typed."""
    here = dict(leaves(OmegaConf.to_container(cfg)))
    differ = {
        key: typed(value)
        for key, value in leaves(saved)
        if within(key, _DECIDING) and not within(key, _FOLLOW) and key in here and here[key] != value
    }
    name = differ.get("model._target_", "").rpartition(".")[2]
    if name in _CHOICES:
        differ = {"model": _CHOICES[name]} | {key: value for key, value in differ.items() if key != "model._target_"}
    return " ".join(shlex.quote(f"{key}={value}") for key, value in differ.items())


def _described(cfg: DictConfig, weights: Weights, done: Transfer) -> str:
    """What became of the channels, and a table of the weights by parts of the network."""
    kinds = {"loaded": done.loaded, "adapted": done.adapted, "new": done.left, "not used": done.unused}
    parts: dict[str, list[int]] = {}
    for column, names in enumerate(kinds.values()):
        for name in names:
            first, second = [*name.split("."), ""][:2]
            part = f"{first}.{second}" if second.isdecimal() else first
            parts.setdefault(part, [0] * len(kinds))[column] += 1
    lines = [f"{cfg.weights}, those that match"]
    if done.inputs:
        new = [name for name in cfg.data.modalities if name not in weights.inputs]
        kept = [name for name in cfg.data.modalities if name in weights.inputs]
        lines.append(
            f"input channels, in {', '.join(done.inputs)}: {', '.join(kept) or 'none'} by name"
            + (f"; {', '.join(new)} as the mean of {', '.join(weights.inputs)}" if new else "")
        )
    if done.outputs:
        new = [name for name in _outputs(cfg) if name not in weights.outputs]
        kept = [name for name in _outputs(cfg) if name in weights.outputs]
        lines.append(
            f"output channels, in {', '.join(done.outputs)}: {', '.join(kept)} by name"
            + (f"; {', '.join(new)} new" if new else "")
        )
    rows = [(part, *(count or "" for count in counts)) for part, counts in sorted(parts.items())]
    total = ("all", *(len(names) for names in kinds.values()))
    return "\n".join([*lines, as_text(table_of(("part", *kinds), [*rows, total])).rstrip()])
