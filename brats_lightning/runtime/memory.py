"""How large blocks of memory are allocated, and kept."""

import ctypes
import sys
from collections.abc import Sequence

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
