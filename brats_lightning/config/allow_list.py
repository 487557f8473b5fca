"""What a saved config may build: it names code and may come from anyone, so it is checked against an allow-list."""

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import hydra
from hydra.errors import InstantiationException
from torch import nn

from brats_lightning.config.values import within
from brats_lightning.inference.postprocessing import Step

_NETWORKS = ("brats_lightning", "torch.nn", "monai.networks")  # whose networks any checkpoint may build
# Networks that always fetch or read weights, and arguments that make others do so.
_FETCHING = ("monai.networks.nets.transchex", "monai.networks.nets.cell_sam_wrapper")
_FETCH = re.compile("pretrained|url")
# The classes of ours that say how a network is applied.
SETTINGS = (
    "brats_lightning.inference.windows.SlidingWindow",
    "brats_lightning.inference.postprocessing.rules.Postprocessing",
)
# Functions that list the cases of a run, and the ones called in their place: no checkpoint may fill folders.
_LAYOUTS = (
    "brats_lightning.data.layouts.brats.find_cases",
    "brats_lightning.data.layouts.nnunet.nnunet_cases",
    "brats_lightning.data.layouts.datalist.datalist_cases",
    "brats_lightning.data.layouts.bids.bids_cases",
    "brats_lightning.data.layouts.files.pattern_cases",
)
SOURCES = {
    **{name: name for name in _LAYOUTS},
    "brats_lightning.synthetic.phantom.phantom_cases": "brats_lightning.synthetic.phantom.made_phantoms",
    "brats_lightning.synthetic.implant.implanted_cases": "brats_lightning.synthetic.implant.made_implanted",
}

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_DIRECTIVES = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


class CheckpointError(ValueError):
    """A file that is not a checkpoint of this program, or does not fit its own config."""


class UntrustedTarget(CheckpointError):
    """A saved config names code that it may not run."""


def build_saved(
    node: Any, trust: Sequence[str] = (), origin: str = "the config", known: Sequence[str] = SETTINGS
) -> Any:
    """Build a node of a saved config as ``hydra.utils.instantiate`` does, with plain containers, if it is harmless.

    The whole node is checked before any of it is built. A ``_target_`` at any depth must be a ``torch.nn.Module``
    defined in ``brats_lightning``, ``torch.nn`` or ``monai.networks``, a step of post-processing, another class or
    function of ours named in ``known``, or one defined in a package of ``trust``. Nothing outside these packages is
    imported for the check. References (``${…}``) can run code and are refused, and so is ``???``, which Hydra takes for
    a missing value.

    Args:
        node: plain containers and values.
        trust: names of packages.
        origin: of the config, for messages.
        known: dotted names of classes and functions that are allowed besides networks.

    Raises:
        UntrustedTarget: a target that is not on the list, or anything else that could be code.
        CheckpointError: a target that does not exist, or does not take its settings.
    """
    _AllowList(tuple(trust), origin, tuple(known)).judge(node, "")
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except (InstantiationException, TypeError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, InstantiationException | TypeError):
            raise CheckpointError(f"{origin}: its config cannot be built: {cause}") from error
        raise cause from None  # a class that refuses its settings, or a missing file


@dataclass(frozen=True)
class _AllowList:
    trust: tuple[str, ...]
    origin: str
    known: tuple[str, ...]

    def judge(self, node: Any, where: str) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                # The keys of label maps are numbers; keyword arguments must be names.
                if not isinstance(name, str) and ("_target_" in node or type(name) is not int):
                    raise self._refusal(f"the key {name!r} of {where or 'the config'} is not text")
                self.judge(value, f"{where}.{name}".lstrip("."))
            if "_target_" in node:
                self._judge_call(node, f"{where}.".lstrip("."))
        elif isinstance(node, list | tuple):
            for index, value in enumerate(node):
                self.judge(value, f"{where}[{index}]")
        elif isinstance(node, str):
            if "${" in node or node == "???":
                raise self._refusal(f"{where} is the reference {node!r}; a saved config holds values only")
        elif node is not None and type(node) not in (bool, int, float):
            raise self._refusal(f"{where} is of type {type(node).__name__}; a saved config holds plain values")

    def _judge_call(self, node: dict[str, Any], prefix: str) -> None:
        """Refuse a target that is not on the list, and settings, given or default, that would fetch weights."""
        target = self._locate(node["_target_"], f"{prefix}_target_")
        if not isinstance(arguments := node.get("_args_", []), list | tuple):
            raise self._refusal(f"{prefix}_args_ is of type {type(arguments).__name__}; it must be a list")
        if self._trusts(target):
            return
        settings = {name: value for name, value in node.items() if name not in _DIRECTIVES}
        try:
            bound = inspect.signature(target).bind_partial(*arguments, **settings)
        except TypeError as error:
            raise CheckpointError(f"{self.origin}: {node['_target_']} does not take these settings: {error}") from error
        bound.apply_defaults()
        passed = {**bound.arguments, **settings}
        if names := [name for name, value in passed.items() if _FETCH.search(name) and value]:
            raise self._refusal(
                f"{names[0]}={passed[names[0]]!r} of {target.__module__}.{target.__qualname__} would fetch weights "
                f"from elsewhere; if you trust it: 'trust=[{target.__module__.split('.')[0]}]'"
            )

    def _locate(self, target: Any, where: str) -> Callable[..., Any]:
        """The class or function of a target, if it is on the list."""
        refusal = self._refusal(
            f"{where} wants to run {target!r}. A saved config may build only networks of {', '.join(_NETWORKS)}. If "
            f"you know this code and trust it, name the package that defines it: 'trust=[{str(target).split('.')[0]}]'"
        )
        named = isinstance(target, str) and _NAME.fullmatch(target)
        if not named or not within(target, (*_NETWORKS, *self.trust)):
            raise refusal
        module, _, name = target.rpartition(".")
        package, _, path = target.partition(".")
        try:
            # An attribute of a module, never one of another attribute: what a module has imported is out of reach.
            found = getattr(importlib.import_module(module), name)
            # Hydra follows attributes and must find the same object: an attribute may have the name of a submodule.
            same = found is attrgetter(path)(importlib.import_module(package))
        except (ImportError, AttributeError) as error:
            raise CheckpointError(f"{self.origin}: {where}: {target} cannot be imported: {error}") from error
        if not same or not (inspect.isclass(found) or inspect.isfunction(found)) or not self._allows(found):
            raise refusal
        return found

    def _allows(self, found: Callable[..., Any]) -> bool:
        home = found.__module__
        if self._trusts(found) or f"{home}.{found.__qualname__}" in self.known:
            return True
        network = inspect.isclass(found) and issubclass(found, nn.Module | Step)
        return network and within(home, _NETWORKS) and not within(home, _FETCHING)

    def _trusts(self, found: Callable[..., Any]) -> bool:
        return within(found.__module__, self.trust)

    def _refusal(self, what: str) -> UntrustedTarget:
        return UntrustedTarget(f"{self.origin}: {what}")
