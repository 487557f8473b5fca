"""Exported networks compute the same in onnxruntime, and say how they are applied."""

import hashlib
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import brats_lightning
from brats_lightning.config.checkpoint import load_model
from brats_lightning.export import export
from brats_lightning.inference import onnx_file
from brats_lightning.inference.onnx_file import ExportError, export_onnx
from tests.data.tiny_cases import LPS, brain, write_case
from tests.tiny_models import save_checkpoint, voxelwise

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")

PAGE = Path(__file__).parents[1] / "docs/how-to/export.md"
UNET = {"_target_": "brats_lightning.models.UNet", "in_channels": 2, "out_channels": 4, "widths": [4, 6, 8]}
NETWORKS = {
    "unet": {"deep_supervision": 1},
    "unet with a stem": {"stem": 2, "norm": "group", "upsampling": "trilinear", "activation": "gelu", "dropout": 0.5},
    "attention_unet": {"_target_": "brats_lightning.models.AttentionUNet"},
    "resunet": {"_target_": "brats_lightning.models.ResUNet", "norm": "batch"},
    "resenc": {"_target_": "brats_lightning.models.ResEncUNet"},
    "monai_segresnet": {"_target_": "monai.networks.nets.SegResNet"},
}


class Eigenvalues(nn.Conv3d):
    """A network with an operation that ONNX lacks."""

    def forward(self, x):
        return super().forward(x) + torch.linalg.eigvals(x).real.mean()


class SampleBySample(nn.Conv3d):
    """A network whose graph depends on the number of samples."""

    def forward(self, x):
        return torch.cat([super(SampleBySample, self).forward(sample[None]) for sample in x])


class Undecided(nn.Conv3d):
    """A network that looks at the values."""

    def forward(self, x):
        logits = super().forward(x)
        return logits if logits.max() > 0 else -logits


def built(path, model, **settings):
    from hydra.utils import instantiate

    torch.manual_seed(0)
    network = instantiate(model)
    for parameter in network.parameters():  # none 0, as biases are at first
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return save_checkpoint(path, network, model, modalities=["t1n", "t1c"], **settings)


def session_of(path):
    return onnxruntime.InferenceSession(path)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_logits_for_batches_of_any_size(name, tmp_path):
    model = UNET | NETWORKS[name]
    if name == "monai_segresnet":
        pytest.importorskip("monai")
        model = {"_target_": model["_target_"], "in_channels": 2, "out_channels": 4, "init_filters": 8}
    window = [8, 16, 8] if name != "unet" else [7, 9, 10]  # which three levels cannot halve twice
    ckpt = built(tmp_path / "a.ckpt", model, window=window)
    trained = load_model(ckpt)
    found = export_onnx(trained, tmp_path / "a.onnx")
    assert found.difference <= 1e-4
    assert found.bytes == (tmp_path / "a.onnx").stat().st_size
    image = torch.randn(3, 2, *window)
    (logits,) = session_of(tmp_path / "a.onnx").run(["logits"], {"image": image.numpy()})
    wanted = trained.network(image).numpy()
    assert wanted.std() > 0.1
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * max(1, np.abs(wanted).max()))


def test_the_command_writes_what_a_reader_needs(composed, tmp_path):
    settings = {"labels": ("netc", "snfh", "et"), "target": "regions", "window": [6, 6, 6]}
    weight, bias = [[1.0, 2.0], [3.0, 4.0], [-1.0, 0.5]], [0.25, -0.5, 1.0]
    ckpt = voxelwise(
        tmp_path / "run/a.ckpt", weight, bias, modalities=["t1c-t1n", "has-t2w"], optional=["t2w"], **settings
    )
    before = ckpt.read_bytes()
    arguments = [f"ckpt={ckpt}", f"output={tmp_path}/new/a.onnx", "window=[4,8,2]"]
    result = export(composed(*arguments, name="export"))
    assert ckpt.read_bytes() == before
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.onnx"]
    session = session_of(result["file"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", ["batch", 2, 4, 8, 2], "tensor(float)")
    assert (logits.name, logits.shape, logits.type) == ("logits", ["batch", 3, 4, 8, 2], "tensor(float)")
    assert json.loads(session.get_modelmeta().custom_metadata_map["brats_lightning"]) == {
        "program": f"brats_lightning {onnx_file._own_version()}",
        "checkpoint": {"file": "a.ckpt", "sha256": hashlib.sha256(before).hexdigest()},
        "labels": {"0": "background", "1": "netc", "2": "snfh", "3": "et"},
        "regions": {"et": [3], "tc": [1, 3], "wt": [1, 2, 3]},
        "target": "regions",
        "outputs": ["et", "tc", "wt"],
        "decode": "regions",
        "channels": ["t1c-t1n", "has-t2w"],
        "modalities": ["t1n", "t1c", "t2w"],
        "optional": ["t2w"],
        "orientation": "LPS",
        "axes": ["batch", "channel", "z", "y", "x"],
        "preprocessing": {"crop": "brain", "spacing": None, "fit": "none", "size": None},
        "normalisation": {"method": "minmax", "low": 0.5, "high": 99.5},
        "window": [4, 8, 2],
        "overlap": 0.25,
        "mirror_axes": [],
        "background": [-1000.0, -1000.0, -1000.0],
    }
    values = np.zeros((1, 2, 4, 8, 2), np.float32)
    values[0, :, 1, 2, 1] = [3, -1]
    (found,) = session.run(None, {"image": values})
    np.testing.assert_allclose(found[0, :, 1, 2, 1], [1.25, 4.5, -2.5], atol=1e-6)
    np.testing.assert_allclose(found[0, :, 0, 0, 0], bias, atol=1e-6)


def test_the_program_of_the_docs_predicts_as_this_one(composed, tmp_path, monkeypatch, capsys):
    ckpt = built(
        tmp_path / "a.ckpt", UNET, window=[8, 12, 14], normalisation={"method": "zscore", "low": 0.5, "high": 99.5}
    )
    export(composed(f"ckpt={ckpt}", f"output={tmp_path}/a.onnx", name="export"))
    turned = LPS[:, [1, 0, 2, 3]]  # the first axis to posterior, the second to the left
    case = write_case(tmp_path, affine=turned, t1n=brain(1), t1c=brain(2))  # a brain of 8 × 10 × 6 voxels
    (example,) = re.findall(r"```python\n# run_onnx.py\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "run_onnx.py").write_text(example)
    monkeypatch.setattr(sys, "argv", ["run_onnx.py", str(tmp_path / "a.onnx"), str(case)])
    there = runpy.run_path(str(tmp_path / "run_onnx.py"))
    files = {name: case / f"{case.name}-{name}.nii.gz" for name in ("t1n", "t1c")}
    ours = brats_lightning.load(ckpt, device="cpu", precision=32).probabilities(**files)
    inside = ours.get_fdata()[2:-2, 2:-2, 2:-2]  # (posterior, left, superior, class)
    np.testing.assert_allclose(there["probabilities"][:, 1:7, 2:10, 2:12], inside.transpose(3, 2, 0, 1), atol=1e-4)
    counts = np.bincount(inside.argmax(-1).ravel(), minlength=4)
    shown = dict(zip(("background", "netc", "snfh", "et"), counts.tolist(), strict=True))
    assert capsys.readouterr().out.splitlines()[-1] == str(shown)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Eigenvalues, "Eigenvalues cannot be exported to ONNX.*No ONNX function found for .*linalg_eig"),
        (SampleBySample, "SampleBySample cannot be exported to ONNX.*size of the batch.*Constraints violated"),
        (Undecided, "Undecided cannot be exported to ONNX.*values of the image.*data-dependent"),
    ],
)
def test_a_network_that_cannot_be_exported_is_told_in_one_line(network, message, tmp_path, capfd):
    model = {"_target_": f"tests.test_export.{network.__name__}", "in_channels": 2, "out_channels": 4, "kernel_size": 1}
    ckpt = built(tmp_path / "a.ckpt", model)
    (tmp_path / "a.onnx").write_bytes(b"before")
    with pytest.raises(ExportError, match=message) as error:
        export_onnx(load_model(ckpt, trust=["tests"]), tmp_path / "a.onnx")
    assert "\n" not in str(error.value)
    assert (tmp_path / "a.onnx").read_bytes() == b"before"
    assert capfd.readouterr() == ("", "")


def test_an_export_that_differs_is_not_written(composed, tmp_path, monkeypatch):
    ckpt = built(tmp_path / "a.ckpt", UNET)
    with pytest.raises(
        ExportError, match=r"differ from torch's by up to .* by more than tolerance=1e-12; nothing was written"
    ):
        export(composed(f"ckpt={ckpt}", f"output={tmp_path}/a.onnx", "tolerance=1e-12", name="export"))
    monkeypatch.setattr(onnx_file, "_difference", lambda *_: float("nan"))
    with pytest.raises(ExportError, match="by up to nan"):
        export_onnx(load_model(ckpt), tmp_path / "a.onnx")
    monkeypatch.setattr(onnx_file, "_LARGEST", 1000)
    with pytest.raises(ExportError, match="an ONNX file holds less than 2 GiB"):
        export_onnx(load_model(ckpt), tmp_path / "a.onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_what_the_command_refuses(composed, tmp_path, monkeypatch):
    for overrides, message in (
        (["ckpt=[a,b]", "output=a.onnx"], "takes one checkpoint"),
        (["ckpt=a", "output=a.pt"], "named ….onnx, got a.pt"),
    ):
        with pytest.raises(ValueError, match=message):
            export(composed(*overrides, name="export"))
    ckpt = voxelwise(tmp_path / "a.ckpt", [[1.0]] * 4, [0.0] * 4)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"pip install 'brats-lightning\[export\]'"):
        export(composed(f"ckpt={ckpt}", f"output={tmp_path}/a.onnx", name="export"))
