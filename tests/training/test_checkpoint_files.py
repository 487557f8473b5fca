"""Checkpoints on disk: whole or not there, on one file system and on two."""

import errno
import os
from pathlib import Path

import pytest
import torch

from brats_lightning.runtime.files import UnwritableFile
from brats_lightning.training.checkpoint_files import WholeCheckpoints


def test_it_is_written_beside_its_target_and_reaches_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(str(Path(f"/proc/self/fd/{file}").readlink())))
    monkeypatch.setenv("TMPDIR", "/nowhere")  # as good as another file system
    WholeCheckpoints().save_checkpoint({"w": torch.ones(3)}, tmp_path / "new/last.ckpt")
    (file,) = (tmp_path / "new").iterdir()
    assert torch.equal(torch.load(file, weights_only=True)["w"], torch.ones(3))
    assert synced[0].startswith(str(tmp_path / "new/.last.ckpt."))


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("unexpected pos 640 vs 534"),
    ],  # torch's word for it
)
def test_a_full_disk_leaves_the_former_one_and_names_the_file(tmp_path, monkeypatch, failure):
    path = tmp_path / "last.ckpt"
    path.write_text("before")

    def half(checkpoint, file):
        file.write(b"half")
        raise failure

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UnwritableFile, match=r"last\.ckpt: .*(No space left|disk may be full)"):
        WholeCheckpoints().save_checkpoint({}, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_writes_its_checkpoints_so(composed):
    from brats_lightning.config.build import build_trainer

    assert isinstance(build_trainer(composed()).strategy.checkpoint_io, WholeCheckpoints)
