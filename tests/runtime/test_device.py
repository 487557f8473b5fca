from unittest.mock import MagicMock, patch

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from brats_lightning.runtime import device as devices


def test_a_copy_from_a_gpu_is_begun_and_waited_for_where_it_is_wanted():
    host, stream = MagicMock(), MagicMock()
    host.numpy.return_value = np.arange(3)
    with FakeTensorMode():
        tensor = torch.empty(3, dtype=torch.uint8, device="cuda")
        with patch("torch.empty", return_value=host) as empty, patch("torch.cuda.current_stream", return_value=stream):
            arrived = devices.begin_on_host(tensor)
    empty.assert_called_once_with(tensor.shape, dtype=torch.uint8, pin_memory=True)
    host.copy_.assert_called_once_with(tensor, non_blocking=True)
    event = stream.record_event.return_value
    event.synchronize.assert_not_called()
    assert arrived().tolist() == [0, 1, 2]
    event.synchronize.assert_called_once_with()


def test_a_copy_to_a_gpu_is_not_waited_for():
    pinned = MagicMock()
    pinned.to.return_value = torch.zeros(3)
    with patch.object(torch.Tensor, "pin_memory", lambda tensor: pinned(tensor) and pinned):
        devices.to_device(np.arange(3), torch.device("cuda"), torch.float32)
    assert pinned.call_args.args[0].dtype == torch.float32
    pinned.to.assert_called_once_with(torch.device("cuda"), non_blocking=True)


def test_an_array_on_the_cpu_is_the_tensor():
    array = np.arange(3)
    tensor = devices.to_device(array, torch.device("cpu"))
    array[0] = 7
    assert tensor.tolist() == [7, 1, 2]
    assert np.shares_memory(devices.begin_on_host(tensor)(), array)
