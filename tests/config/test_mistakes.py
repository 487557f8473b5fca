"""What a newcomer types wrong: one message names the fix, nothing is left behind."""

import errno
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException

from brats_lightning.config import run_folder
from brats_lightning.config.errors import explanation
from brats_lightning.runtime import files
from tests.data.tiny_cases import lesions, write_case
from tests.tiny_models import bright_is_et

QUICK = ["experiment=quick", "model.widths=[8,16]", "seed=0", "trainer=cpu"]


@pytest.fixture
def says(tmp_path, monkeypatch, capsys):
    """What a command prints on stderr, with its exit code, run in ``tmp_path`` with a line of arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", HydraConfig.instance().cfg)
    run_folder.new_folder.cache_clear()

    def run(command, *arguments):
        logging = [] if {"--model", "--epochs=3"} & set(arguments) else ["hydra/job_logging=none"]
        monkeypatch.setattr(sys, "argv", [f"brats-{command}", *arguments, *logging])
        with pytest.raises(SystemExit) as stop:
            importlib.import_module(f"brats_lightning.{command}").main()
        return capsys.readouterr().err, stop.value.code

    return run


# The line as the shell hands it over, and a part of what is said. Each was met in a first hour with this program, or in
# the public issues of Hydra, nnU-Net and MONAI.
TYPED = {
    "a wrong choice": ("train", ["model=unett"], "model=unett: there is no such choice; did you mean model=unet?"),
    "a choice in capitals": ("train", ["model=UNet"], "did you mean model=unet?"),
    "a choice that is not there": ("train", ["logger=comet"], "there are csv, mlflow, none, tensorboard, wandb"),
    "a folder for a layout": ("train", ["data=/data/x"], "data=brats_mets data.root=/data/x"),
    "a wrong nested key": ("train", ["model.width=[8]"], "did you mean 'model.widths=[8]'?"),
    "a key without its group": ("train", ["lr=0.1"], "did you mean optimizer.lr=0.1?"),
    "a key of two groups": ("train", ["batch_size=4"], "data.batch_size=4 or inference.batch_size=4?"),
    "a key of other programs": ("train", ["epochs=10"], "did you mean trainer.max_epochs=10?"),
    "an argument of Lightning": ("train", ["trainer.limit_val_batches=3"], "plus: +trainer.limit_val_batches=3"),
    "a plus too many": ("train", ["+data.batch_size=4"], "Either remove + prefix: 'data.batch_size=4'"),
    "a key of the training": ("predict", ["data.modalities=[t1c]"], "the checkpoint carries; leave it out"),
    "a group of the training": ("predict", ["model=unet"], "the checkpoint carries; leave it out"),
    "dashes": ("train", ["--model", "resunet"], "--model resunet: settings have no dashes: model=resunet"),
    "dashes and another name": ("train", ["--epochs=3"], "settings have no dashes: trainer.max_epochs=3"),
    "no key": ("evaluate", ["masks", "output=x"], "did you mean predictions=masks or references=masks?"),
    "spaces around =": ("train", ["model", "=", "unet"], "model = unet: no spaces around =: model=unet"),
    "a space after =": ("predict", ["ckpt=", "a.ckpt"], "no spaces around =: ckpt=a.ckpt"),
    "a colon": ("train", ["model:", "unet"], "options are key=value: model=unet"),
    "a list with a space": (
        "train", ["data.modalities=[t1c,", "t2f]"],
        "the shell split data.modalities=[t1c, t2f] at its spaces; quote it: 'data.modalities=[t1c, t2f]'",
    ),
    "a mapping without quotes": (
        "train", ["data.label_map=4:3", "data.label_map=5:2"], "quote it: 'data.label_map={4:3,5:2}'",
    ),
    "an open bracket": ("train", ["sampling.size=[32,32"], "a bracket is not closed"),
    "round brackets": ("train", ["sampling.size=(32,32,32)"], "square brackets: 'sampling.size=[32,32,32]'"),
    "no brackets": ("train", ["sampling.size=8,8,8"], "a list has brackets: 'sampling.size=[8,8,8]'"),
    "several choices without -m": ("train", ["model=unet,resunet"], "-m makes a run with each of these choices"),
    "several values without -m": ("train", ["seed=0,1"], "-m makes a run with each of these values"),
    "a name with brackets": ("train", ["data.root=x(1)"], "inside the shell's quotes: 'data.root=\"x(1)\"'"),
    "a name with =": ("predict", ["ckpt=epoch=3.ckpt"], "inside the shell's quotes: 'ckpt=\"epoch=3.ckpt\"'"),
    "line ends of Windows": ("train", ["model=unet\r"], "carriage returns"),
    "a folder of configs": ("train", ["--config-dir", "nowhere"], "Additional config directory"),
    "no SLURM": ("train", ["-m", "launcher=slurm", "seed=0,1"], "this machine has no SLURM (no srun)"),
    "an unknown number of GPUs": (
        "train", ["-m", "launcher=slurm", "trainer=ddp", "seed=0,1"],
        "launcher=slurm requests what the trainer needs: set trainer.devices=N, got -1",
    ),
    "no run": ("train", ["resume=nowhere"], "does not exist; give the folder that holds checkpoints/ and .hydra/"),
    "no mandatory value": ("train", ["data=brats_mets"], "must be given on the command line: data.root=…"),
}  # fmt: skip

# Those that a command finds before it reads a case.
SETTINGS = {
    "no such folder": (["data=brats_mets", "data.root=nowhere"], "data.root=nowhere is not a folder"),
    "the home folder": (["data=brats_mets", "data.root=~/nowhere"], f"data.root={Path.home()}/nowhere is not"),
    "an older name": (["data.modalities=[t1ce]"], "t1ce is called t1c here"),
    "a word for a list": (["data.modalities=t1c"], "a list is expected: 'data.modalities=[t1c]'"),
    "words for a list": (["data.modalities=t1c t2f"], "a list is expected: 'data.modalities=[t1c,t2f]'"),
    "a number for a list": (["sampling.size=32"], "a list is expected: 'sampling.size=[32,32,32]'"),
    "a word for a mapping": (["data.label_map=4:3"], "a mapping is expected: 'data.label_map={4:3}'"),
    "a word for a number": (["optimizer.lr=fast"], "optimizer.lr=fast: a number is expected"),
    "a negative size": (["sampling.size=[-1,32,32]"], "sampling.size must be 3 positive whole number(s)"),
    "an empty batch": (["data.batch_size=0"], "data.batch_size and data.patches_per_case must be at least 1"),
    "seconds for a time": (["trainer.max_time=120"], "trainer.max_time is DD:HH:MM:SS, such as"),
    "hours for a time": (["trainer.max_time=2h"], "trainer.max_time is DD:HH:MM:SS, such as"),
    "a GPU": (["trainer=gpu"], "trainer=auto takes a GPU where there is one"),
    "weights of another type": (
        ["trainer.precision=bf16-true"],
        "stay in 32 bits here; choose auto, 32-true, bf16-mix",
    ),
    "no checkpoint": (["weights=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
}


@pytest.mark.parametrize(("command", "arguments", "message"), TYPED.values(), ids=TYPED)
def test_the_command_line(says, tmp_path, monkeypatch, command, arguments, message):
    monkeypatch.setenv("PATH", str(tmp_path))  # without srun
    said, code = says(command, *arguments)
    check(said, message)
    assert code == (2 if "no dashes" in message else 1)
    assert not list(tmp_path.glob("outputs/*/*"))


@pytest.mark.parametrize(("arguments", "message"), SETTINGS.values(), ids=SETTINGS)
def test_settings(says, tmp_path, arguments, message):
    if arguments == ["trainer=gpu"] and torch.cuda.is_available():
        pytest.skip("there is one")
    said, code = says("train", *QUICK, *arguments)
    check(said, message)
    assert code == 1
    assert not list(tmp_path.glob("outputs/*/*"))  # no run folder, no phantoms


def check(said, message):
    """One message, without a traceback or Hydra's advice."""
    assert message in said
    assert said.startswith("error: ")
    assert said.count("error: ") == 1
    assert not any(word in said for word in ("Traceback", "HYDRA_FULL_ERROR", "hydra.cc"))


def test_a_terminal_that_lacks_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["brats-train", "data=brats_mets", f"data.root={tmp_path}/Köln", *QUICK])
    with (tmp_path / "err").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(SystemExit):
            importlib.import_module("brats_lightning.train").main()
    assert (tmp_path / "err").read_text().startswith("error: data.root=")


def test_a_pipe_that_nobody_reads(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "argv", ["brats-train", "--help"])
    with os.fdopen(writer, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as stop:
            importlib.import_module("brats_lightning.train").main()
    assert stop.value.code == 128 + 13
    assert capsys.readouterr().err == ""


def test_weights_of_other_sequences_or_sizes(says, tmp_path):
    bright_is_et(tmp_path / "a.ckpt")
    said, _ = says("train", *QUICK, f"weights={tmp_path}/a.ckpt")
    check(said, "are of another network; they fit one with ")
    assert "'data.modalities=[t1c]'" in said
    assert "size mismatch" not in said


def test_a_file_that_is_no_checkpoint(says, tmp_path):
    (tmp_path / "notes.ckpt").write_text("notes")
    (tmp_path / "in").mkdir()
    write_case(tmp_path / "in")
    said, _ = says("predict", f"ckpt={tmp_path}/notes.ckpt", f"input={tmp_path}/in", "output=out")
    check(said, "notes.ckpt is damaged, or holds more than tensors")


def test_unknown_labels_and_files_that_are_cut_off(says, tmp_path):
    write_case(tmp_path / "in", seg=lesions() + (lesions() == 3).astype(np.uint8))  # BraTS 2022's 4
    cut = write_case(tmp_path / "in", "BraTS-MET-00002-000") / "BraTS-MET-00002-000-t1c.nii.gz"
    cut.write_bytes(cut.read_bytes()[:100])
    said, _ = says("preprocess", "data=brats_mets", f"data.root={tmp_path}/in", "data.cache_workers=0")
    assert said.startswith("error: 2 cases cannot be used")
    assert "data.label_map" in said
    assert "Traceback" not in said


def test_an_empty_folder(says, tmp_path):
    (tmp_path / "in").mkdir()
    said, _ = says("train", *QUICK, "data=brats_mets", f"data.root={tmp_path}/in")
    check(said, "expected nested folders with <case>-t1n.nii.gz")


def test_a_full_disk(says, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    said, code = says("train", *QUICK)
    check(said, "No space left on device; free some space, or choose another folder")
    assert code == 1
    assert not list(tmp_path.glob("outputs/train/*"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "lower data.batch_size or sampling.size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "lower data.batch_size, sampling.size"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/x"), "/data/x: Permission denied"),
        (HydraException("In 'train': Could not find 'hydra/launcher/joblib'"), "needs the extra sweep: pip install"),
        (RuntimeError("Job not requeued because: timed-out too many times."), "resume=RUN continues it"),
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:6: x"), "its machine is gone"),
        (ValueError("from a library"), None),
    ],
)  # fmt: skip
def test_errors_of_others(error, message):
    said = explanation(error, "train", [])
    assert said == message if message is None else message in said


def test_a_hint_does_not_hide_another_error():
    """``auto`` is no number, as ``devices`` is by default, but has nothing to do with the disk."""
    full = PermissionError(errno.EACCES, "Permission denied", "/data/x")
    assert explanation(full, "train", ["trainer.devices=auto"]) == "/data/x: Permission denied"


def test_the_whole_traceback_is_there_for_who_wants_it(tmp_path):
    code = "from brats_lightning.train import main; main()"
    command = [sys.executable, "-c", code, "lr=0.1"]
    done = subprocess.run(command, env={"HYDRA_FULL_ERROR": "1"}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ConfigCompositionException" in done.stderr


def test_only_a_folder_of_records_that_was_made_here_is_removed(tmp_path):
    run_folder.new_folder.cache_clear()
    used, unused, named = (run_folder.new_folder(str(tmp_path / name)) for name in ("used", "unused", "named"))
    before = tmp_path / "before"
    before.mkdir()
    assert run_folder.named_folder([f"hydra.run.dir={before}"]) == before
    assert run_folder.named_folder([f"hydra.run.dir='{tmp_path}/given'"]) == tmp_path / "given"
    assert run_folder.named_folder(["model=unet"]) is None
    for folder in map(Path, (used, unused, before, tmp_path / "given")):
        (folder / ".hydra").mkdir(parents=True)
        (folder / "train.log").write_text("run folder: here")
    (Path(used) / "checkpoints").mkdir()
    run_folder.remove_unused()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "used"]
    Path(named).mkdir()
    run_folder.remove_unused()  # of another start
    assert Path(named).exists()
