"""Reading checkpoints and the trained models in them."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from brats_lightning.config.allow_list import SOURCES, CheckpointError, build_saved
from brats_lightning.config.ensemble_file import ensemble_members
from brats_lightning.config.values import listed
from brats_lightning.core.labels import LabelScheme
from brats_lightning.core.targets import make_target
from brats_lightning.data.cases import Case
from brats_lightning.data.normalisation import Normaliser
from brats_lightning.data.preprocessing import Preprocessing
from brats_lightning.data.splits import PARTS, read_split
from brats_lightning.inference.ensemble import CHECKPOINT_FORMAT, Ensemble, TrainedModel
from brats_lightning.inference.windows import SlidingWindow
from brats_lightning.runtime.device import autocast_dtype, choose_device
from brats_lightning.runtime.memory import keep_freed_memory

log = logging.getLogger(__name__)


def load_model(path: Path | str, trust: Sequence[str] = (), inference: Mapping[str, Any] | None = None) -> TrainedModel:
    """The model of a checkpoint that ``brats_lightning.train`` wrote, in evaluation mode, on the CPU.

    Args:
        path: of a checkpoint from any source: of its config only what `build_saved` allows is built.
        trust: further packages whose code the config may use.
        inference: settings that replace those of the run's sliding window; a value of None keeps the run's.

    Raises:
        CheckpointError: no such file, not a checkpoint of this program, or weights that do not fit.
        UntrustedTarget: the config names code outside the allow-list.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    config = checkpoint["config"]
    try:
        window = dict(config["inference"]) | {k: v for k, v in (inference or {}).items() if v is not None}
        built = build_saved({"model": config["model"], "inference": window}, trust, str(path))
        network, sliding, data = built["model"], built["inference"], config["data"]
        if not isinstance(network, nn.Module) or not isinstance(sliding, SlidingWindow):
            raise CheckpointError(f"{path}: its config's model and inference make {network!r} and {sliding!r}")
        load_weights(network, checkpoint, f"{path}: the weights do not fit its config's model")
        return TrainedModel(
            path=path,
            network=network.eval().requires_grad_(False).to(memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
            normaliser=Normaliser(data["modalities"], optional=data["optional"], **data["normalisation"]),
            preprocessing=Preprocessing(**data["preprocessing"]),
            target=make_target(config["target"], LabelScheme(tuple(data["labels"])), extra=config.get("target_extra")),
            inference=sliding,
            config=config,
            split=split_of(path, checkpoint),
            seen=checkpoint.get("seen", ()),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its config's settings are not those of this version: {error}") from error


def split_of(path: Path, checkpoint: Mapping[str, Any]) -> Mapping[str, Sequence[str]] | None:
    """The split in a checkpoint, or that of its run folder."""
    if (split := checkpoint.get("split")) is not None:
        return {part: tuple(map(str, split[part])) for part in PARTS}
    file = path.parent.parent / "split.json"
    return read_split(file, "ckpt") if file.is_file() else None


def network_weights(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint's network."""
    return {k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items() if k.startswith("network.")}


def load_weights(network: nn.Module, checkpoint: Mapping[str, Any], mismatch: str) -> None:
    """Load a checkpoint's weights into a network, or raise a CheckpointError that begins with ``mismatch``."""
    try:
        network.load_state_dict(network_weights(checkpoint))
    except RuntimeError as error:  # whose message has a line for each weight
        lines = [line.strip() for line in str(error).splitlines()]
        more = f" and {len(lines) - 2} more" if len(lines) > 2 else ""
        raise CheckpointError(f"{mismatch}: {lines[min(1, len(lines) - 1)][:200]}{more}") from error


def load_ensemble(cfg: DictConfig) -> Ensemble:
    """The models of a config's ``ckpt``, for its ``device`` and ``precision``.

    Each predicts windows as the config's ``inference`` says, else as the ensemble's file does, else as its run did.
    """
    keep_freed_memory()
    members = ensemble_members(listed(cfg.ckpt))
    asked: Any = OmegaConf.to_container(cfg.inference)
    asked = {name: value for name, value in asked.items() if value is not None}
    models = [load_model(member.ckpt, tuple(cfg.trust), {**member.inference, **asked}) for member in members]
    device = choose_device(cfg.device)
    dtype = autocast_dtype(cfg.precision, device)
    bits = "32 bits" if dtype is None else str(dtype).removeprefix("torch.")
    log.info("models: %d, on %s, %s", len(models), device, bits)
    weights, regions = [member.weight for member in members], [member.regions for member in members]
    return Ensemble(models, device, dtype, weights, regions)


def affine_tolerance(cfg: DictConfig, ensemble: Ensemble) -> float:
    """The config's tolerance in mm, by default the largest that the models were trained with."""
    if cfg.affine_tolerance is not None:
        return float(cfg.affine_tolerance)
    return float(max(model.config["data"]["affine_tolerance"] for model in ensemble.models))


def trained_cases(model: TrainedModel, trust: Sequence[str] = ()) -> list[Case]:
    """The cases of a model's run, where the run found them; nothing is written.

    Raises:
        FileNotFoundError: they are no longer there.
        UntrustedTarget: the config lists them by code outside the allow-list.
    """
    source = model.config["data"]["source"]
    source = source | {"_target_": SOURCES.get(str(source.get("_target_")), source.get("_target_"))}
    return build_saved(source, trust, str(model.path), tuple(SOURCES.values()))


def read_checkpoint(path: Path | str, key: str = "ckpt") -> dict[str, Any]:
    """The content of a checkpoint of this program; its tensors are memory-mapped and read when they are used.

    Args:
        path: of a checkpoint from any source: only tensors and plain containers are read.
        key: of the setting that names it, for messages.

    Raises:
        CheckpointError: no such file, or not a checkpoint of this program.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        inside = path / "checkpoints/best.ckpt"
        found = inside if inside.is_file() else "<run folder>/checkpoints/best.ckpt"
        raise CheckpointError(f"{key}: there is no checkpoint {path}; set {key}={found}")
    checkpoint = load_plain(path, key)
    config = checkpoint.get("config") if isinstance(checkpoint, dict) else None
    if not isinstance(config, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{key}: {path} holds no 'state_dict' and 'config': it was not written by brats_lightning.train"
        )
    if (found := checkpoint.get("format")) != CHECKPOINT_FORMAT:
        was = "without a format number" if found is None else f"of format {found!r}"
        raise CheckpointError(
            f"{key}: {path} is {was}; this version reads format {CHECKPOINT_FORMAT}: train again, or use the version "
            "that wrote it"
        )
    return checkpoint


def load_plain(path: Path, key: str, allowed: Sequence[Any] = ()) -> Any:
    """The content of a file that ``torch.save`` wrote: memory-mapped tensors, plain containers and ``allowed`` classes.

    Raises:
        CheckpointError: it is damaged, or holds anything else; the message begins with ``key``.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # torch's, about kinds of archives that our callers refuse
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{key}: {path} is damaged, or holds more than tensors and plain containers: {first}"
        ) from error
