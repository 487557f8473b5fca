import pytest

from brats_lightning.data.cases import check_files, masks_apart
from brats_lightning.data.layouts.bids import bids_cases
from tests.data.tiny_cases import touch

ANAT = "sub-01/ses-a/anat/sub-01_ses-a"


def only(root, entities=None, masks=None):
    (case,) = bids_cases(root, entities, masks)
    return case


def name_of(path):
    return path and path.name


def test_sessions_and_subjects(tmp_path):
    touch(tmp_path, *(f"{ANAT}_{s}.nii.gz" for s in ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR", "PDw", "dseg")))
    touch(tmp_path, "sub-02/anat/sub-02_ce-gad_T1w.nii", "sub-02/dwi/sub-02_dwi.nii.gz", "sub-02/anat/sub-02_T2w.json")
    touch(tmp_path, "derivatives/seg/sub-02/anat/sub-02_label-lesion_mask.nii.gz", "notes.nii.gz")
    first, second = bids_cases(tmp_path)
    assert (first.id, first.patient, first.timepoint) == ("sub-01_ses-a", "sub-01", "a")
    assert {m: path.name.removeprefix("sub-01_ses-a_") for m, path in first.images.items()} == {
        "t1n": "T1w.nii.gz",
        "t1c": "ce-gadolinium_T1w.nii.gz",
        "t2w": "T2w.nii.gz",
        "t2f": "FLAIR.nii.gz",
    }
    assert first.mask == tmp_path / f"{ANAT}_dseg.nii.gz"
    assert first.mask_name == f"{ANAT}_desc-prediction_dseg.nii.gz"
    assert (second.id, second.patient, second.timepoint, list(second.images)) == ("sub-02", "sub-02", None, ["t1c"])
    assert name_of(second.mask) == "sub-02_label-lesion_mask.nii.gz"
    assert second.mask_name == "sub-02/anat/sub-02_desc-prediction_dseg.nii.gz"
    assert first.faults == second.faults == ()


def test_masks_of_the_brain_and_predictions_are_no_references(tmp_path):
    touch(tmp_path, f"{ANAT}_T1w.nii.gz", f"derivatives/x/{ANAT}_desc-brain_mask.nii.gz")
    touch(
        tmp_path, f"derivatives/x/{ANAT}_label-brain_mask.nii.gz", f"derivatives/y/{ANAT}_desc-prediction_dseg.nii.gz"
    )
    assert only(tmp_path).mask is None


def test_images_of_derivatives_are_found_there_only(tmp_path):
    touch(tmp_path, f"{ANAT}_T1w.nii.gz", f"derivatives/prep/{ANAT}_space-SRI_desc-preproc_T1w.nii.gz")
    assert name_of(only(tmp_path).images["t1n"]) == "sub-01_ses-a_T1w.nii.gz"
    derived = only(tmp_path / "derivatives/prep")
    assert name_of(derived.images["t1n"]) == "sub-01_ses-a_space-SRI_desc-preproc_T1w.nii.gz"


def test_several_files_are_a_fault_that_names_the_entity_to_choose_by(tmp_path):
    touch(tmp_path, f"{ANAT}_run-01_T1w.nii.gz", f"{ANAT}_run-02_T1w.nii.gz", f"{ANAT}_T2w.nii.gz")
    touch(tmp_path, f"{ANAT}_space-SRI_T2w.nii.gz", f"{ANAT}_FLAIR.nii.gz")
    case = only(tmp_path)
    first, second = check_files(case, ("t1n", "t2w", "t2f"), need_mask=False)
    assert (first.file, first.remedy) == ("t1n", "choose, 'data.entities={run:01}', or remove the others")
    assert first.found.startswith("2 files: ")
    assert first.found.endswith("they differ in run (01, 02)")
    assert (second.file, second.found.rpartition("; ")[2]) == ("t2w", "they differ in space (null, SRI)")
    assert check_files(case, ("t2f",), need_mask=False) == []  # where they are not used they do no harm
    assert "t1n" in case.images  # also where it is optional


@pytest.mark.parametrize(
    ("entities", "t1n", "t2w"),
    [
        ({"run": 1, "space": None}, "_run-01_T1w.nii.gz", "_T2w.nii.gz"),
        ({"run": "02", "space": "SRI"}, "_run-02_T1w.nii.gz", "_space-SRI_T2w.nii.gz"),
        ({"space": "SRI", "run": 2, "acq": "x"}, "_run-02_T1w.nii.gz", "_space-SRI_T2w.nii.gz"),
    ],
)
def test_entities_choose_where_there_is_a_choice(tmp_path, entities, t1n, t2w):
    touch(tmp_path, f"{ANAT}_run-01_T1w.nii.gz", f"{ANAT}_run-02_T1w.nii.gz", f"{ANAT}_T2w.nii.gz")
    touch(tmp_path, f"{ANAT}_space-SRI_T2w.nii.gz")
    case = only(tmp_path, entities)
    assert case.faults == ()
    assert [path.name.removeprefix("sub-01_ses-a") for path in case.images.values()] == [t1n, t2w]


def test_several_masks(tmp_path):
    touch(tmp_path, f"{ANAT}_T1w.nii.gz", f"derivatives/a/{ANAT}_dseg.nii.gz", f"derivatives/a/{ANAT}_mask.nii.gz")
    touch(tmp_path, f"derivatives/b/{ANAT}_dseg.nii.gz")
    (fault,) = check_files(only(tmp_path), ("t1n",), need_mask=True)
    assert fault.found.endswith("they differ in suffix (dseg, mask)")
    assert only(tmp_path, {"suffix": "mask"}).faults == ()
    (same,) = only(tmp_path, {"suffix": "dseg"}).faults
    assert (same.found.rpartition("; ")[2], same.remedy) == ("they differ in no entity", "remove the others")
    case = only(tmp_path, masks=tmp_path / "derivatives/b")
    assert case.faults == ()
    assert case.mask == tmp_path / f"derivatives/b/{ANAT}_dseg.nii.gz"
    assert masks_apart([case]) == f"masks: 1 from {tmp_path}/derivatives/b/sub-01/ses-a/anat"


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root=.*nowhere is not a folder; expected sub-…"):
        bids_cases(tmp_path / "nowhere")
    touch(tmp_path, "a_T1w.nii.gz", "sub-01/func/sub-01_bold.nii.gz")
    with pytest.raises(ValueError, match=r"no case in data.root=.* \(1 NIfTI file with another name: .*a_T1w.nii.gz\)"):
        bids_cases(tmp_path)


def test_only_masks_count_in_a_folder_of_masks(tmp_path):
    touch(tmp_path, f"{ANAT}_T1w.nii.gz", f"derivatives/a/{ANAT}_dseg.nii.gz", f"derivatives/a/{ANAT}_T1w.nii.gz")
    touch(tmp_path, f"derivatives/a/{ANAT}_desc-brain_mask.nii.gz", f"derivatives/a/{ANAT}_label-head_mask.nii.gz")
    case = only(tmp_path, masks=tmp_path / "derivatives/a")
    assert case.faults == ()
    assert case.mask == tmp_path / f"derivatives/a/{ANAT}_dseg.nii.gz"
