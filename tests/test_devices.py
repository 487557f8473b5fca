"""Each part on a device that is not the CPU: values, what it waits for, and how many launches it takes."""

from collections import Counter
from contextlib import nullcontext
from inspect import unwrap
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from brats_lightning.config.resolvers import config_dir
from brats_lightning.core.geometry import Grid
from brats_lightning.core.labels import BRATS_METS, IGNORE
from brats_lightning.core.targets import ClassTarget, RegionTarget, decode_regions
from brats_lightning.data.augment import intensity
from brats_lightning.data.augment.affine import RandomAffine
from brats_lightning.data.augment.pipeline import Augmentation
from brats_lightning.data.nifti import Volume
from brats_lightning.data.normalisation import Normaliser
from brats_lightning.data.preprocessing import Preprocessing
from brats_lightning.inference.ensemble import Ensemble, TrainedModel
from brats_lightning.inference.windows import SlidingWindow
from brats_lightning.losses import DeepSupervision, KnownVoxels
from brats_lightning.metrics.voxel import CaseScores, confusion_matrix, voxel_scores
from brats_lightning.models import AttentionUNet, ResEncUNet, ResUNet, UNet
from brats_lightning.runtime import device as devices
from tests.elsewhere import DEVICE, Elsewhere, elsewhere

CONF = config_dir()
LOSSES = sorted(file.stem for file in (CONF / "loss").glob("*.yaml"))
TARGETS = {"classes": ClassTarget(BRATS_METS), "regions": RegionTarget(BRATS_METS)}
TARGETS |= {"partly": RegionTarget(BRATS_METS, partly_labelled=True)}
NETWORKS = {
    "unet": lambda: UNet(2, 4, (4, 8, 8), deep_supervision=1, norm="group"),
    "attention_unet": lambda: AttentionUNet(2, 4, (4, 8, 8), upsampling="trilinear", norm="batch"),
    "resenc": lambda: ResEncUNet(2, 4, (4, 8, 8), deep_supervision=1),
    "resunet": lambda: ResUNet(2, 4, (4, 8, 8), deep_supervision=1, stem=2, strides=[[1, 2, 2], 2]),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def mask(*shape, classes=4, seed=0):
    return torch.randint(0, classes, shape, generator=seeded(seed), dtype=torch.uint8)


def back(tensor):
    """The values of a tensor that has to be elsewhere."""
    assert isinstance(tensor, Elsewhere), tensor
    return tensor.detach().held.clone()


def equal(there, here, tolerance=0.0):
    torch.testing.assert_close(back(there), here.detach(), rtol=tolerance, atol=tolerance, equal_nan=True)


# --- the training step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_networks_passes_both_ways(name):
    network, image = NETWORKS[name](), normal(2, 2, 9, 10, 11)

    def passes(image):
        logits = network(image)
        sum(level.square().sum() for level in (logits if isinstance(logits, list) else [logits])).backward()
        return logits[0], {n: p.grad for n, p in network.named_parameters() if p.requires_grad}

    logits, gradients = passes(image)
    network.zero_grad()
    with elsewhere() as mode:
        network.to(DEVICE)
        image = image.to(DEVICE)
        mode.forget()
        there, gradients_there = passes(image)
        assert not mode.waits
    tolerance = 1e-2 if name == "unet" else 0.0  # elsewhere torch makes a group norm of its parts
    equal(there, logits, tolerance)
    for parameter, gradient in gradients.items():
        equal(gradients_there[parameter], gradient, tolerance)
    assert all(isinstance(buffer, Elsewhere) for buffer in network.buffers())


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_losss_passes_both_ways(composed, name, kind):
    if name.startswith("monai"):
        pytest.importorskip("monai")
    cfg = composed(f"loss={name}", f"target={'classes' if kind == 'classes' else 'regions'}")
    target, masks = TARGETS[kind], mask(2, 8, 8, 8)
    masks[0], masks[1, :4] = 0, 0  # a sample without a lesion
    masks[:, :, 5:] = IGNORE if kind == "partly" else masks[:, :, 5:]
    weights = {"class_weights": [1.0, 2.0, 3.0, 4.0][: target.channels]}
    for node in (cfg.loss, *cfg.loss.get("parts", {}).values()):
        if "class_weights" in node:
            node.merge_with(weights)
    loss = DeepSupervision(instantiate(cfg.loss))
    loss.loss = KnownVoxels(loss.loss, target.background) if kind == "partly" else loss.loss
    levels = [normal(2, target.channels, size, size, size) for size in (8, 4)]

    def passes(levels, masks, steps):
        for _ in range(steps):
            leaves = [level.clone().requires_grad_() for level in levels]
            encoded = target.encode(masks)
            value = loss(leaves, encoded, loss.find_lesions(encoded))
            value = value["loss"] if isinstance(value, dict) else value
            value.backward()
        return value, [leaf.grad for leaf in leaves]

    here = passes(levels, masks, 1)
    with elsewhere() as mode:
        loss.to(DEVICE)
        moved = [level.to(DEVICE) for level in levels], masks.to(DEVICE)
        mode.forget()
        there = passes(*moved, 2)
        waits = Counter(mode.waits)
    equal(there[0], here[0])
    for gradients in zip(there[1], here[1], strict=True):
        equal(*gradients)
    if not name.startswith("monai"):  # whose business that is
        assert set(waits) <= {("to here", "begin_on_host"), ("to there", "to_device")}


# --- from codes to batches ---------------------------------------------------------------------------------------


def codes_and_numbers(b=2, shape=(5, 6, 7)):
    codes = torch.randint(0, 60000, (b, 2, *shape), generator=seeded())
    codes[..., :2] = 0
    numbers = torch.tensor([[1e-3, -20.0, -5.0, 5.0]]).repeat(b, 2, 1)
    return codes.to(torch.uint16), numbers


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16])
@pytest.mark.parametrize("method", ["zscore", "minmax"])
@pytest.mark.parametrize("channels", [["t1n", "t1c"], ["t1c-t1n", "t1n"]])
def test_standardisation(channels, method, dtype):
    normaliser, (codes, numbers) = Normaliser(channels, method), codes_and_numbers()
    here = normaliser(codes, numbers)
    with elsewhere() as mode:
        moved = codes.view(dtype).to(DEVICE), numbers.to(DEVICE)
        mode.forget()
        there = normaliser(*moved)
        assert not mode.waits
    equal(there, here)


def test_standardisation_where_there_is_no_uint16(monkeypatch):
    normaliser, (codes, numbers) = Normaliser(["t1n", "t1c"]), codes_and_numbers()
    here = normaliser(codes, numbers)
    assert devices.supports_uint16(DEVICE)
    assert not devices.supports_uint16(torch.device("mps"))
    monkeypatch.setattr("brats_lightning.data.normalisation.supports_uint16", lambda _: False)
    assert torch.equal(normaliser(codes.view(torch.int16), numbers), here)


CHANGES = {
    "noise": intensity.GaussianNoise(1.0),
    "blur": intensity.GaussianBlur(1.0),
    "brightness": intensity.Brightness(1.0),
    "contrast": intensity.Contrast(1.0),
    "low_resolution": intensity.LowResolution(1.0),
    "inverted": intensity.Gamma(1.0, invert=True),
    "gamma": intensity.Gamma(1.0),
    "shift": intensity.Shift(1.0),
}


@pytest.mark.parametrize("affine", [None, RandomAffine(1.0, p_scaling=1.0)])
def test_augmentation(affine):
    augmentation = Augmentation((0.5, 1.0, 0.5), affine, {k: v for k, v in CHANGES.items() if k != "noise"})
    image, labels = normal(2, 2, 9, 8, 7), mask(2, 9, 8, 7)
    here = augmentation(image.clone(), labels.clone(), seeded())
    with elsewhere() as mode:
        moved = image.to(DEVICE), labels.to(DEVICE)
        mode.forget()
        there = augmentation(*moved, seeded())
        assert not mode.waits
    for pair in zip(there, here, strict=True):
        equal(*pair)


@pytest.mark.parametrize(
    ("affine", "changes", "most"),
    [(RandomAffine(1.0), {}, 130), (None, {"blur": CHANGES["blur"]}, 105), (RandomAffine(1.0), CHANGES, 680)],
)
def test_launches_of_augmenting_a_large_patch(affine, changes, most):
    """On a GPU each launch takes some microseconds, however little there is to do: a chunk is a patch of 128³."""
    augmentation = Augmentation((0.0, 0.0, 1.0), affine, changes)
    with elsewhere() as mode:
        moved = torch.zeros(1, 4, 128, 128, 128).to(DEVICE), torch.zeros(1, 128, 128, 128, dtype=torch.uint8).to(DEVICE)
        mode.forget()
        augmentation(*moved, seeded())
        assert most / 2 < mode.launches.total() <= most
        assert not mode.waits


# --- what comes of logits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TARGETS)
def test_targets(kind):
    target, masks, logits = TARGETS[kind], mask(2, 5, 6, 7), 3 * normal(2, TARGETS[kind].channels, 5, 6, 7)

    def decoded(masks, logits):
        probabilities = target.probabilities(logits[0].clone())
        return target.encode(masks), probabilities, target.decide(logits), decode_regions(probabilities, target.scheme)

    here = decoded(masks, logits)
    with elsewhere() as mode:
        moved = masks.to(DEVICE), logits.to(DEVICE)
        mode.forget()
        there = decoded(*moved)
        assert not mode.waits
    for pair in zip(there, here, strict=True):
        equal(*pair)


def test_launches_of_decoding_a_large_patch():
    target = TARGETS["regions"]
    with elsewhere() as mode:
        logits = torch.zeros(1, 3, 128, 64, 64).to(DEVICE)
        mode.forget()
        target.decide(logits)
        assert mode.launches.total() <= 45  # not as many for each plane


def test_counts_and_scores():
    reference, prediction = mask(4, 5, 6), mask(4, 5, 6, seed=1)
    here = confusion_matrix(reference, prediction, 4)
    with elsewhere() as mode:
        there = confusion_matrix(reference.to(DEVICE), prediction.to(DEVICE), 4)
        equal(there, here)
        mode.forget()
        scores = voxel_scores(there, BRATS_METS)
        table = CaseScores(["a", "b"], list(scores)).to(DEVICE)
        table.update("b", scores)
        assert isinstance(table.values, Elsewhere)
        mode.forget()
        assert table.means() == pytest.approx(scores)
        assert table.counts() == dict.fromkeys(scores, 1)
        assert set(mode.waits) == {("to here", "on_host")}
    assert scores == voxel_scores(here, BRATS_METS)


def trained(target, network):
    return TrainedModel(
        path=Path("a.ckpt"),
        network=network.eval(),
        normaliser=Normaliser(["t1c", "t1n"]),
        preprocessing=Preprocessing(),
        target=target,
        inference=SlidingWindow((8, 8, 8), mirror_axes=[2], batch_size=2),
        config={},
    )


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("kind", TARGETS)
def test_sliding_windows_wait_once_a_volume(kind, size):
    target, image = TARGETS[kind], normal(2, size, 9, 8)
    image[:, :, :2] = 0
    network = UNet(2, target.channels, (4, 8)).eval()
    windows = trained(target, network).inference
    with torch.inference_mode():
        here = windows(network, image, background=target.background)
    with elsewhere() as mode, torch.no_grad():
        network.to(DEVICE)
        moved = image.to(DEVICE)
        mode.forget()
        there = windows(network, moved, background=target.background)
        waits = Counter(mode.waits)
    equal(there, here)
    assert waits.pop(("to here", "on_host")) == 1
    assert waits == {("to there", "__call__"): 1}  # the windows' importance


@pytest.mark.parametrize("kind", TARGETS)
def test_an_ensemble(kind):
    target = TARGETS[kind]
    values = np.random.default_rng(0).integers(1, 60000, (2, 14, 9, 8)).astype(np.uint16)
    grid = Grid((8, 9, 14), np.diag([-1.0, -1.0, 1.0, 1.0]))
    images = {name: Volume(grid, v, (0, 0, 0)) for name, v in zip(("t1n", "t1c"), values, strict=True)}
    models = [trained(target, ResUNet(2, target.channels, (4, 8)))]
    ensemble = Ensemble(models)
    prepared = ensemble.prepare(images)
    here = ensemble(prepared).values
    # There is neither autocast elsewhere nor an inference mode.
    plain = patch.object(Ensemble, "_predict", unwrap(Ensemble._predict))
    with elsewhere() as mode, patch("torch.autocast", lambda *_, **__: nullcontext()), plain, torch.no_grad():
        ensemble = Ensemble(models, DEVICE)
        mode.forget()
        there = ensemble(prepared).values
        waits = Counter(mode.waits)
    np.testing.assert_array_equal(there, here)
    assert waits.pop(("to here", "on_host")) == 2  # where there is a brain, and the probabilities
    # The codes, what standardises them, and the windows' importance.
    assert set(waits) == {("to there", "__call__"), ("to there", "to_device")}
