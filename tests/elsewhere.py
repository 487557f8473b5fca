"""A device that is not the CPU, on a machine that has no other: it computes real values, and sees what it's asked to.

Tensors moved ``to(DEVICE)`` inside the context `elsewhere` say that they are there, and hold their values on the CPU.
What a GPU refuses they refuse: an operation on tensors here and there, also where torch's own ``meta`` lets it pass.
What a GPU does at the price of a wait is written down: copies between here and there, values the host asks for, and
results whose size depends on values. So is the number of operations, which on a GPU are launches. Autograd works;
autocast and fused optimisers this device has none of, and its generators are the CPU's.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from brats_lightning.data.augment.randomness import new_seed

aten = torch.ops.aten
DEVICE = torch.device("meta")  # a device that torch knows autograd for, and that no test needs as it is
_COPIES = (aten._to_copy.default, aten.copy_.default)
_WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "_unique2", "equal", "is_nonzero")


class Elsewhere(Tensor):
    """A tensor that is elsewhere; ``held`` has its values."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {}, None)


class Elsewheres(TorchDispatchMode):
    """Makes tensors elsewhere when asked to.

    Attributes:
        launches: operations there, by name.
        waits: what the host would wait for, by the kind of wait and the function of the package that asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()

    def forget(self) -> None:
        """Begin to count anew."""
        self.launches.clear()
        self.waits.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {}, self)


@contextmanager
def elsewhere() -> Iterator[Elsewheres]:
    """Tensors can be made elsewhere, and what becomes of them is counted."""
    with patch("brats_lightning.data.augment.intensity.on_device", _generator), _Literals(), Elsewheres() as mode:
        yield mode


def _generator(generator: torch.Generator, device: torch.device) -> torch.Generator:
    return torch.Generator().manual_seed(new_seed(generator))


class _Literals(TorchFunctionMode):
    """``torch.tensor(…, device=…)`` is a copy, which would pass below the other mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def _call(func: Any, args: Any, kwargs: dict[str, Any], mode: Elsewheres | None) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    # A GPU takes the value of a CPU's scalar along, but for an index.
    if there and func not in _COPIES and any(tensor.ndim or "index" in str(func) for tensor in here):
        raise RuntimeError(f"{func} of tensors here {[tuple(t.shape) for t in here]} and elsewhere")
    target = bool(there) if asked is None else asked.type == DEVICE.type
    if func is aten.copy_.default:
        target = isinstance(args[0], Elsewhere)
    if mode is not None:
        _count(mode, func, args, kwargs, there, here, target)
    if asked is not None:
        kwargs = {**kwargs, "device": "cpu"}
    result = func(*tree_map_only(Elsewhere, _held, args), **tree_map_only(Elsewhere, _held, kwargs))
    if not target:
        return result
    known = {id(tensor.held): tensor for tensor in there}  # an operation in place returns what it got
    return tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else Elsewhere(t), result)


def _held(tensor: Elsewhere) -> Tensor:
    return tensor.held


def _count(mode: Elsewheres, func: Any, args: Any, kwargs: Any, there: Any, here: Any, target: bool) -> None:
    name = func._schema.name.removeprefix("aten::")
    if func in _COPIES:
        source = args[1] if func is aten.copy_.default else args[0]
        if isinstance(source, Elsewhere) != target:
            begun = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            mode.waits["begun" if begun else "to there" if target else "to here", _asker()] += 1
    if not there and not target:
        return
    masks = name in ("index", "index_put_") and any(tensor.dtype == torch.bool for tensor in there[1:])
    if name in _WAITING or masks:
        mode.waits[name, _asker()] += 1
    returns = func._schema.returns
    view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    if not view and "empty" not in name:
        mode.launches[name] += 1


def _asker() -> str:
    """The innermost function of the package that is at work."""
    frame = sys._getframe()
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("brats_lightning"):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_name
