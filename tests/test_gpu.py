"""A GPU computes what the CPU computes. Without one these tests skip; with BRATS_DEVICE=cpu they run on the CPU."""

import copy
import gc
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

import brats_lightning
from brats_lightning.config.build import build_data, build_segmentation, build_trainer
from brats_lightning.config.resolvers import config_dir
from brats_lightning.data.layouts.brats import find_cases
from tests.data.tiny_cases import brain, write_case
from tests.tiny_models import bright_is_et, save_checkpoint

NAME = os.environ.get("BRATS_DEVICE", "cuda")
DEVICE, CPU = torch.device(NAME), torch.device("cpu")
CUDA = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA and not torch.cuda.is_available(), reason="no GPU; BRATS_DEVICE=cpu runs this on the CPU"),
]
only_cuda = pytest.mark.skipif(not CUDA, reason="of a GPU only")
UNET = {"_target_": "brats_lightning.models.UNet", "in_channels": 1, "out_channels": 4, "widths": [8, 16, 24]}


@pytest.fixture(autouse=True)
def whole_32_bits(monkeypatch):
    """A GPU's convolutions otherwise round their input to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_dir() / "loss").glob("*.yaml")))
@pytest.mark.parametrize("target", ["classes", "regions"])
def test_losses(name, target, composed):
    if name.startswith("monai"):
        pytest.importorskip("monai")
    loss = instantiate(composed(f"loss={name}", f"target={target}").loss)
    generator = torch.Generator().manual_seed(0)
    channels, shape = {"classes": (4, (2, 12, 13, 14)), "regions": (3, (2, 3, 12, 13, 14))}[target]
    logits = 2 * torch.randn((2, channels, 12, 13, 14), generator=generator)
    reference = (torch.rand(shape, generator=generator) > 0.9).to(torch.uint8)
    found = []
    for device in (CPU, DEVICE):
        there = logits.to(device).requires_grad_()
        value = copy.deepcopy(loss).to(device)(there, reference.to(device))
        value = value["loss"] if isinstance(value, dict) else value
        assert value.device.type == device.type
        found.append((value.item(), torch.autograd.grad(value, there)[0].cpu()))
    (here, gradient), (there, other) = found
    assert there == pytest.approx(here, rel=1e-5)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def fit(cfg):
    torch.manual_seed(0)
    data = build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    module = build_segmentation(cfg, data)
    trainer = build_trainer(cfg)
    trainer.fit(module, datamodule=data)
    return trainer, {name: value.item() for name, value in trainer.callback_metrics.items()}


def small(composed, device, precision):
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    settings = [
        f"trainer.accelerator={accelerator}",
        f"trainer.precision={precision}",
        "logger=none",
        "augmentation=none",
    ]
    settings += ["optimizer=sgd", "trainer.max_steps=4", "trainer.val_check_interval=4", "trainer.log_every_n_steps=1"]
    settings += ["callbacks=averaged", "protocols=[brats2026]", "model.deep_supervision=1"]
    return composed(*settings, run=f"{device}_{precision}")


def test_a_training_and_its_scores(composed):
    found = [fit(small(composed, device, precision))[1] for device, precision in ((CPU, "32-true"), (DEVICE, 32))]
    assert {name for name in found[0] if name.startswith("val/")}
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, abs=2e-3, nan_ok=True), name


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("16-mixed", marks=only_cuda)])
def test_mixed_precision(precision, composed):
    (_, whole), (trainer, mixed) = (fit(small(composed, DEVICE, kind)) for kind in ("32-true", precision))
    assert trainer.strategy.root_device.type == DEVICE.type
    assert {p.dtype for p in trainer.lightning_module.parameters()} == {torch.float32}
    assert mixed["train/loss"] == pytest.approx(whole["train/loss"], abs=0.05)
    assert mixed["train/loss"] != whole["train/loss"]


@pytest.fixture
def case(tmp_path):
    images = {name: brain(number, (30, 34, 28)) for number, name in enumerate(("t1n", "t1c", "t2w", "t2f"))}
    write_case(tmp_path / "cases", seg=None, **images)
    (found,) = find_cases(tmp_path / "cases")
    return found


def test_masks(case, tmp_path):
    torch.manual_seed(0)
    exact = bright_is_et(tmp_path / "a.ckpt", window=[16, 16, 16])
    network = instantiate(UNET)
    noisy = save_checkpoint(tmp_path / "b.ckpt", network, UNET, window=[16, 16, 16], mirror_axes=[0])
    for path, most in ((exact, 0), (noisy, 1e-3)):
        masks = [
            np.asarray(brats_lightning.load(path, device=name, precision=32).predict(t1c=case.images["t1c"]).dataobj)
            for name in ("cpu", NAME)
        ]
        assert (masks[0] != masks[1]).mean() <= most
        assert len(np.unique(masks[0])) > 1


@only_cuda
def test_memory_is_freed(case, tmp_path):
    path = save_checkpoint(tmp_path / "b.ckpt", instantiate(UNET), UNET, window=[16, 16, 16])
    model = brats_lightning.load(path, device=NAME)
    held = []
    for _ in range(3):
        model.predict(t1c=case.images["t1c"])
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert held[0] == held[1] == held[2]
    del model
    gc.collect()
    assert torch.cuda.memory_allocated() < held[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_feed_is_pinned_for_a_gpu(workers, composed):
    data = build_data(composed(f"data.workers={workers}"))
    data.prepare_data()
    data.setup("fit")
    loops = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
    )
    strategy = SimpleNamespace(root_device=DEVICE)
    data.trainer = SimpleNamespace(training=True, strategy=strategy, fit_loop=loops, global_rank=0, world_size=1)
    batch = next(iter(data.train_dataloader()))
    assert batch.image.is_pinned() is CUDA
    moved = batch.to(DEVICE)
    ready = data.on_after_batch_transfer(moved, 0)
    assert ready.image.device.type == DEVICE.type
    assert ready.image.dtype == torch.float32
