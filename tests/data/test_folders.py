import os
from pathlib import Path

import pytest

from brats_lightning.data import folders as module
from brats_lightning.data.folders import nifti_files
from brats_lightning.data.layouts.brats import find_cases
from tests.data.tiny_cases import touch, write_case


def test_folders_named_like_files_are_the_file_in_them(tmp_path):
    touch(
        tmp_path,
        "X/X_flair.nii/00000377_brain_flair.nii",
        "X/X_flair.nii/._00000377_brain_flair.nii",
        "X/X_seg.nii/00000377_final_seg.nii",
        "X/X_t1.nii.gz",
        "two.nii/a.nii",
        "two.nii/b.nii.gz",
        "none.nii/readme.txt",
    )
    found = [(file.name, str(file.path.relative_to(tmp_path)), file.folder.name) for file in nifti_files(tmp_path)]
    assert found == [
        ("X_flair.nii", "X/X_flair.nii/00000377_brain_flair.nii", "X"),
        ("X_seg.nii", "X/X_seg.nii/00000377_final_seg.nii", "X"),
        ("X_t1.nii.gz", "X/X_t1.nii.gz", "X"),
        ("a.nii", "two.nii/a.nii", "two.nii"),
        ("b.nii.gz", "two.nii/b.nii.gz", "two.nii"),
    ]
    (case,) = (case for case in find_cases(tmp_path) if case.images)
    assert (case.id, list(case.images), case.faults, case.masks_from) == ("X", ["t1n", "t2f"], (), None)
    assert case.mask == tmp_path / "X/X_seg.nii/00000377_final_seg.nii"


@pytest.fixture
def locked(monkeypatch):
    """Folders that may not be read; a superuser, as in a container, may read all."""
    names = set()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name in names:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(module.os, "scandir", refuse)
    return names


def test_a_folder_that_may_not_be_read_is_passed_over_and_named(tmp_path, locked, caplog):
    write_case(tmp_path)
    (tmp_path / "lost+found").mkdir()
    locked.add("lost+found")
    assert len(find_cases(tmp_path)) == len(find_cases(tmp_path)) == 1
    assert caplog.messages == [f"passed over {tmp_path / 'lost+found'}: Permission denied"]  # once


def test_a_root_that_may_not_be_read(tmp_path, locked, caplog):
    write_case(tmp_path)
    locked.add(tmp_path.name)
    with pytest.raises(ValueError, match="no case in"):
        find_cases(tmp_path)
    assert "Permission denied" in caplog.text


def test_links_in_a_circle_are_no_folders(tmp_path):
    (tmp_path / "a.nii").symlink_to(tmp_path / "b.nii")
    (tmp_path / "b.nii").symlink_to(tmp_path / "a.nii")
    assert [file.name for file in nifti_files(tmp_path)] == ["a.nii", "b.nii"]
