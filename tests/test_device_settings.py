"""What a device is asked to do: precision, speed or repeatability, and which one it is."""

import os
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from brats_lightning.config.resolvers import config_dir, register_resolvers
from brats_lightning.models import AttentionUNet, ResEncUNet, ResUNet, UNet
from brats_lightning.runtime.device import choose_device


class Slices(TorchFunctionMode):
    """Slicing by operations: torch's own asks for the device itself, which a build for CPUs has none of."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        tensor, index = args
        for axis, part in enumerate(index):
            tensor = torch.ops.aten.slice(tensor, axis, part.start, part.stop)
        return tensor


@pytest.mark.parametrize("settings", [{}, {"upsampling": "trilinear", "norm": "group", "stem": 2}])
@pytest.mark.parametrize("network", [UNet, AttentionUNet, ResUNet, ResEncUNet])
def test_autocast_of_a_gpu_reaches_the_logits(network, settings):
    model = network(2, 4, (4, 8, 8), deep_supervision=1, **settings)
    with FakeTensorMode(allow_non_fake_inputs=False), Slices(), torch.no_grad():
        parameters = {name: torch.empty(p.shape, device="cuda") for name, p in model.named_parameters()}
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            levels = torch.func.functional_call(model, parameters, (torch.empty(1, 2, 9, 8, 7, device="cuda"),))
        finally:
            torch.set_autocast_enabled("cuda", False)
        assert {(level.device.type, level.dtype) for level in levels} == {("cuda", torch.bfloat16)}


@pytest.mark.parametrize(
    ("overrides", "fast"),
    [
        (["trainer=gpu"], True),
        (["trainer=ddp"], True),
        (["experiment=mets"], True),
        (["experiment=mets_large"], True),
        (["trainer=auto"], False),
        (["trainer=cpu"], False),
        (["trainer=ddp_cpu"], False),
        (["experiment=cpu_small"], False),
    ],
)
def test_gpus_are_fast_and_cpus_repeat(overrides, fast):
    register_resolvers()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        trainer = compose("train", [*overrides]).trainer
    assert (trainer.deterministic, trainer.benchmark) == ((False, True) if fast else ("warn", False))
    assert trainer.accelerator == ("gpu" if fast else "auto" if overrides == ["trainer=auto"] else "cpu")


@pytest.mark.parametrize(("own", "expected"), [({}, "1"), ({"PYTORCH_ENABLE_MPS_FALLBACK": "0"}, "0")])
def test_what_a_macs_gpu_lacks_the_cpu_does_unless_told_otherwise(own, expected):
    code = "import brats_lightning, os; print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])"
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_ENABLE_MPS_FALLBACK"} | own
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [
        ("auto", {"cuda", "mps"}, "cuda"),
        ("auto", {"mps"}, "cpu"),
        ("auto", set(), "cpu"),
        ("mps", {"mps"}, "mps"),
        ("cpu", {"cuda", "mps"}, "cpu"),
        ("cuda", {"cuda"}, "cuda"),
        ("mps", {"cuda"}, None),
        ("cuda", {"mps"}, None),
    ],
)
def test_device_of_predictions(monkeypatch, name, there, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in there)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: "mps" in there)
    if expected is None:
        with pytest.raises(ValueError, match=f"device={name}, but torch finds no GPU for it; device=cpu works"):
            choose_device(name)
    else:
        assert choose_device(name) == torch.device(expected)
