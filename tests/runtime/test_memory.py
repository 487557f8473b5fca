import resource
import subprocess
import sys

import pytest
import torch

from brats_lightning.runtime.memory import empty_float32

# Page faults of making and dropping a block of 16 MiB ten times, after the first.
FAULTS = """
import resource, numpy as np
from brats_lightning.runtime.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(1 << 24, np.uint8)
before = faults()
for _ in range(10):
    np.ones(1 << 24, np.uint8)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_blocks_are_used_again():
    taken = [
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True).stdout)
        for keep in (False, True)
    ]
    pages = 10 * (1 << 24) // resource.getpagesize()
    assert taken[1] < 0.01 * pages
    assert taken[0] > taken[1]


def test_empty_tensor_is_like_torchs_own():
    for device in ("cpu", "meta"):
        tensor = empty_float32(torch.Size((2, 3, 0, 5)), torch.device(device))
        assert (tensor.shape, tensor.dtype, tensor.device.type) == ((2, 3, 0, 5), torch.float32, device)
        assert tensor.is_contiguous()
