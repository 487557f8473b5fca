"""Checkpoints to trained models, and what a checkpoint may build: its config names code, so there is an allow-list."""

import importlib
import inspect
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from brats_lightning.core.labels import LabelScheme
from brats_lightning.core.targets import make_target
from brats_lightning.data.cases import Case
from brats_lightning.data.normalisation import Standardiser
from brats_lightning.data.preprocessing import Preprocessing
from brats_lightning.inference.ensemble import Ensemble, TrainedModel
from brats_lightning.inference.postprocessing import Step
from brats_lightning.inference.windows import SlidingWindow
from brats_lightning.runtime.device import autocast_dtype, choose_device
from brats_lightning.runtime.memory import keep_freed_memory

log = logging.getLogger(__name__)

# Whose networks any checkpoint may build, and what else of ours: how it is applied, and where its cases were. What
# makes cases stands for what reads those that it made: no checkpoint may fill folders that it names.
_NETWORKS = ("brats_lightning", "torch.nn", "monai.networks")
# Networks that fetch or read weights whatever they are told, and arguments that make others do so.
_FETCHING = ("monai.networks.nets.transchex", "monai.networks.nets.cell_sam_wrapper")
_FETCH = re.compile("pretrained|url")
SETTINGS = (
    "brats_lightning.inference.windows.SlidingWindow",
    "brats_lightning.inference.postprocessing.Postprocessing",
)
SOURCES = {
    "brats_lightning.data.cases.find_cases": "brats_lightning.data.cases.find_cases",
    "brats_lightning.synthetic.phantom.phantom_cases": "brats_lightning.synthetic.phantom.made_phantoms",
    "brats_lightning.synthetic.implant.implanted_cases": "brats_lightning.synthetic.implant.made_implanted",
}

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_DIRECTIVES = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


class CheckpointError(ValueError):
    """A file that is no checkpoint of this program, or does not fit its own config."""


class UntrustedTarget(CheckpointError):
    """A saved config names code that it may not run."""


def load_model(path: Path | str, trust: Sequence[str] = (), inference: Mapping[str, Any] | None = None) -> TrainedModel:
    """The model of a checkpoint that ``brats_lightning.train`` wrote, in evaluation mode, on the CPU.

    Args:
        path: of the checkpoint. It may come from anyone: only tensors and plain containers are read from it, and only
            what `build` allows is made of its config.
        trust: packages whose code the config may use too.
        inference: replaces settings of the run's sliding window; None as value keeps the run's.

    Raises:
        CheckpointError: no such file, not a checkpoint of this program, or weights that do not fit.
        UntrustedTarget: the config names code outside the allow-list.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path)
    config = checkpoint["config"]
    window = dict(config["inference"]) | {k: v for k, v in (inference or {}).items() if v is not None}
    network, sliding = (build(node, trust, str(path)) for node in (config["model"], window))
    if not isinstance(network, nn.Module) or not isinstance(sliding, SlidingWindow):
        raise CheckpointError(f"{path}: its config's model and inference make {network!r} and {sliding!r}")
    weights = {k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items() if k.startswith("network.")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the weights do not fit its config's model: {error}") from error
    try:
        data = config["data"]
        return TrainedModel(
            path=path,
            network=network.eval().requires_grad_(False).to(memory_format=torch.channels_last_3d),  # type: ignore[call-overload]
            standardiser=Standardiser(data["modalities"], **data["normalisation"]),
            preprocessing=Preprocessing(**data["preprocessing"]),
            target=make_target(config.get("target", "classes"), LabelScheme(tuple(data["labels"]))),
            inference=sliding,
            config=config,
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its config's data settings are not this version's: {error}") from error


def load_ensemble(cfg: DictConfig) -> Ensemble:
    """The models of ``ckpt`` with ``inference``'s overrides, on the ``device`` and at the ``precision`` of a config."""
    keep_freed_memory()
    paths = [cfg.ckpt] if isinstance(cfg.ckpt, str) else cfg.ckpt
    overrides: Any = OmegaConf.to_container(cfg.inference)
    models = [load_model(path, tuple(cfg.trust), overrides) for path in paths]
    device = choose_device(cfg.device)
    dtype = autocast_dtype(cfg.precision, device)
    log.info("%d model(s) on %s, %s", len(models), device, "32 bits" if dtype is None else dtype)
    return Ensemble(models, device, dtype)


def affine_tolerance(cfg: DictConfig, ensemble: Ensemble) -> float:
    """The config's, else what the models were trained with."""
    if cfg.affine_tolerance is not None:
        return float(cfg.affine_tolerance)
    return float(max(model.config["data"]["affine_tolerance"] for model in ensemble.models))


def trained_cases(model: TrainedModel, trust: Sequence[str] = ()) -> list[Case]:
    """The cases of a model's run, where they were then; nothing is written.

    Raises:
        FileNotFoundError: they are not there.
        UntrustedTarget: the config lists them by code outside the allow-list.
    """
    source = model.config["data"]["source"]
    source = source | {"_target_": SOURCES.get(str(source.get("_target_")), source.get("_target_"))}
    return build(source, trust, str(model.path), tuple(SOURCES.values()))


def read_checkpoint(path: Path | str, key: str = "ckpt") -> dict[str, Any]:
    """What is in a checkpoint of this program; its tensors are mapped from the file and read when they are used.

    Args:
        path: it may come from anyone: nothing but tensors and plain containers is read.
        key: of the setting that names it, for messages.

    Raises:
        CheckpointError: no such file, or not a checkpoint of this program.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{key}: there is no checkpoint {path}; set {key}=<run folder>/checkpoints/best.ckpt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of archives of a kind that will be refused
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{key}: {path} is damaged, or holds more than tensors and plain containers: {first}"
        ) from error
    config = checkpoint.get("config") if isinstance(checkpoint, dict) else None
    parts = ("model", "data", "inference")
    if not isinstance(config, dict) or "state_dict" not in checkpoint or not all(part in config for part in parts):
        raise CheckpointError(
            f"{key}: {path} holds no 'state_dict' and 'config': it was not written by brats_lightning.train"
        )
    return checkpoint


def build(node: Any, trust: Sequence[str] = (), origin: str = "the config", known: Sequence[str] = SETTINGS) -> Any:
    """What a node of a saved config describes: ``_target_`` called with its other entries, nested ones built first.

    It means what ``hydra.utils.instantiate`` means by it (``_args_``, ``_partial_`` and ``_recursive_`` too), but a
    target is looked up here, and must turn out to be

    - a ``torch.nn.Module`` defined in ``brats_lightning``, ``torch.nn`` or ``monai.networks``, or a step of
      post-processing defined in the first,
    - a class or function of ours that ``known`` names, or
    - a class or function defined in a package of ``trust``.

    Nothing outside these packages is imported to find out. References (``${…}``) are refused: they may run code too.

    Args:
        node: plain containers and values.
        trust: names of packages.
        origin: of the config, for messages.
        known: names of what is built besides networks.

    Raises:
        UntrustedTarget: a target not on the list, or anything else that could be code.
        CheckpointError: a target that does not exist, or does not take its settings.
    """
    rules = _Rules(tuple(trust), origin, tuple(known))
    rules.judge(node, "")
    return _build(node, rules)


def _build(node: Any, rules: "_Rules") -> Any:
    if isinstance(node, list | tuple):
        return [_build(item, rules) for item in node]
    if not isinstance(node, Mapping):
        return node
    if not node.get("_recursive_", True):
        values = dict(node)
    else:
        values = {name: _build(value, rules) for name, value in node.items() if name != "_target_"}
    if "_target_" not in node:
        return values
    target = rules.locate(node["_target_"], "")
    arguments = values.get("_args_", [])
    values = {name: value for name, value in values.items() if name not in _DIRECTIVES}
    if not rules.trusts(target):
        rules.refuse_fetching(target, arguments, values)
    if node.get("_partial_"):
        return partial(target, *arguments, **values)
    try:
        return target(*arguments, **values)
    except TypeError as error:
        raise CheckpointError(f"{rules.origin}: {node['_target_']} does not take these settings: {error}") from error


@dataclass(frozen=True)
class _Rules:
    trust: tuple[str, ...]
    origin: str
    known: tuple[str, ...]

    def judge(self, node: Any, where: str) -> None:
        """Refuse a whole config before any part of it is built."""
        if isinstance(node, Mapping):
            if "_target_" in node:
                self.locate(node["_target_"], f"{where}._target_".lstrip("."))
            for name, value in node.items():
                # Label maps have numbers for keys; keyword arguments must be names.
                if not isinstance(name, str) and ("_target_" in node or type(name) is not int):
                    raise self._refusal(f"the key {name!r} of {where or 'the config'} is no text")
                self.judge(value, f"{where}.{name}".lstrip("."))
        elif isinstance(node, list | tuple):
            for index, value in enumerate(node):
                self.judge(value, f"{where}[{index}]")
        elif isinstance(node, str):
            if "${" in node:
                raise self._refusal(f"{where} is the reference {node!r}; a saved config holds values only")
        elif node is not None and type(node) not in (bool, int, float):
            raise self._refusal(f"{where} is of type {type(node).__name__}; a saved config holds plain values")

    def locate(self, target: Any, where: str) -> Callable[..., Any]:
        """The class or function of a target, if it is on the list."""
        refusal = self._refusal(
            f"{where} wants to run {target!r}. Of a saved config only networks of {', '.join(_NETWORKS)} are built. If "
            f"you know this code and trust it, name the package that defines it: 'trust=[{str(target).split('.')[0]}]'"
        )
        if not isinstance(target, str) or not _NAME.fullmatch(target):
            raise refusal
        if not any(_inside(target, name) for name in (*_NETWORKS, *self.trust)):
            raise refusal
        module, _, name = target.rpartition(".")
        try:
            # Only modules are walked, never attributes of modules: what a module has imported cannot be reached.
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise CheckpointError(f"{self.origin}: {where}: {target} cannot be imported: {error}") from error
        if not (inspect.isclass(found) or inspect.isfunction(found)) or not self._allows(found):
            raise refusal
        return found

    def trusts(self, found: Callable[..., Any]) -> bool:
        """Whether the user vouches for the package."""
        return any(_inside(found.__module__, package) for package in self.trust)

    def refuse_fetching(self, target: Callable[..., Any], arguments: Sequence[Any], values: Mapping[str, Any]) -> None:
        """Refuse settings, given or default, by which a network would fetch weights before it gets its own."""
        try:
            bound = inspect.signature(target).bind_partial(*arguments, **values)
        except (TypeError, ValueError):  # calling it will say why
            return
        bound.apply_defaults()
        told = {**bound.arguments, **values}
        if names := [name for name, value in told.items() if _FETCH.search(name) and value]:
            raise self._refusal(
                f"{names[0]}={told[names[0]]!r} of {target.__module__}.{target.__qualname__} would fetch weights from "
                f"elsewhere; if you trust it: 'trust=[{target.__module__.split('.')[0]}]'"
            )

    def _allows(self, found: Callable[..., Any]) -> bool:
        home = found.__module__
        if self.trusts(found) or f"{home}.{found.__qualname__}" in self.known:
            return True
        network = inspect.isclass(found) and issubclass(found, nn.Module | Step)
        built = any(_inside(home, package) for package in _NETWORKS)
        return network and built and not any(_inside(home, module) for module in _FETCHING)

    def _refusal(self, what: str) -> UntrustedTarget:
        return UntrustedTarget(f"{self.origin}: {what}")


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")
