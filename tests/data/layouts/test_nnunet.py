import pytest

from brats_lightning.data.cases import CaseError, check_files
from brats_lightning.data.layouts.nnunet import nnunet_cases
from brats_lightning.data.splits import SplitError, SplitSettings
from tests.data.layouts.same_cases import write_json
from tests.data.tiny_cases import touch

CHANNELS = {"0": "T1", "1": "T1ce"}


@pytest.fixture
def root(tmp_path):
    """Two training cases and two others, one of them labelled."""
    root = tmp_path / "Dataset007_METS"
    for part, cases in (("Tr", ("B-00001-000", "A_1")), ("Ts", ("B-00002-000", "C"))):
        touch(root, *(f"images{part}/{case}_{channel:04d}.nii.gz" for case in cases for channel in (0, 1)))
        touch(root, f"labels{part}/{cases[0]}.nii.gz")
    touch(root, "labelsTr/A_1.nii.gz")
    write_json(root / "dataset.json", {"channel_names": CHANNELS, "labels": {"background": 0, "ET": 1}})
    return root


def test_a_whole_data_set(root):
    a, first, second, bare = nnunet_cases(root)
    assert (first.id, first.patient, first.timepoint, first.part) == ("B-00001-000", "B-00001", "000", None)
    assert first.images == {m: root / f"imagesTr/B-00001-000_{n}.nii.gz" for n, m in (("0000", "t1n"), ("0001", "t1c"))}
    assert first.mask == root / "labelsTr/B-00001-000.nii.gz"
    assert first.mask_name == "B-00001-000.nii.gz"
    assert (a.id, a.patient, a.mask.name) == ("A_1", "A_1", "A_1.nii.gz")
    assert (second.part, second.mask) == ("test", root / "labelsTs/B-00002-000.nii.gz")
    assert (bare.id, bare.part, bare.mask) == ("C", "test", None)
    assert not any(case.faults for case in (a, first, second, bare))


def test_a_folder_of_images_alone(root):
    second, bare = nnunet_cases(root / "imagesTs")
    assert second.mask == root / "labelsTs/B-00002-000.nii.gz"
    assert bare.mask is None
    (root / "imagesTs/C_0000.nii.gz").rename(root / "imagesTs/D_0000.nii.gz")
    touch(root, "labelsTs/Z.nii.gz")  # of a case whose images are not here
    assert [case.id for case in nnunet_cases(root / "imagesTs")] == ["B-00002-000", "C", "D"]


def test_what_is_wrong_with_names(root):
    touch(root, "imagesTr/A_1_0002.nii.gz", "imagesTr/A_1_0000.nii", "labelsTr/E.nii.gz", "imagesTr/stray.nii.gz")
    (root / "imagesTr/B-00001-000_0001.nii.gz").unlink()
    cases = {case.id: case for case in nnunet_cases(root)}
    assert "stray" not in cases
    a = check_files(cases["A_1"], ("t1n", "t1c"), need_mask=True)
    assert [problem.found.split(":")[0] for problem in a] == ["channel 0002", "a second file of this case"]
    assert [problem.file for problem in check_files(cases["B-00001-000"], ("t1n", "t1c"), True)] == ["t1c"]
    assert [problem.file for problem in check_files(cases["E"], ("t1n", "t1c"), True)] == ["t1n", "t1c"]
    left_out = {case.id: case for case in nnunet_cases(root, {2: None})}
    assert len(check_files(left_out["A_1"], ("t1c",), need_mask=True)) == 0  # the second file is of t1n


def test_a_case_of_both_parts_is_a_fault(root):
    touch(root, "imagesTs/A_1_0000.nii.gz", "imagesTs/A_1_0001.nii.gz")
    a = nnunet_cases(root)[0]
    assert len(check_files(a, ("t1n", "t1c"), need_mask=True)) == 2


def test_nothing_there(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root=.*nowhere is not a folder; expected imagesTr/CASE_0000"):
        nnunet_cases(tmp_path / "nowhere")
    (root / "dataset.json").rename(root / "datasets.json")
    with pytest.raises(FileNotFoundError, match=r"there is no dataset.json in data.root=.*METS or above it"):
        nnunet_cases(root)
    write_json(tmp_path / "dataset.json", {"channel_names": {"0": "ADC"}})
    with pytest.raises(CaseError, match="channel 0 is 'ADC'"):
        nnunet_cases(root)
    touch(tmp_path / "other", "a.nii.gz")
    with pytest.raises(ValueError, match=r"no case in data.root=.* \(1 NIfTI file with another name: .*a.nii.gz\)"):
        nnunet_cases(tmp_path / "other", {0: "t1c"})


PATIENTS = {"A_1": "A_1", "B-00001-000": "B-00001", "B-00002-000": "B-00002"}


def test_test_cases_stay_test_cases(root):
    stated = {case.id: case.part for case in nnunet_cases(root) if case.part}
    split = SplitSettings(val_share=0.4).split(PATIENTS, stated)
    assert split.test == ("B-00002-000",)
    assert sorted(split.train + split.val) == ["A_1", "B-00001-000"]
    with pytest.raises(SplitError, match=r"cases of one patient in several parts.*: B"):
        SplitSettings().split(PATIENTS | {"B-00001-000": "B", "B-00002-000": "B"}, stated)


def test_folds_of_splits_final(tmp_path):
    folds = [{"train": ["A_1"], "val": ["B-00001-000"]}, {"train": ["B-00001-000"], "val": ["A_1"]}]
    path = str(write_json(tmp_path / "splits_final.json", folds))
    for fold in (0, 1):
        split = SplitSettings(file=path, fold=fold).split(PATIENTS, {"B-00002-000": "test"})
        assert (list(split.train), list(split.val)) == (folds[fold]["train"], folds[fold]["val"])
        assert split.test == ("B-00002-000",)
    for fold in (None, 2, -1):
        with pytest.raises(SplitError, match=r"splits_final.json holds 2 folds; choose one, data.fold=0 … 1"):
            SplitSettings(file=path, fold=fold).split(PATIENTS)
    plain = str(write_json(tmp_path / "split.json", {"train": ["A_1"]}))
    with pytest.raises(SplitError, match=r"has no folds; leave data.fold=0 out"):
        SplitSettings(file=plain, fold=0).split(PATIENTS)


def test_the_current_folder(root, monkeypatch):
    monkeypatch.chdir(root / "imagesTs")
    second, bare = nnunet_cases(".")
    assert second.mask == root / "labelsTs/B-00002-000.nii.gz"
    assert bare.mask is None
