import gzip
import os
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.core.labels import IGNORE
from brats_lightning.data.cases import CaseError
from brats_lightning.data.layouts.brats import find_inputs
from brats_lightning.inference.submission import check_submission
from brats_lightning.submission import main, submission
from tests.data.tiny_cases import LPS, RAS, SHAPE, save, write_case

FEW = np.zeros(SHAPE, np.uint8)  # voxels that are labelled
FEW[4, 4, 4:7] = 1
CASES = ("BraTS-MET-00001-000", "BraTS-MET-00001-001", "BraTS-MET-00002-000")


@pytest.fixture
def folders(tmp_path):
    """Three cases and their faultless masks."""
    for case in CASES:
        write_case(tmp_path / "in", case, seg=None)
        mask = np.zeros(SHAPE, np.uint8)
        mask[4, 4, 4:7] = [1, 2, 3]
        save(tmp_path / f"out/{case}.nii.gz", mask)
    return tmp_path / "out", tmp_path / "in"


@pytest.fixture
def check(composed):
    """The command, told one folder or two."""

    def command(folder, cases=None, *overrides):
        told = [f"predictions={folder}", *([f"input={cases}"] if cases else [])]
        return submission(composed(*told, *overrides, name="submission"))

    return command


def faults(folders, labels=(1, 2, 3)):
    return [(p.case, p.file, p.found) for p in check_submission(folders[0], labels, find_inputs(folders[1]))]


def test_a_faultless_submission(folders, check, capsys):
    assert faults(folders) == []
    assert check(*folders) == {"masks": 3, "bytes": 0}
    assert "3 masks, no problem found" in capsys.readouterr().out
    check(folders[0])
    assert "not compared" in capsys.readouterr().out


def test_no_voxel_is_left_without_a_class(folders):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4, 4, 4:7] = IGNORE
    save(folders[0] / f"{CASES[0]}.nii.gz", mask)
    assert faults(folders) == [("00001-000", f"{CASES[0]}.nii.gz", "label 255")]


def test_only_the_end_of_a_name_matters(folders):
    (folders[0] / f"{CASES[0]}.nii.gz").rename(folders[0] / "my_00001-000.nii.gz")
    assert faults(folders) == []


def test_every_fault_is_found_at_once(folders, check):
    out, _ = folders
    (out / "notes.txt").touch()
    (out / "more").mkdir()
    (out / f"{CASES[0]}.nii.gz").rename(out / "BraTS-MET-1-000.nii.gz")
    save(out / "BraTS-MET-00009-000.nii.gz", np.zeros(SHAPE, np.uint8))
    save(out / "again-00001-001.nii.gz", np.zeros(SHAPE, np.uint8))
    (out / f"{CASES[2]}.nii.gz").write_bytes(b"nothing")
    found = faults(folders)
    assert {(case, file) for case, file, _ in found} == {
        ("-", "notes.txt"),
        ("-", "more"),
        ("-", "BraTS-MET-1-000.nii.gz"),
        ("00001-000", "-"),  # missing
        ("00009-000", "BraTS-MET-00009-000.nii.gz"),  # surplus
        ("00001-001", "again-00001-001.nii.gz"),  # twice
        ("00002-000", f"{CASES[2]}.nii.gz"),  # not readable
    }
    with pytest.raises(CaseError) as error:
        check(*folders)
    assert all(
        word in str(error.value) for word in ("notes.txt", "more", "missing", "the same case as", "no such case")
    )


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (FEW.astype(np.int16), LPS, "voxels of type int16"),
        (FEW.astype(np.float32), LPS, "voxels of type float32"),
        (4 * FEW, LPS, "label 4"),
        (np.zeros((3, 4, 5), np.uint8), LPS, r"shape (3, 4, 5)"),
        (np.zeros(SHAPE, np.uint8), RAS, "lies 34.1 mm off t1n"),
        (np.zeros(SHAPE, np.uint8), LPS + np.eye(4)[:, [3, 0, 1, 2]] * 0, None),
    ],
)
def test_faults_of_a_file(folders, array, affine, message):
    save(folders[0] / f"{CASES[1]}.nii.gz", array, affine)
    found = faults(folders)
    assert [f[:2] for f in found] == ([("00001-001", f"{CASES[1]}.nii.gz")] if message else [])
    assert not message or message in found[0][2]


def test_an_origin_that_is_off_by_a_little(folders):
    for shift, expected in ((0.0005, 0), (0.01, 1)):
        affine = LPS.copy()
        affine[0, 3] += shift
        save(folders[0] / f"{CASES[1]}.nii.gz", np.zeros(SHAPE, np.uint8), affine)
        assert len(faults(folders)) == expected


def test_scaled_labels(folders):
    image = nib.Nifti1Image(FEW, LPS)
    image.header.set_slope_inter(2, 0)
    (folders[0] / f"{CASES[1]}.nii.gz").write_bytes(gzip.compress(image.to_bytes()))
    assert [found for *_, found in faults(folders)] == ["voxels of type uint8, scaled by 2 and 0"]


def test_a_resection_cavity_must_be_allowed(folders, check):
    save(folders[0] / f"{CASES[1]}.nii.gz", 4 * FEW)
    with pytest.raises(CaseError, match=r"label 4.*labels=\[…\] allows others"):
        check(folders[0])
    assert check(folders[0], None, "labels=[1,2,3,4]") == {"masks": 3, "bytes": 0}


def test_an_input_that_cannot_be_read(folders):
    (folders[1] / CASES[0] / f"{CASES[0]}-t1n.nii.gz").write_bytes(b"nothing")
    assert faults(folders) == [("00001-000", f"{CASES[0]}.nii.gz", "its t1n cannot be read")]


def test_more_than_a_brain_can_hold(folders, check):
    box = np.zeros(SHAPE, np.uint8)
    box[2:10, 2:12, 2:8] = 1  # where the scans are not 0: 480 voxels, of which 120 are a quarter
    mask = np.where(np.cumsum(box).reshape(SHAPE) <= 120, box, 0).astype(np.uint8)
    save(folders[0] / f"{CASES[1]}.nii.gz", mask)
    assert faults(folders) == []
    mask[9, 11, 7] = 2
    save(folders[0] / f"{CASES[1]}.nii.gz", mask)
    found = "25% of the box around the brain is labelled: label 1 25%, label 2 0%"
    assert faults(folders) == [("00001-001", f"{CASES[1]}.nii.gz", found)]
    assert check(*folders, "max_share=0.26")["masks"] == 3
    assert check(folders[0])["masks"] == 3  # 121 of 1680 voxels
    with pytest.raises(CaseError, match="7% of the volume"):
        check(folders[0], None, "max_share=0.07")
    with pytest.raises(ValueError, match="max_share must be above 0"):
        check(folders[0], None, "max_share=0")


def test_the_archive_is_flat_and_the_same_every_time(folders, check, tmp_path):
    archive = tmp_path / "new/masks.zip"
    assert check(*folders, f"zip={archive}") == {"masks": 3, "bytes": archive.stat().st_size}
    before = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == [f"{case}.nii.gz" for case in CASES]
        assert opened.testzip() is None
        assert opened.read(f"{CASES[1]}.nii.gz") == (folders[0] / f"{CASES[1]}.nii.gz").read_bytes()
        assert {oct(entry.external_attr >> 16) for entry in opened.infolist()} == {"0o100644"}
    for file in folders[0].iterdir():
        os.utime(file, (1e9, 1e9))
    check(*folders, f"zip={archive}")
    assert archive.read_bytes() == before
    assert [path.name for path in archive.parent.iterdir()] == ["masks.zip"]


def test_nothing_is_packed_that_would_be_refused(folders, check, tmp_path):
    (folders[0] / "notes.txt").touch()
    with pytest.raises(CaseError, match=r"notes\.txt"):
        check(*folders, f"zip={tmp_path}/a.zip")
    assert not (tmp_path / "a.zip").exists()
    for name, message in ((f"{tmp_path}/a.tar", r"named ….zip"), (folders[0] / "a.zip", "which holds masks only")):
        with pytest.raises(ValueError, match=message):
            check(*folders, f"zip={name}")


def test_folders_that_are_not_there(folders, check, tmp_path):
    for told in ([tmp_path / "nowhere"], [folders[0], tmp_path / "nowhere"]):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            check(*told)


def test_a_folder_without_masks(folders, check, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match="no mask in"):
        check(tmp_path / "empty")


def test_two_cases_of_one_number(folders):
    other = folders[1] / "MY-00001-000"
    other.mkdir()
    save(other / "MY-00001-000-t1n.nii.gz", np.zeros(SHAPE, np.uint8))
    assert ("00001-000", "MY-00001-000", f"the same number as {CASES[0]}") in faults(folders)


def test_a_mask_that_is_not_compressed(folders):
    path = folders[0] / f"{CASES[1]}.nii.gz"
    path.write_bytes(gzip.decompress(path.read_bytes()))
    assert faults(folders) == [("00001-001", path.name, "not compressed, though its name ends with .gz")]


def test_the_array_shape_is_that_of_the_input(folders):
    mask = np.zeros((*SHAPE, 1), np.uint8)
    save(folders[0] / f"{CASES[1]}.nii.gz", mask)
    assert faults(folders) == [("00001-001", f"{CASES[1]}.nii.gz", f"shape {(*SHAPE, 1)}")]
    save(folders[1] / CASES[1] / f"{CASES[1]}-t1n.nii.gz", mask)
    assert faults(folders) == []


def test_a_folder_that_may_not_be_read(folders, check, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        check(folders[0])


def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["brats-submission", f"predictions={tmp_path}/nowhere"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == f"error: there is no folder {tmp_path}/nowhere to check\n"


def test_a_folder_without_its_key_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["brats-submission", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert (
        capsys.readouterr().err == f"error: {tmp_path}: options are key=value; did you mean predictions={tmp_path}?\n"
    )
