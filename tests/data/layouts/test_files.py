import pytest

from brats_lightning.data.cases import CaseError, check_files, without_mask
from brats_lightning.data.layouts.assembly import tell_once
from brats_lightning.data.layouts.files import pattern_cases
from tests.data.tiny_cases import touch

UCSF = {"t1c": "{case}/{case}_T1post.nii.gz", "t2f": "{case}/{case}_FLAIR.nii.gz", "seg": "{case}/{case}_seg.nii.gz"}


@pytest.fixture(autouse=True)
def tell_again():
    tell_once.cache_clear()


def test_cases_by_one_field(tmp_path):
    touch(tmp_path, *(f"100101A/100101A_{s}.nii.gz" for s in ("T1post", "FLAIR", "seg", "subtraction")))
    touch(tmp_path, "BraTS-MET-00001-002/BraTS-MET-00001-002_T1post.nii.gz", "100102A/100102B_T1post.nii.gz")
    first, second = pattern_cases(tmp_path, UCSF | {"t1n": None})
    assert (first.id, first.patient, first.timepoint) == ("100101A", "100101A", None)
    assert first.images == {
        m: tmp_path / f"100101A/100101A_{s}.nii.gz" for m, s in (("t1c", "T1post"), ("t2f", "FLAIR"))
    }
    assert first.mask == tmp_path / "100101A/100101A_seg.nii.gz"
    assert first.mask_name == "100101A/100101A_seg.nii.gz"
    assert first.others == (tmp_path / "100101A/100101A_subtraction.nii.gz",)
    assert (second.patient, second.timepoint) == ("BraTS-MET-00001", "002")
    assert second.mask_name == "BraTS-MET-00001-002/BraTS-MET-00001-002_seg.nii.gz"
    assert [problem.file for problem in check_files(second, ("t1c", "t2f"), need_mask=True)] == ["t2f", "seg"]


def test_patients_and_timepoints(tmp_path):
    patterns = {"t1c": "{patient}/{timepoint}/{any}_t1_gd.nii", "seg": "masks/{patient}_{timepoint}_{any}.nii.gz"}
    touch(tmp_path, "P_1/2019/axial_t1_gd.nii", "P_1/2020/sagittal_t1_gd.nii", "masks/P_1_2020_final.nii.gz")
    first, second = pattern_cases(tmp_path, patterns)
    assert [(c.id, c.patient, c.timepoint) for c in (first, second)] == [
        ("P_1-2019", "P_1", "2019"),
        ("P_1-2020", "P_1", "2020"),
    ]
    assert second.mask == tmp_path / "masks/P_1_2020_final.nii.gz"
    assert second.mask_name == "masks/P_1_2020_final.nii.gz"
    assert first.mask_name == "P_1-2019.nii.gz"  # nobody knows which text {any} would be
    assert without_mask([first, second]).startswith("1 without mask: P_1-2019")


def test_letters_behind_a_number(tmp_path):
    touch(tmp_path, *(f"{p}/{p}_T1.nii.gz" for p in ("100101A", "100101B", "100102A")))
    cases = pattern_cases(tmp_path, {"t1n": "{patient}{timepoint}/{patient}{timepoint}_T1.nii.gz"})
    assert [(case.patient, case.timepoint) for case in cases] == [("100101", "A"), ("100101", "B"), ("100102", "A")]


def test_a_case_and_its_patient(tmp_path):
    touch(tmp_path, "P1/scan7/t1c.nii.gz", "masks/scan7.nii.gz")
    (case,) = pattern_cases(tmp_path, {"t1c": "{patient}/{case}/t1c.nii.gz", "seg": "masks/{case}.nii.gz"})
    assert (case.id, case.patient, case.mask.name) == ("scan7", "P1", "scan7.nii.gz")


def test_dots_and_brackets_are_themselves(tmp_path):
    touch(tmp_path, "a (1)+.nii.gz", "aXnii.gz")
    (case,) = pattern_cases(tmp_path, {"t1c": "{case} (1)+.nii.gz"})
    assert case.id == "a"


def test_files_that_are_one_too_many(tmp_path):
    touch(tmp_path, "a/X_1_t1.nii.gz", "a/X_2_t1.nii.gz", "b/Y_1_t1.nii.gz")
    first, second = pattern_cases(tmp_path, {"t1c": "a/{case}_{any}_t1.nii.gz", "t1n": "b/{case}_{any}_t1.nii.gz"})
    assert [problem.file for problem in check_files(first, ("t1c",), False)] == ["t1c"]
    assert second.faults == ()
    (case,) = pattern_cases(tmp_path / "b", {"t1c": "{case}_{any}_t1.nii.gz", "t1n": "{case}_1_{any}.nii.gz"})
    assert [fault.file for fault in case.faults] == ["t1c", "t1n"]
    assert case.faults[0].found == "Y_1_t1.nii.gz matches data.files.t1c and data.files.t1n"


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ({"t1": "{case}.nii.gz"}, ["{case}.nii.gz has a name that is no sequence"]),
        ({"t1c": "{case}/{site}.nii.gz"}, ["{case}/{site}.nii.gz has {site}"]),
        ({"t1c": "*/{case}.nii.gz"}, ["*/{case}.nii.gz has *, ? or a single brace"]),
        (
            {"t1c": "{case.nii.gz"},
            ["{case.nii.gz has *, ? or a single brace", "{case.nii.gz has neither {case} nor {patient}"],
        ),
        ({"t1c": "{any}.nii.gz", "seg": "{case}.mha"}, ["{any}.nii.gz has neither", "{case}.mha has another ending"]),
        ({"t1c": "{case}.nii.gz", "seg": "m/{patient}.nii.gz"}, ["t1c by case; seg by patient"]),
        ({"t1c": None}, ["no pattern"]),
    ],
)
def test_faulty_patterns(tmp_path, patterns, found):
    with pytest.raises(CaseError, match="the data cannot be used") as error:
        pattern_cases(tmp_path, patterns)
    problems = error.value.problems
    assert len(problems) == len(found)
    assert all(problem.found.startswith(text) for problem, text in zip(problems, found, strict=True))


def test_what_no_pattern_takes_is_told_once(tmp_path, caplog):
    touch(tmp_path, "A/A_T1post.nii.gz", "A/A_FLAIR.nii.gz", *(f"A/A_{n}.nii.gz" for n in range(4)))
    for _ in range(2):
        pattern_cases(tmp_path, UCSF)
    (message,) = caplog.messages
    assert message.startswith("no file matches data.files.seg={case}/{case}_seg.nii.gz; 4 of 6 NIfTI files in ")
    assert message.count("A/A_") == 3
    caplog.clear()
    pattern_cases(tmp_path, UCSF | {"seg": None})
    assert [text.split(" NIfTI")[0] for text in caplog.messages] == ["4 of 6"]


def test_few_files_of_no_case_are_told_too(tmp_path, caplog):
    touch(tmp_path, "A/A_T1post.nii.gz", "A/A_FLAIR.nii.gz", "A/A_CT.nii.gz", "B/b_t1post.nii.gz")
    pattern_cases(tmp_path, UCSF | {"seg": None})
    assert [text.split(";")[0] for text in caplog.messages] == [
        f"1 NIfTI file in {tmp_path} belongs to no case and is left out: {tmp_path}/B/b_t1post.nii.gz"
    ]


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a folder; expected files like {case}/{case}_T1post\.nii"):
        pattern_cases(tmp_path / "nowhere", UCSF)
    touch(tmp_path, "A/T1.nii.gz", "A/T2.nii.gz")
    with pytest.raises(
        ValueError, match=r"no case in .* \(2 NIfTI files with other names: .*A/T1.nii.gz, .*\); expected"
    ):
        pattern_cases(tmp_path, UCSF)
