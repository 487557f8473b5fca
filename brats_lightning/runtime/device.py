"""The device that computes and its host: how much to process at a time, and copies between the two.

A GPU works through a queue that the host fills. A copy to or from ordinary memory stalls both: the host waits until the
queue is empty, and then the GPU waits for the host. So every copy in a training step is one of those below.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

_DEVICES = ("auto", "cpu", "cuda", "mps")


def chunk_size(device: torch.device) -> int:
    """Values to process at a time: what fits into a CPU's cache; on a GPU fewer kernel launches matter more."""
    return 1 << 17 if device.type == "cpu" else 1 << 22


def supports_uint16(device: torch.device) -> bool:
    """Whether the device can hold uint16 tensors; Apple's GPUs cannot with torch 2.8."""
    return device.type != "mps"


def on_host(tensor: Shaped[Tensor, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    """A tensor's values as an array that shares a CPU tensor's memory. The host waits for a GPU: fine once per case."""
    return tensor.detach().cpu().numpy()


def begin_on_host(tensor: Shaped[Tensor, "*shape"]) -> Callable[[], Shaped[np.ndarray, "*shape"]]:
    """`on_host` without waiting: the function returned waits for the array and returns it, in any thread.

    The tensor must not change before that.
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
    """An array as a tensor, converted on the host; on a CPU it shares memory, a GPU is not waited for."""
    tensor = torch.from_numpy(array).to(dtype or torch.from_numpy(array).dtype)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def take(tensor: Tensor, numbers: Sequence[int]) -> Tensor:
    """``tensor[:, numbers]`` without copying the numbers to a GPU, which would wait for them."""
    return torch.stack([tensor.select(1, number) for number in numbers], 1)


def fastest_precision(accelerator: str) -> str:
    """``bf16-mixed`` where the hardware computes in bfloat16, ``16-mixed`` on older GPUs, else ``32-true``."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    flags = Path("/proc/cpuinfo")  # of Linux; elsewhere 32 bits are the safe answer
    words = set(flags.read_text().split()) if flags.is_file() else set()
    return "bf16-mixed" if words & {"avx512_bf16", "amx_bf16"} else "32-true"


def check_settings(device: Any, devices: Any, precision: Any) -> None:
    """Refuse settings of the commands that predict which are good for no machine, whether or not this one has a GPU.

    Raises:
        ValueError: an unknown device or precision, or a number of processes below 1.
    """
    if device not in _DEVICES:
        raise ValueError(f"device must be {', '.join(_DEVICES)} (cuda is a GPU), got {device!r}")
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(f"devices must be a number of processes from 1 on, got {devices!r}")
    autocast_dtype(precision, torch.device("cpu"))


def choose_device(name: str) -> torch.device:
    """The device of a setting: auto is ``cuda`` where torch finds such a GPU, else ``cpu``.

    Raises:
        ValueError: an unknown name, or a GPU that is not there.
    """
    check_settings(name, 1, "auto")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    chosen = name if name != "auto" else "cuda" if available["cuda"] else "cpu"
    if not available[chosen]:
        raise ValueError(f"device={name}, but torch finds no GPU for it; device=cpu works everywhere")
    return torch.device(chosen)


def share_device(name: str, number: int, processes: int) -> None:
    """Give this process its part of what a setting names: ``cuda`` is then one GPU, a CPU has so many threads fewer.

    With more processes than GPUs, several share one.

    Args:
        name: as for `choose_device`.
        number: of this process, from 0 on.
        processes: that share the hardware.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    if choose_device(name).type == "cuda":
        torch.cuda.set_device(number % torch.cuda.device_count())


def describe_device(device: torch.device) -> str:
    """The hardware in words: a GPU's name and memory, or how many cores of a CPU are used."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB)"
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' * (threads > 1)})" if device.type == "cpu" else device.type.upper()


def autocast_dtype(precision: str | int, device: torch.device) -> torch.dtype | None:
    """The type of a setting ``precision``: auto, bf16, 16 or 32 bits; None is 32.

    Raises:
        ValueError: any other value.
    """
    chosen = fastest_precision(device.type) if precision == "auto" else str(precision)
    types = {"bf16": torch.bfloat16, "16": torch.float16, "32": None}
    try:
        return types[chosen.partition("-")[0]]
    except KeyError:
        raise ValueError(f"precision must be auto, {', '.join(types)}, got {precision!r}") from None
