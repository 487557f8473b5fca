import gzip
import os
import pickle

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS, MODALITIES, LabelScheme
from brats_lightning.data import cases as module
from brats_lightning.data.cases import (
    Case,
    CaseError,
    check_files,
    examine,
    find_cases,
    masks_apart,
    problem_table,
    required,
    without_mask,
)
from tests.data.tiny_cases import LPS, RAS, brain, lesions, save, write_case


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def check_case(case, modalities=MODALITIES, scheme=BRATS_METS, label_map=None, tolerance=0.1):
    """Everything that keeps a case from being used."""
    read = examine(case, scheme, label_map, tolerance).problems
    return check_files(case, modalities, need_mask=True) + required(read, modalities, need_mask=True)


def check_cases(cases):
    return [problem for case in cases for problem in check_case(case)]


def found(case):
    return [(p.file, p.found) for p in case]


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
    assert not any(case.clashes for case in cases)


def test_one_case_in_two_places_is_reported(tmp_path):
    for folder in ("a", "b"):
        touch(tmp_path, *(f"{folder}/BraTS-MET-00001-000-{s}.nii.gz" for s in ("t1n", "t1c")))
    touch(tmp_path, "c/BraTS-MET-00002-000-t1n.nii", "c/BraTS-MET-00002-000-t1n.nii.gz")
    first, second = find_cases(tmp_path)
    assert {path.parent.name for path in first.images.values()} == {"a"}
    assert [path.parent.name for path in first.clashes] == ["b", "b"]
    problems = check_files(first, ("t1n", "t1c"), need_mask=False)
    assert len(problems) == 2
    assert "b/BraTS-MET-00001-000-t1c.nii.gz" in problems[0].found
    assert len(second.clashes) == 1


NAME = "BraTS-MET-00001-000"


@pytest.mark.parametrize("mask", [f"{NAME}-seg.nii.gz", f"{NAME}_seg.nii", f"{NAME}_final_seg.nii.gz"])
def test_a_mask_in_another_folder_is_paired_by_name_and_told(tmp_path, mask):
    touch(tmp_path, f"images/{NAME}-t1n.nii.gz", f"labels/{mask}")
    (case,) = find_cases(tmp_path)
    assert (case.patient, case.timepoint) == ("BraTS-MET-00001", "000")  # an image's name decides
    assert case.mask == tmp_path / "labels" / mask
    assert case.clashes == ()
    assert masks_apart([case]) == f"masks: 1 from {tmp_path / 'labels'}"
    assert without_mask([case]) == ""


def test_a_mask_beside_its_images_comes_first_and_two_elsewhere_are_a_clash(tmp_path):
    touch(tmp_path, *(f"{folder}/{NAME}-seg.nii.gz" for folder in ("a", "c")), f"b/{NAME}-t1n.nii.gz")
    (case,) = find_cases(tmp_path)
    assert [path.parent.name for path in case.clashes] == ["c"]
    touch(tmp_path, f"b/{NAME}-seg.nii.gz")
    (case,) = find_cases(tmp_path)
    assert case.mask.parent.name == "b"
    assert [path.parent.name for path in case.clashes] == ["a", "c"]
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
    assert not any(case.clashes for case in cases)
    assert masks_apart(cases) == f"masks: 1 from {tmp_path / 'one'}, 2 from {tmp_path / 'in/two'}"
    touch(tmp_path, f"one/{names[0]}-seg.nii.gz")  # which of the two?
    first, *_ = find_cases(tmp_path / "in", masks=tmp_path / "one")
    assert len(first.clashes) == 1


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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
def test_labels_that_a_scaled_header_moved_are_whole_again(tmp_path, dtype):
    folder = write_case(tmp_path, seg=lesions().astype(dtype))
    path = folder / f"{folder.name}-seg.nii.gz"
    old = nib.load(path)
    again = nib.Nifti1Image(np.asarray(old.dataobj, np.float64), old.affine, old.header)
    nib.save(again, path)
    assert nib.load(path).dataobj.slope != 1
    examination = examine(find_cases(tmp_path)[0], BRATS_METS, None, 0.1)
    assert examination.problems == []
    mask = examination.mask
    assert mask.values.shape == (3, 7, 5)  # the labels' own box: nothing is left of 0 that became 1e-8
    np.testing.assert_array_equal(np.bincount(mask.values.ravel())[1:], [1, 12, 8])


def test_labels_in_floating_point_that_are_nearly_whole(tmp_path):
    assert problems_of(tmp_path, seg=lesions() * (1 - 1e-9) + 1e-8) == []
    examination = examine(find_cases(tmp_path)[0], BRATS_METS, None, 0.1)
    np.testing.assert_array_equal(np.bincount(examination.mask.values.ravel())[1:], [1, 12, 8])
    assert examination.mask.values.shape == (3, 7, 5)


def test_the_distance_of_what_is_accepted(tmp_path):
    folder = write_case(tmp_path)
    for name, shift in (("t1n", 0.06), ("t2f", -0.05), ("t2w", 3)):
        moved = LPS.copy()
        moved[0, 3] += shift
        save(folder / f"{folder.name}-{name}.nii.gz", brain(), moved)
    (case,) = find_cases(tmp_path)
    assert examine(case, BRATS_METS, None, 0.1).distance == pytest.approx(0.06)
    assert examine(case, BRATS_METS, None, 5.0).distance == pytest.approx(3, abs=0.06)


def test_missing_and_empty_roots(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root=.*none is not a folder; expected nested folders"):
        find_cases(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no case in data.root=.*expected nested folders .*-t1n.nii.gz"):
        find_cases(tmp_path)
    touch(tmp_path, "imagesTr/a_0000.nii.gz")
    with pytest.raises(ValueError, match=r"no case in .* \(its NIfTI files have other names: .*/a_0000.nii.gz\)"):
        find_cases(tmp_path)


def test_names_that_cannot_name_outputs(tmp_path):
    touch(tmp_path, "a=1,b-t1n.nii.gz")
    (case,) = find_cases(tmp_path)
    assert found(check_files(case, ("t1n",), False)) == [("-", "'=' or ',' in the name")]


def test_missing_files_name_what_is_there(tmp_path):
    case = Case("c", "c", None, {"t1n": tmp_path / "x"})
    assert found(check_files(case, ("t1n", "t2f"), True)) == [("t2f", "missing (there: t1n)"), ("seg", "missing")]
    assert check_files(case, ("t1n",), False) == []


def test_a_sound_case_has_no_problems(tmp_path):
    write_case(tmp_path)
    write_case(tmp_path, "BraTS-MET-00002-000", affine=RAS, seg=np.zeros((12, 14, 10), np.float32))  # no lesion
    write_case(tmp_path, "BraTS-MET-00003-000", seg=lesions().astype(np.float64))
    assert check_cases(find_cases(tmp_path)) == []


def problems_of(tmp_path, scheme=BRATS_METS, label_map=None, modalities=MODALITIES, **files):
    write_case(tmp_path, **files)
    return check_case(find_cases(tmp_path)[0], modalities, scheme, label_map)


def with_label(label, count):
    mask = lesions().astype(np.int16)
    mask.ravel()[:count] = label
    return mask


def test_unknown_labels_are_counted_after_the_map(tmp_path):
    (problem,) = problems_of(tmp_path, seg=with_label(6, 5))
    assert problem.file == "seg"
    assert problem.found == "5 voxels of label 6"
    assert problem.expected == "0 background, 1 netc, 2 snfh, 3 et"
    assert "data.label_map" in problem.remedy
    (case,) = find_cases(tmp_path)
    assert check_case(case, label_map={6: 3}) == []
    assert found(check_case(case, label_map={3: 4}))[0][1] == "8 voxels of label 4, 5 voxels of label 6"


def test_a_fourth_class(tmp_path):
    scheme = LabelScheme(("netc", "snfh", "et", "rc"))
    assert problems_of(tmp_path, scheme, seg=with_label(4, 5)) == []


@pytest.mark.parametrize("label", [-1, 300])
def test_labels_that_are_no_bytes(tmp_path, label):
    assert found(problems_of(tmp_path, seg=with_label(label, 2))) == [("seg", f"2 voxels of label {label}")]


def test_fractional_labels(tmp_path):
    (problem,) = problems_of(tmp_path, seg=lesions() * np.float32(0.5))
    assert problem.found == "labels that are not whole numbers, e.g. 0.5"
    assert "nearest" in problem.remedy
    assert "nan" in problems_of(tmp_path, seg=lesions() * np.float32(np.nan))[0].found


def test_an_origin_mismatch_is_measured_and_blamed_on_the_odd_one(tmp_path):
    folder = write_case(tmp_path)
    moved = LPS.copy()
    moved[:3, 3] += (3, 0, -4)
    save(folder / f"{folder.name}-t1n.nii.gz", brain(), moved)  # the first in order, and still the odd one
    (case,) = find_cases(tmp_path)
    (problem,) = check_case(case)
    assert problem.file == "t1n"
    assert problem.found == "lies 5 mm off t1c (origin (3, 239, -4), there (0, 239, 0))"
    assert problem.expected == "≤ 0.1 mm"
    assert check_case(case, tolerance=5.01) == []
    assert check_case(case, modalities=("t1c", "t2w")) == []  # one that isn't used costs nothing


def test_shapes_must_agree(tmp_path):
    (problem,) = problems_of(tmp_path, t2w=brain(shape=(12, 14, 11)))
    assert (problem.file, problem.found, problem.expected) == ("t2w", "shape (12, 14, 11)", "(12, 14, 10), as t1n")


def test_truncated_and_foreign_files(tmp_path):
    folder = write_case(tmp_path)
    path = folder / f"{folder.name}-t1c.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])
    (folder / f"{folder.name}-t2w.nii.gz").write_bytes(gzip.compress(b"nonsense"))
    first, second = check_case(find_cases(tmp_path)[0])
    assert first.file == "t1c"
    assert first.found.startswith("cannot be read")
    assert second.file == "t2w"
    assert second.found.startswith("no NIfTI header")


def test_not_finite(tmp_path):
    image = brain(dtype=np.float32)
    image[5, 5, 5], image[6, 5, 5] = np.nan, np.inf
    assert found(problems_of(tmp_path, t1n=image)) == [("t1n", "2 voxels are NaN or infinite")]


def test_empty_brain(tmp_path):
    empty = dict.fromkeys(MODALITIES, np.zeros((12, 14, 10), np.int16))
    assert found(problems_of(tmp_path, **empty)) == [("-", "all intensities are 0")]
    one = empty | {"t2f": brain()}
    assert problems_of(tmp_path / "one", **one) == []


def test_four_dimensional(tmp_path):
    assert found(problems_of(tmp_path, t1n=np.ones((3, 3, 3, 2), np.int16))) == [
        ("t1n", "an array of shape (3, 3, 3, 2)")
    ]


def test_all_problems_of_all_cases_in_one_error(tmp_path):
    write_case(tmp_path, "BraTS-MET-00001-000", seg=with_label(6, 5), t1c=None)
    write_case(tmp_path, "BraTS-MET-00002-000", seg=None)
    write_case(tmp_path, "BraTS-MET-00003-000")
    problems = check_cases(find_cases(tmp_path))
    assert [(p.case[-9:], p.file) for p in problems] == [
        ("00001-000", "t1c"),
        ("00001-000", "seg"),
        ("00002-000", "seg"),
    ]
    error = CaseError(problems)
    text = str(error)
    assert text.startswith("2 cases cannot be used")
    for part in ("BraTS-MET-00001-000", "5 voxels of label 6", "BraTS-MET-00002-000", "add the file"):
        assert part in text
    assert str(pickle.loads(pickle.dumps(error))) == text
    assert problem_table(problems).row_count == 3


def test_finding_opens_nothing(tmp_path, monkeypatch):
    touch(tmp_path, "a/BraTS-MET-00001-000-t1n.nii.gz")
    monkeypatch.setattr(module, "read_volume", None)
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr(os, "open", None)
    assert len(find_cases(tmp_path)) == 1
