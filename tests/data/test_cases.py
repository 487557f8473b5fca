import gzip
import pickle

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS, MODALITIES, LabelScheme
from brats_lightning.data.cases import (
    Case,
    CaseError,
    check_files,
    examine,
    patient_and_timepoint,
    problem_table,
    required,
)
from brats_lightning.data.layouts.brats import find_cases
from tests.data.tiny_cases import LPS, RAS, brain, lesions, save, touch, write_case


def check_case(case, modalities=MODALITIES, scheme=BRATS_METS, label_map=None, tolerance=0.1):
    """Everything that keeps a case from being used."""
    read = examine(case, scheme, label_map, tolerance).problems
    return check_files(case, modalities, need_mask=True) + required(read, modalities, need_mask=True)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("BraTS-MET-00110-001", ("BraTS-MET-00110", "001")),
        ("00110-001", ("00110", "001")),
        ("sub-X01_ses-02", ("sub-X01", "02")),
        ("BraTS2021_00002", ("BraTS2021_00002", None)),
        ("sub-X01", ("sub-X01", None)),
        ("12-345", ("12-345", None)),  # a patient's number within a site, perhaps
    ],
)
def test_what_a_case_is_called_tells_its_patient(case, expected):
    assert patient_and_timepoint(case) == expected


def check_cases(cases):
    return [problem for case in cases for problem in check_case(case)]


def found(case):
    return [(p.file, p.found) for p in case]


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


def test_names_that_cannot_name_outputs(tmp_path):
    touch(tmp_path, "a=1,b-t1n.nii.gz")
    (case,) = find_cases(tmp_path)
    assert found(check_files(case, ("t1n",), False)) == [("-", "'=', ',' or '/' in the name")]


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


def test_a_huge_label_is_named_as_it_is(tmp_path):
    mask = lesions().astype(np.float64)
    mask[0, 0, 0] = 1e20
    (problem,) = problems_of(tmp_path, seg=mask)
    assert problem.found == "1 voxels of label 100000000000000000000"


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


@pytest.mark.parametrize("order", ["RAS", "SAR", "PIL"])
def test_files_that_store_the_same_places_in_another_order_are_aligned(tmp_path, order):
    folder = write_case(tmp_path)
    axes = (nib.io_orientation(LPS), nib.orientations.axcodes2ornt(order))
    for kind in ("t1c", "seg"):
        path = folder / f"{folder.name}-{kind}.nii.gz"
        image = nib.load(path)
        turned = image.as_reoriented(nib.orientations.ornt_transform(*axes))
        nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine).to_filename(path)
    (case,) = find_cases(tmp_path)
    found = examine(case, BRATS_METS, None, tolerance=0.1)
    (plain,) = find_cases(write_case(tmp_path / "plain").parent)
    wanted = examine(plain, BRATS_METS, None, tolerance=0.1)
    assert (found.problems, found.distance) == ([], 0.0)
    for got, want in ((found.images["t1c"], wanted.images["t1c"]), (found.mask, wanted.mask)):
        assert got.grid == want.grid
        np.testing.assert_array_equal(got.whole(), want.whole())


def test_a_file_in_another_order_that_lies_elsewhere_names_both_orders(tmp_path):
    folder = write_case(tmp_path)
    save(folder / f"{folder.name}-seg.nii.gz", lesions(), np.eye(4))
    (problem,) = check_case(find_cases(tmp_path)[0])
    assert problem.found.endswith("(origin (0, 0, 0), there (0, 239, 0)); voxels are in the order RAS, there LPS")


def test_a_mask_without_its_affine_is_taken_by_index_if_the_tolerance_allows_it(tmp_path):
    folder = write_case(tmp_path)
    mask = lesions()
    save(folder / f"{folder.name}-seg.nii.gz", mask, np.eye(4))  # other axes, too
    (case,) = find_cases(tmp_path)
    assert check_case(case)[0].file == "seg"
    found = examine(case, BRATS_METS, None, tolerance=1000.0)
    assert found.problems == []
    assert found.mask.grid == found.images["t1c"].grid
    np.testing.assert_array_equal(found.mask.whole(), mask)
    right = examine(find_cases(write_case(tmp_path / "right").parent)[0], BRATS_METS, None, tolerance=0.1).mask
    np.testing.assert_array_equal(found.mask.values, right.values)
    assert found.mask.start == right.start
