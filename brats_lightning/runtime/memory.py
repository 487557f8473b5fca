"""How large blocks of memory are allocated, and kept; how much there is, and how much this process holds."""

import ctypes
import re
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the system at once; elsewhere do nothing.

    The activations of a step are large blocks, freed and wanted again at the next step. By default each is mapped anew
    and its pages are zeroed one fault at a time, which on a CPU takes about 15 % of a training step. Costs a few per
    cent more resident memory.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def empty_float32(shape: Sequence[int], device: torch.device) -> Tensor:
    """``torch.empty``, on a CPU in huge pages where the system has them.

    numpy asks Linux for them, torch does not. Filling a large new tensor then takes a few page faults instead of
    thousands, which are most of the time.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.empty(tuple(shape), np.float32))
    return torch.empty(tuple(shape), dtype=torch.float32, device=device)


_UNITS = {"": 10**9, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def as_bytes(setting: str, value: str | int | float) -> int:
    """``24GB``, ``24 GiB`` or a number of GB as bytes; a ValueError names the setting."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", str(value).strip())
    if match is None or match[2].upper() not in _UNITS or not float(match[1]):
        raise ValueError(f"{setting} must be a size such as 24GB or 22.5GiB, got {value!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def free_memory(device: torch.device, system: Path = Path("/")) -> int:
    """Bytes that a program may still take: of a GPU, or of the machine and the container around this process.

    Raises:
        ValueError: the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        free = [_numbers(system / "proc/meminfo")["MemAvailable:"] * 1024]
    except OSError:
        raise ValueError("this system does not say how much memory is free: give it, e.g. memory=16GB") from None
    group = system / "sys/fs/cgroup"
    with suppress(OSError, ValueError):  # not there, or "max"
        most, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(most - used + _numbers(group / "memory.stat")["inactive_file"])  # cached files give way
    return max(0, min(free))


def _numbers(path: Path) -> dict[str, int]:
    """Of a file of the kernel's, the number after each name."""
    return {name: int(value) for name, value, *_ in map(str.split, path.read_text().splitlines())}


def peak_memory() -> int:
    """The most bytes that this process has had in memory at one time."""
    with suppress(OSError):  # Linux; a new process's rusage there begins with its parent's
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes


def held_memory() -> int:
    """Bytes that this process has in memory now; where the system does not say, the most it has had."""
    with suppress(OSError):
        return _status("VmRSS")
    return peak_memory()


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
