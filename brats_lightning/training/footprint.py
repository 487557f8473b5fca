"""The memory of a training step, and its arithmetic, counted without doing it.

The network runs forward and backward on torch's ``meta`` device, where tensors have sizes but no content, so that a
GPU's step is counted on any machine. The memory is ::

    parameters · (weights + gradient + optimiser's states + average of the weights + reduced copy) + batch + features

with 4 bytes each for weights, gradient and average, what the optimiser keeps (AdamW: 8) and 2 bytes for the copy that
autocast makes of each weight. *Features* is the most that all other tensors of the two passes hold at one time: what
the forward pass keeps for the backward pass, and the largest temporary results beside it. The loss counts as the
gradient of the logits, which is what those of this package need.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

TYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step on one device, and its floating-point operations."""

    parameters: int  # their number
    state: int  # weights, gradients, what the optimiser and the average keep, reduced copies
    batch: int  # images and masks
    features: int  # the most that all other tensors of the step hold at one time
    flop: int  # of convolutions and matrix products; a multiplication and an addition are two

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.state + self.batch + self.features


class LiveTensors(TorchDispatchMode):
    """Counts the bytes that tensors made within it hold, each storage once, and the most at any time.

    Args:
        known: tensors whose storages are not counted, whatever is done in them.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._held = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and note what it made."""
        del types
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            self._held.add(key)
            self.bytes += storage.nbytes()
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.bytes -= size


def step_footprint(
    network: nn.Module,
    batch: Sequence[int],
    precision: str | int,
    optimizer: Callable[[Any], torch.optim.Optimizer],
    averaged: bool = False,
) -> Footprint:
    """Count one training step.

    Args:
        network: on the ``meta`` device; in training mode. It is changed.
        batch: (b, c, z, y, x) of the images.
        precision: as Lightning names it: ``bf16-mixed``, ``16-mixed``, ``32-true`` …
        optimizer: parameters → optimiser.
        averaged: whether an average of the weights is kept.
    """
    name, _, kind = str(precision).partition("-")
    mixed, reduced = kind == "mixed", TYPES[name]
    weight = 4 if mixed else reduced.itemsize
    parameters = list(network.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    state = count * (2 * weight + state_bytes(optimizer) * weight // 4 + weight * averaged)
    state += count * reduced.itemsize * mixed
    samples, channels, *size = batch
    # The quantised intensities as read, the normalised image and what autocast makes of it; the mask.
    per_voxel = channels * (2 + 4 + (reduced.itemsize if reduced.itemsize != 4 else 0)) + 1

    network.to(reduced)
    image = torch.empty(tuple(batch), dtype=reduced, device="meta").contiguous(memory_format=torch.channels_last_3d)
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)  # they are in ``state``
    live = LiveTensors([image, *parameters, *network.buffers()])
    flop = FlopCounterMode(display=False)
    with flop, live:
        logits = network(image)
        levels = list(logits) if isinstance(logits, list | tuple) else [logits]
        torch.autograd.backward(levels, [torch.empty_like(level) for level in levels])
        del logits, levels
    return Footprint(count, state, samples * math.prod(size) * per_voxel, live.most, flop.get_total_flops())


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def state_bytes(optimizer: Callable[[Any], torch.optim.Optimizer]) -> int:
    """Bytes that an optimiser keeps for each 32-bit parameter: AdamW 8, SGD with momentum 4."""
    parameter = nn.Parameter(torch.zeros(64))
    parameter.grad = torch.zeros(64)
    made = optimizer([parameter])
    made.step()
    kept = (value for value in made.state[parameter].values() if isinstance(value, Tensor))
    return sum(value.nbytes for value in kept if value.numel() == 64) // 64
