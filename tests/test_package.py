"""Packages: what is in the folder, what its entry point does, and what a dry run measures. The image itself is built by
``make container``."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from brats_lightning.config.checkpoint import read_checkpoint
from brats_lightning.data.cases import CaseError
from brats_lightning.inference import container, dry_run
from brats_lightning.inference.container import Outcome, changed, main, predict_all
from brats_lightning.package import package
from brats_lightning.predict import predict
from brats_lightning.runtime import wheels
from brats_lightning.runtime.wheels import WheelError, distributions, fetch_wheels
from tests.data.tiny_cases import write_case
from tests.tiny_models import bright_is_et, save_checkpoint

CASES = ("BraTS-MET-00001-000", "a patient of 7", "ünnamed")  # whatever they are called


@pytest.fixture
def fake_wheels(tmp_path):
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "brats_lightning-0.1.0-py3-none-any.whl").write_text("ours")
    (folder / "notes.txt").touch()
    return folder


@pytest.fixture
def pack(composed, fake_wheels, tmp_path):
    """The command, on a checkpoint ``a.ckpt``, with wheels that are none."""
    bright_is_et(tmp_path / "a.ckpt", 0.9)

    def command(*overrides, ckpt=tmp_path / "a.ckpt", output=tmp_path / "package"):
        told = [f"ckpt={ckpt}", f"output={output}", f"wheels={fake_wheels}", *overrides]
        return package(composed(*told, name="package"))

    return command


def scans(folder, *cases):
    for case in cases:
        write_case(folder, case, seg=None)
    return folder


def labels_in(folder):
    return {file.name: np.asanyarray(nib.load(file).dataobj) for file in folder.iterdir()}


def test_the_folder_holds_what_the_image_needs(pack, tmp_path):
    result = pack(
        *("device=cuda", "devices=2", "inference.overlap=0.75", "trust=[tests]", "postprocessing=hysteresis"),
        "base=mine:1",
    )
    folder = tmp_path / "package"
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    assert set(files) == {
        *("Dockerfile", "apptainer.def", "SHA256SUMS", "settings.yaml", "ensemble.yaml"),
        *("checkpoints/1.ckpt", "wheels/brats_lightning-0.1.0-py3-none-any.whl"),
    }
    assert result == {"folder": str(folder), "bytes": sum(file.stat().st_size for file in files.values())}
    assert yaml.safe_load(files["ensemble.yaml"].read_text()) == {
        "members": [{"ckpt": "checkpoints/1.ckpt", "weight": 1.0}]
    }
    settings = yaml.safe_load(files["settings.yaml"].read_text())
    rules = settings.pop("postprocessing")
    assert rules["steps"]["hysteresis"].items() >= {"low": 0.25, "high": 0.7}.items()
    assert rules["decode"] == "argmax"
    assert settings["defaults"] == ["predict", "_self_"]
    assert (settings["device"], settings["devices"], settings["trust"]) == ("cuda", 2, ["tests"])
    assert settings["inference"]["overlap"] == 0.75
    sums = dict(line.split("  ")[::-1] for line in files["SHA256SUMS"].read_text().splitlines())
    assert set(sums) == {"settings.yaml", "ensemble.yaml", "checkpoints/1.ckpt"}
    assert sums == {name: hashlib.sha256(files[name].read_bytes()).hexdigest() for name in sums}


def test_the_recipes_name_every_file_and_the_entry_point(pack, tmp_path):
    pack("base=mine:1")
    recipe = (tmp_path / "package/Dockerfile").read_text()
    assert "ARG BASE=mine:1\nFROM ${BASE} AS build\n" in recipe
    assert "--no-index" in recipe
    copied = [line.split()[1:] for line in recipe.splitlines() if line.startswith("COPY") and "--from" not in line]
    assert copied == [
        ["wheels", "/wheels"],
        ["SHA256SUMS", "ensemble.yaml", "settings.yaml", "/opt/brats/package/"],
        ["checkpoints", "/opt/brats/package/checkpoints"],
    ]
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)$", recipe, re.M)[1])
    assert entry == ["/opt/brats/env/bin/python", "-m", "brats_lightning.inference.container", "/opt/brats/package"]
    definition = (tmp_path / "package/apptainer.def").read_text()
    assert "From: {{ BASE }}" in definition
    assert "    BASE=mine:1\n" in definition
    assert f'    exec {" ".join(entry)} "$@"\n' in definition
    for name in ("wheels", "SHA256SUMS", "ensemble.yaml", "settings.yaml", "checkpoints"):
        assert re.search(rf"^    {name} /\S+$", definition, re.M)
    pack(output=tmp_path / "other")
    version = ".".join(map(str, sys.version_info[:2]))
    assert f"ARG BASE=python:{version}-slim-bookworm\n" in (tmp_path / "other/Dockerfile").read_text()


def test_an_ensemble_keeps_its_weights_and_what_only_training_needs_stays_behind(pack, tmp_path):
    saved = torch.load(bright_is_et(tmp_path / "b.ckpt", 0.5), weights_only=True)
    torch.save(
        saved | {"optimizer_states": [torch.zeros(1000)], "split": {"train": ["X"], "val": [], "test": []}},
        tmp_path / "b.ckpt",
    )
    listed = ["{ckpt: a.ckpt, weight: 3}", "{ckpt: b.ckpt, regions: [et], inference: {overlap: 0.5}}", "{ckpt: a.ckpt}"]
    (tmp_path / "three.yaml").write_text("members:\n" + "".join(f"- {member}\n" for member in listed))
    pack(ckpt=tmp_path / "three.yaml")
    members = yaml.safe_load((tmp_path / "package/ensemble.yaml").read_text())["members"]
    first, second = "checkpoints/1.ckpt", "checkpoints/2.ckpt"
    assert members == [
        {"ckpt": first, "weight": 3.0},
        {"ckpt": second, "weight": 1.0, "regions": ["et"], "inference": {"overlap": 0.5}},
        {"ckpt": first, "weight": 1.0},
    ]
    packed = read_checkpoint(tmp_path / "package" / second)
    assert set(packed) == {"state_dict", "config", "format"}
    assert packed["config"] == saved["config"]
    assert all(torch.equal(packed["state_dict"][name], value) for name, value in saved["state_dict"].items())
    assert len(list((tmp_path / "package/checkpoints").iterdir())) == 2


def test_the_entry_point_predicts_as_predict_does(pack, composed, tmp_path):
    scans(tmp_path / "in", *CASES)
    bright_is_et(tmp_path / "b.ckpt", 0.8)
    chosen = [f"ckpt=[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt]", "postprocessing=mets2026", "precision=32"]
    result = pack(*chosen[1:], f"dry_run={tmp_path}/in", f"masks={tmp_path}/masks", "cases=1000", ckpt=chosen[0][5:])
    predict(composed(*chosen, f"input={tmp_path}/in", f"output={tmp_path}/out", name="predict"))
    masks = {file.name: file.read_bytes() for file in (tmp_path / "masks").iterdir()}
    assert set(masks) == {f"{case}.nii.gz" for case in CASES}
    assert masks == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert any(values.any() for values in labels_in(tmp_path / "masks").values())
    assert set(result["seconds"]) == set(CASES)
    assert result["hours"] > 0
    assert result["peak"] > 2**20
    assert changed(tmp_path / "package") == []  # nothing was written there


def test_what_fails_does_not_stop_the_others(pack, tmp_path, monkeypatch):
    pack()
    scans(tmp_path / "in", *CASES)
    broken = tmp_path / "in" / CASES[0] / f"{CASES[0]}-t1c.nii.gz"
    broken.write_bytes(broken.read_bytes()[:-100])
    (tmp_path / "in/empty").mkdir()
    monkeypatch.setattr(
        "sys.argv",
        ["container", str(tmp_path / "package"), *("--input", f"{tmp_path}/in", "--output", f"{tmp_path}/out")],
    )
    with pytest.raises(SystemExit, match=f"error: no mask of {CASES[0]}, no case in empty"):
        main()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{case}.nii.gz" for case in CASES[1:]}


class Killed:
    """Predicts two cases at a time, in order: ``deadly`` ones end the program, ``flaky`` ones once."""

    def __init__(self, deadly="", flaky=""):
        self.deadly, self.flaky, self.starts = deadly, list(flaky), []

    def __call__(self, package, inputs, output, cases, scratch):
        self.starts.append("".join(cases))
        made, existing = [], [case for case in cases if (output / f"{case}.nii.gz").exists()]
        todo = [case for case in cases if case not in existing]
        for pair in (todo[i : i + 2] for i in range(0, len(todo), 2)):
            if ended := {*pair} & {*self.deadly, *self.flaky}:
                self.flaky = [case for case in self.flaky if case not in ended]
                (output / ".a.nii.gz.0.tmp").touch()
                return None
            for case in pair:
                (output / f"{case}.nii.gz").touch()
            made += pair
        return {"cases": {case: {"seconds": 1.5} for case in made}, "existing": existing}


def test_a_case_that_ends_the_program_is_given_up_and_no_other(tmp_path, monkeypatch, capsys):
    inputs = scans(tmp_path / "in", *"abcdef")
    killed = Killed(deadly="de", flaky="b")
    monkeypatch.setattr(container, "_predict", killed)
    outcome = predict_all(tmp_path, inputs, tmp_path / "out")
    everything, without_d = "abcdef", "abcef"
    # a and b are not made; a alone is; b and c are, d and e are not; d alone is not; e and f are not, …
    assert killed.starts == [everything, "a", everything, everything, "d", without_d, "e", "abcf"]
    assert outcome.failed == ["d", "e"]
    assert (outcome.masks, outcome.seconds) == (4, {"a": 1.5, "f": 1.5})
    assert not outcome.complete
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == ["d", "e"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{case}.nii.gz" for case in "abcf"}


def test_masks_that_another_package_made_are_no_masks(pack, tmp_path):
    bright_is_et(tmp_path / "b.ckpt", 0.5)
    pack("precision=32")
    pack("precision=32", ckpt=tmp_path / "b.ckpt", output=tmp_path / "other")
    first, second = CASES[:2]
    inputs, out = scans(tmp_path / "in", first), tmp_path / "out"
    assert predict_all(tmp_path / "other", inputs, out).complete
    others = (out / f"{first}.nii.gz").read_bytes()
    scans(inputs, second)
    outcome = predict_all(tmp_path / "package", inputs, out)
    assert (outcome.failed, list(outcome.seconds)) == ([first], [second])
    assert (out / f"{first}.nii.gz").read_bytes() == others
    (out / f"{first}.nii.gz").unlink()
    outcome = predict_all(tmp_path / "package", inputs, out)  # goes on where the other one ended
    assert outcome.complete
    assert (outcome.masks, list(outcome.seconds)) == (2, [first])


def test_weights_that_have_changed_are_refused(pack, tmp_path, monkeypatch):
    pack()
    folder = tmp_path / "package"
    content = bytearray((folder / "checkpoints/1.ckpt").read_bytes())
    content[-1] ^= 1
    (folder / "checkpoints/1.ckpt").write_bytes(content)
    (folder / "settings.yaml").unlink()
    assert changed(folder) == ["settings.yaml is missing", "checkpoints/1.ckpt has changed"]
    monkeypatch.setattr("sys.argv", ["container", str(folder), "--input", str(tmp_path), "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"error: .* is damaged: settings.yaml is missing, checkpoints/1.ckpt has"):
        main()


def test_a_dry_run_predicts_the_hours(tmp_path, monkeypatch):
    inputs = scans(tmp_path / "in", "a", "b")
    measured = Outcome(seconds={"a": 10.0, "b": 30.0}, total=50.0, peak=2**30)

    def run(command, **_):
        if "--summary" in command:
            Path(command[command.index("--summary") + 1]).write_text(json.dumps(vars(measured)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(dry_run.subprocess, "run", run)
    monkeypatch.setattr(dry_run, "mask_faults", lambda *_, **__: [])
    found = dry_run.dry_run(tmp_path, inputs, tmp_path / "masks", [1, 2, 3], 303, 2**30)
    assert found.hours == pytest.approx((10 + 303 * 20) / 3600)
    found = dry_run.dry_run(tmp_path, inputs, tmp_path / "masks", [1, 2, 3], 303, 2**30, processes=2)
    assert found.hours == pytest.approx((30 + 303 * 20 / 2) / 3600)  # 20 of the 50 s for both cases at the same time
    measured.seconds = {}
    with pytest.raises(ValueError, match="dry_run: the program was ended again and again"):
        dry_run.dry_run(tmp_path, inputs, tmp_path / "masks", [1, 2, 3], 303, 2**30)
    measured.failed, measured.strange = ["b"], ["empty"]
    with pytest.raises(CaseError, match=r"(?s)empty.*no case found.*b .*no mask"):
        dry_run.dry_run(tmp_path, inputs, tmp_path / "masks", [1, 2, 3], 303, 2**30)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_the_limits_of_a_dry_run_hold(tmp_path):
    (tmp_path / "in").mkdir()
    prefix, limits = dry_run._limited(tmp_path / "in", 2**27)
    attempts = {
        "no network": "import socket\nassert [name for _, name in socket.if_nameindex()] != ['lo']",
        "read-only input": f"open({str(tmp_path / 'in/new')!r}, 'w')",
        "memory": "bytearray(2**28)",
    }
    for limit in limits:
        done = subprocess.run([*prefix, sys.executable, "-c", attempts[limit]], capture_output=True, text=True)
        assert done.returncode == 1, limit
        assert re.search("AssertionError|Read-only file system|MemoryError", done.stderr)
    allowed = f"bytearray(2**24); open({str(tmp_path / 'out')!r}, 'w')"
    assert subprocess.run([*prefix, sys.executable, "-c", allowed]).returncode == 0


def test_a_package_is_whole_or_not_there(pack, fake_wheels, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ValueError, match="full is not empty"):
        pack(output=tmp_path / "full")
    for wrong, message in (
        (f"masks={tmp_path}/full", "masks: .*full is not empty"),
        ("cases=0", "cases must be 1 or more, got 0"),
        ("memory=much", "memory must be a size"),
        ("device=gpu", "device must be auto, cpu, cuda, mps .*got 'gpu'"),
        ("devices=0", "devices must be a number of processes from 1 on, got 0"),
        ("precision=8", "precision must be auto, bf16, 16, 32, got 8"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(wrong)
    (fake_wheels / "brats_lightning-0.1.0-py3-none-any.whl").rename(fake_wheels / "other-1-py3-none-any.whl")
    with pytest.raises(WheelError, match=r"there is no brats_lightning-….whl in .*pip wheel --wheel-dir"):
        pack()
    assert sorted(path.name for path in tmp_path.iterdir() if "package" in path.name) == []


def test_what_pip_is_asked_for(tmp_path, monkeypatch):
    asked = []

    def pip(command, **_):
        asked.append((command[1:], Path(command[command.index("--constraint") + 1]).read_text()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", pip)
    monkeypatch.setattr(wheels.platform, "system", lambda: "Linux")
    monkeypatch.setattr(wheels.platform, "machine", lambda: "x86_64")
    fetch_wheels(tmp_path, "cpu", ["monai==1.5"], "https://example.org/simple")
    (command, versions) = asked[0]
    release = torch.__version__.partition("+")[0]
    assert command[:3] == ["-m", "pip", "wheel"]
    assert command[-3:] == [str(Path(__file__).parents[1]), f"torch=={release}+cpu", "monai==1.5"]
    assert command[command.index("--extra-index-url") + 1] == "https://example.org/simple"
    assert f"numpy=={np.__version__}\n" in versions
    assert not re.search("^(torch|brats-lightning)==", versions, re.M)
    fetch_wheels(tmp_path, "cuda")
    assert asked[1][0][-1] == f"torch==={release}"
    assert "--extra-index-url" not in asked[1][0]
    fetch_wheels(tmp_path, "torch<3")
    assert asked[2][0][-1] == "torch<3"
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: a\nERROR: No matching distribution for torch<3\n")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(WheelError, match=r"^pip cannot make the wheels:\n  ERROR: No matching distribution"):
        fetch_wheels(tmp_path, "torch<3")
    monkeypatch.setattr(wheels.platform, "machine", lambda: "arm64")
    with pytest.raises(WheelError, match="this is Linux on arm64; give a folder of its wheels=DIR"):
        fetch_wheels(tmp_path, "cpu")


class Ours(nn.Conv3d):
    """A network of these tests."""


def test_packages_of_the_networks_are_included(pack, composed, tmp_path, monkeypatch):
    model = {"_target_": "tests.test_package.Ours", "in_channels": 1, "out_channels": 4, "kernel_size": 1}
    save_checkpoint(tmp_path / "ours.ckpt", nn.Conv3d(1, 4, 1), model)
    told = [f"ckpt={tmp_path}/ours.ckpt", f"output={tmp_path}/other", "trust=[tests]"]
    with pytest.raises(WheelError, match="tests is code of a checkpoint, and belongs to no installed package"):
        package(composed(*told, name="package"))
    assert distributions(["numpy"]) == [f"numpy=={np.__version__}"]
    asked = []
    monkeypatch.setattr(wheels, "fetch_wheels", lambda folder, torch, packages, index: asked.append(packages))
    package(composed(*told, "packages=[ours.whl]", name="package"))
    assert asked == [["ours.whl"]]
