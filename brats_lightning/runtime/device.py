"""The device that computes, and the host beside it: how much is worked on at once, and what is copied between them.

A GPU works off what it is given while the host goes on giving. A copy to or from ordinary memory ends that: the host
waits until all given so far is done, and then the GPU waits for the host. So every copy in a training step is one of
those below.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


def chunk_size(device: torch.device) -> int:
    """Values to be worked on at a time: a CPU keeps that many in its cache, for a GPU few launches matter more."""
    return 1 << 17 if device.type == "cpu" else 1 << 22


def knows_uint16(device: torch.device) -> bool:
    """Whether tensors of uint16 may be there: on Apple's GPUs torch 2.8 has none."""
    return device.type != "mps"


def on_host(tensor: Shaped[Tensor, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """A tensor's values as an array, a CPU tensor's its own memory. The host waits for a GPU: once a case is fine."""
    return tensor.detach().cpu().numpy()


def begin_on_host(tensor: Shaped[Tensor, "*shape"]) -> Callable[[], Shaped[np.ndarray, "*shape"]]:
    """`on_host` without waiting: what it returns gives the array, in whichever thread it is called, once it is there.

    Args:
        tensor: not to be changed until then.
    """
    if tensor.device.type != "cuda":
        array = tensor.detach().cpu().numpy()
        return lambda: array
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    copied = torch.cuda.current_stream(tensor.device).record_event()

    def arrived() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return arrived


def to_device(
    array: Shaped[np.ndarray, "*shape"], device: torch.device, dtype: torch.dtype | None = None
) -> Shaped[Tensor, "*shape"]:
    """An array as a tensor, of a dtype it gets on the host; a CPU's shares the array's memory, a GPU is not waited for.

    Args:
        array: the values.
        device: where they are wanted.
        dtype: None keeps the array's.
    """
    tensor = torch.from_numpy(array).to(dtype or torch.from_numpy(array).dtype)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def take(tensor: Tensor, numbers: Sequence[int]) -> Tensor:
    """``tensor[:, numbers]``, which would make a GPU wait for the numbers."""
    return torch.stack([tensor.select(1, number) for number in numbers], 1)
