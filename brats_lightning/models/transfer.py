"""Weights of one network as the start of another with other input or output channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """A trained network: its state dict, and what its channels are.

    Attributes:
        tensors: by name.
        inputs: names of the input channels: modalities.
        outputs: names of the output channels: classes or regions.
    """

    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class Transfer:
    """Names of a network's weights by where they come from."""

    loaded: list[str] = field(default_factory=list)  # as they are
    inputs: list[str] = field(default_factory=list)  # adapted along the input channels
    outputs: list[str] = field(default_factory=list)  # adapted along the output channels
    left: list[str] = field(default_factory=list)  # as the network was made
    unused: list[str] = field(default_factory=list)  # weights that the network has no place for

    @property
    def adapted(self) -> list[str]:
        """Weights along either channels."""
        return [*self.inputs, *(name for name in self.outputs if name not in self.inputs)]


Axes = Mapping[str, int]  # name of a weight → the axis that is as long as the network has input, or output, channels


def channel_axes(network: nn.Module, wider: nn.Module, channels: int) -> dict[str, int]:
    """The weights whose shape depends on a number of channels, and the axis along which it does.

    Args:
        network: with so many channels.
        wider: with one more, all else being the same.
        channels: input or output channels of the first.
    """
    narrow, wide = network.state_dict(), wider.state_dict()
    axes = {}
    for name, tensor in narrow.items():
        if name in wide and wide[name].ndim == tensor.ndim:
            longer = [a for a, (n, w) in enumerate(zip(tensor.shape, wide[name].shape, strict=True)) if n != w]
            if len(longer) == 1 and tensor.shape[longer[0]] == channels:
                axes[name] = longer[0]
    return axes


@torch.no_grad()
def transfer(
    network: nn.Module, old: Weights, inputs: Sequence[str], outputs: Sequence[str], axes: tuple[Axes, Axes]
) -> Transfer:
    """Load what fits, in place.

    A weight is loaded where name and shape are the same. Input channels are matched by name, and a new one starts with
    the mean of the old ones' weights. Output channels are matched by name, and a new one keeps the start that the
    network gave it.

    Args:
        network: to be filled.
        old: what it is filled with.
        inputs: names of the network's input channels.
        outputs: names of its output channels.
        axes: of the weights along its input and along its output channels, as `channel_axes` finds them.
    """
    result, state = Transfer(), network.state_dict()
    result.unused = [name for name in old.tensors if name not in state]
    for name, new in state.items():
        tensor, found = old.tensors.get(name), result.loaded
        if tensor is not None and (axis := axes[0].get(name)) is not None and tuple(inputs) != old.inputs:
            tensor, found = _by_name(tensor, axis, old.inputs, inputs, None), result.inputs
        if tensor is not None and (axis := axes[1].get(name)) is not None and tuple(outputs) != old.outputs:
            matched = set(outputs) & set(old.outputs)
            tensor, found = _by_name(tensor, axis, old.outputs, outputs, new) if matched else None, result.outputs
        if tensor is None or tensor.shape != new.shape:
            result.left.append(name)
        else:
            new.copy_(tensor)
            found.append(name)
    return result


def _by_name(
    tensor: Tensor, axis: int, before: Sequence[str], after: Sequence[str], new: Tensor | None
) -> Tensor | None:
    """The weight with other channels, those it lacks from ``new`` or else their mean; None for one of another shape."""

    def others(shape: torch.Size) -> list[int]:
        return [*shape[:axis], *shape[axis + 1 :]]

    if tensor.ndim <= axis or tensor.shape[axis] != len(before):
        return None
    if new is None:
        fresh = tensor.mean(axis, keepdim=True).repeat_interleave(len(after), axis)
    elif others(new.shape) == others(tensor.shape):
        fresh = new
    else:
        return None
    source = [(tensor, before.index(name)) if name in before else (fresh, place) for place, name in enumerate(after)]
    return torch.cat([channels.narrow(axis, place, 1) for channels, place in source], axis)
