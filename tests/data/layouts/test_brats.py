import os

import pytest

from brats_lightning.core.labels import MODALITIES
from brats_lightning.data.cases import check_files, masks_apart, without_mask
from brats_lightning.data.layouts.brats import find_cases, find_inputs
from tests.data.tiny_cases import touch


def surplus(case):
    """The folders of the files that are one too many."""
    return [fault.found.split(" (")[0].split("/")[-2] for fault in case.faults]


def test_newer_and_older_names_anywhere_below_the_root(tmp_path):
    folder = "UCSD - Training/BraTS-MET-00110-001"
    touch(tmp_path, *(f"{folder}/BraTS-MET-00110-001-{s}.nii.gz" for s in (*MODALITIES, "seg")))
    touch(tmp_path, *(f"b/BraTS2021_00002_{s}.nii.gz" for s in ("t1", "t1ce", "t2", "flair", "seg")))
    touch(tmp_path, "BraTS-GLI-00005-100-t1c.nii", "BraTS-GLI-00005-100-t2f.nii.gz", "notes.txt", "other.nii.gz")
    touch(tmp_path, "._BraTS-GLI-00005-100-t1n.nii.gz", ".hidden/BraTS-MET-99999-000-t1n.nii.gz")
    gli, met, old = find_cases(tmp_path)
    assert (gli.id, gli.patient, gli.timepoint) == ("BraTS-GLI-00005-100", "BraTS-GLI-00005", "100")
    assert list(gli.images) == ["t1c", "t2f"]
    assert gli.mask is None
    assert (met.id, met.patient, met.timepoint) == ("BraTS-MET-00110-001", "BraTS-MET-00110", "001")
    assert tuple(met.images) == MODALITIES
    assert met.mask == tmp_path / folder / "BraTS-MET-00110-001-seg.nii.gz"
    assert list(met.files) == [*MODALITIES, "seg"]
    assert (old.id, old.patient, old.timepoint) == ("BraTS2021_00002", "BraTS2021_00002", None)
    assert {m: p.name for m, p in old.images.items()} == {
        "t1n": "BraTS2021_00002_t1.nii.gz",
        "t1c": "BraTS2021_00002_t1ce.nii.gz",
        "t2w": "BraTS2021_00002_t2.nii.gz",
        "t2f": "BraTS2021_00002_flair.nii.gz",
    }


def test_capitals_in_endings_and_sequences_make_no_difference(tmp_path):
    touch(tmp_path, "a/A_T1.NII.GZ", "a/A_T1CE.nii", "a/A_T2.nii.GZ", "a/A_FLAIR.NII", "a/A_Seg.nii.gz")
    (case,) = find_cases(tmp_path)
    assert case.id == "A"
    assert {kind: path.name for kind, path in case.files.items()} == {
        "t1n": "A_T1.NII.GZ",
        "t1c": "A_T1CE.nii",
        "t2w": "A_T2.nii.GZ",
        "t2f": "A_FLAIR.NII",
        "seg": "A_Seg.nii.gz",
    }


def test_only_a_numbered_patient_has_a_timepoint(tmp_path):
    # "study-001" and "study-002" are two patients, not two visits of "study"
    touch(tmp_path, "study-001-t1n.nii.gz", "study-002-t1n.nii.gz", "Brats18_X_1_t1.nii")
    assert [case.patient for case in find_cases(tmp_path)] == ["Brats18_X_1", "study-001", "study-002"]


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "real", "c/BraTS-MET-00001-000-t1n.nii.gz")
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a/link").symlink_to(tmp_path / "real/c")
    (root / "a/loop").symlink_to(root)
    (root / "BraTS-MET-00002-000-t1n.nii.gz").symlink_to(tmp_path / "real/c/BraTS-MET-00001-000-t1n.nii.gz")
    cases = find_cases(root)
    assert [case.id for case in cases] == ["BraTS-MET-00001-000", "BraTS-MET-00002-000"]
    assert not any(case.faults for case in cases)


def test_one_case_in_two_places_is_reported(tmp_path):
    for folder in ("a", "b"):
        touch(tmp_path, *(f"{folder}/BraTS-MET-00001-000-{s}.nii.gz" for s in ("t1n", "t1c")))
    touch(tmp_path, "c/BraTS-MET-00002-000-t1n.nii", "c/BraTS-MET-00002-000-t1n.nii.gz")
    first, second = find_cases(tmp_path)
    assert {path.parent.name for path in first.images.values()} == {"a"}
    assert surplus(first) == ["b", "b"]
    problems = check_files(first, ("t1n", "t1c"), need_mask=False)
    assert len(problems) == 2
    assert "b/BraTS-MET-00001-000-t1c.nii.gz" in problems[0].found
    assert len(second.faults) == 1


NAME = "BraTS-MET-00001-000"


@pytest.mark.parametrize("mask", [f"{NAME}-seg.nii.gz", f"{NAME}_seg.nii", f"{NAME}_final_seg.nii.gz"])
def test_a_mask_in_another_folder_is_paired_by_name_and_told(tmp_path, mask):
    touch(tmp_path, f"images/{NAME}-t1n.nii.gz", f"labels/{mask}")
    (case,) = find_cases(tmp_path)
    assert (case.patient, case.timepoint) == ("BraTS-MET-00001", "000")  # an image's name decides
    assert case.mask == tmp_path / "labels" / mask
    assert case.faults == ()
    assert masks_apart([case]) == f"masks: 1 from {tmp_path / 'labels'}"
    assert without_mask([case]) == ""


def test_a_mask_beside_its_images_comes_first_and_two_elsewhere_are_a_clash(tmp_path):
    touch(tmp_path, *(f"{folder}/{NAME}-seg.nii.gz" for folder in ("a", "c")), f"b/{NAME}-t1n.nii.gz")
    (case,) = find_cases(tmp_path)
    assert surplus(case) == ["c"]
    touch(tmp_path, f"b/{NAME}-seg.nii.gz")
    (case,) = find_cases(tmp_path)
    assert case.mask.parent.name == "b"
    assert surplus(case) == ["a", "c"]
    assert masks_apart([case]) == ""


def test_a_case_may_be_called_final(tmp_path):
    touch(tmp_path, "a/X_final_t1.nii", "a/X_t1.nii", "m/X_final_seg.nii", "m/X_seg.nii")
    assert [(case.id, case.mask.name) for case in find_cases(tmp_path)] == [
        ("X", "X_seg.nii"),
        ("X_final", "X_final_seg.nii"),
    ]


def test_folders_of_masks_replace_those_beside_the_images_and_the_last_wins(tmp_path):
    names = [f"BraTS-MET-0000{i}-000" for i in range(1, 5)]
    touch(tmp_path, *(f"in/{name}/{name}-{kind}.nii.gz" for name in names for kind in ("t1n", "seg")))
    touch(tmp_path, f"one/{names[0]}.nii.gz", f"one/deep/{names[1]}-seg.nii.gz", "one/stranger.nii.gz")
    touch(tmp_path, f"in/two/{names[1]}_seg.nii.gz", f"in/two/{names[2]}_final_seg.nii.gz")
    cases = find_cases(tmp_path / "in", masks=[str(tmp_path / "one"), tmp_path / "in/two"])
    assert [case.mask.relative_to(tmp_path).as_posix() for case in cases] == [
        f"one/{names[0]}.nii.gz",
        f"in/two/{names[1]}_seg.nii.gz",
        f"in/two/{names[2]}_final_seg.nii.gz",
        f"in/{names[3]}/{names[3]}-seg.nii.gz",
    ]
    assert not any(case.faults for case in cases)
    assert masks_apart(cases) == f"masks: 1 from {tmp_path / 'one'}, 2 from {tmp_path / 'in/two'}"
    touch(tmp_path, f"one/{names[0]}-seg.nii.gz")  # which of the two?
    first, *_ = find_cases(tmp_path / "in", masks=tmp_path / "one")
    assert len(first.faults) == 1


def test_folders_of_masks_that_have_none(tmp_path):
    touch(tmp_path, f"in/{NAME}-t1n.nii.gz", "labels/other.nii.gz")
    with pytest.raises(ValueError, match=rf"data.masks: .*labels has a mask of none of the 1 cases; .*{NAME}-seg"):
        find_cases(tmp_path / "in", masks=tmp_path / "labels")
    with pytest.raises(FileNotFoundError, match=r"data.masks: there is no folder .*nowhere"):
        find_cases(tmp_path / "in", masks=tmp_path / "nowhere")


def test_files_that_may_be_the_missing_ones_are_named(tmp_path):
    name = "BraTS20_Training_355"
    touch(tmp_path, *(f"a/{name}/{name}_{kind}.nii" for kind in ("t1", "t1ce", "t2")), f"a/{name}/W39_Segm.nii")
    touch(tmp_path, f"flat/{NAME}-t1n.nii.gz", "flat/B-00002-000-t1n.nii.gz", "flat/stranger.nii.gz")
    touch(tmp_path, f"labels/{NAME}.nii.gz")
    first, met, old = find_cases(tmp_path)
    odd = tmp_path / f"a/{name}/W39_Segm.nii"
    assert old.others == (odd,)
    assert met.others == (tmp_path / f"labels/{NAME}.nii.gz",)
    assert first.others == ()
    assert without_mask([first, met, old]) == (
        f"3 without mask: {first.id}, {NAME} ({met.others[0]} may be it), {name} ({odd} may be it)"
    )
    flair, seg = check_files(old, MODALITIES, need_mask=True)
    assert flair.found == f"missing (there: t1n, t1c, t2w); {odd} may be it"
    assert seg.found == f"missing; {odd} may be it"
    assert seg.remedy.startswith("rename that file, name its folder in data.masks, ")


def test_files_of_no_case_are_told_once_since_cases_may_be_among_them(tmp_path, caplog):
    touch(tmp_path, f"a/{NAME}-t1n.nii.gz", f"a/{NAME}-adc.nii.gz", "b/B-00002-000-t1.nii.gz", "b/B-00002-000-gd.nii")
    touch(tmp_path, "c/C-00003-000-flair.NII.GZ", "d/D-00004-000_t1c.nii.gz", "d/D-00004-000-seg.nii.gz")
    for _ in range(2):
        found = find_cases(tmp_path)
    odd = [f"{tmp_path}/{name}" for name in ("b/B-00002-000-gd", "b/B-00002-000-t1", "c/C-00003-000-flair")]
    assert caplog.messages == [
        f"3 NIfTI files in {tmp_path} belong to no case and are left out: {odd[0]}.nii, {odd[1]}.nii.gz, "
        f"{odd[2]}.NII.GZ; expected nested folders with <case>-t1n.nii.gz, -t1c, -t2w, -t2f, -seg (or the older "
        "<case>_t1, _t1ce, …)"
    ]
    (t1c,) = check_files(found[1], ["t1c"], need_mask=False)
    assert t1c.found == f"missing (there: none); {tmp_path}/d/D-00004-000_t1c.nii.gz may be it"


def test_missing_and_empty_roots(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root=.*none is not a folder; expected nested folders"):
        find_cases(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no case in data.root=.*expected nested folders .*-t1n.nii.gz"):
        find_cases(tmp_path)
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    with pytest.raises(ValueError, match=r"no case in .* \(1 NIfTI file with another name: .*/a_0000.nii.gz\)"):
        find_cases(tmp_path)


def test_finding_opens_nothing(tmp_path, monkeypatch):
    touch(tmp_path, "a/BraTS-MET-00001-000-t1n.nii.gz")
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr(os, "open", None)
    assert len(find_cases(tmp_path)) == 1


def test_cases_in_two_input_folders_are_all_named(tmp_path):
    names = [f"B-0000{n}-000" for n in (1, 2, 3)]
    touch(tmp_path, *(f"a/{name}-t1n.nii.gz" for name in names), *(f"b/{name}-t1n.nii.gz" for name in names[1:]))
    with pytest.raises(ValueError, match="two of the folders") as error:
        find_inputs([f"{tmp_path}/a", f"{tmp_path}/b"])
    listed = ", ".join(f"{name} in {tmp_path}/a and in {tmp_path}/b" for name in names[1:])
    assert str(error.value) == f"input: cases that are in two of the folders: {listed}; leave one of each out"
