import json

import pytest

from brats_lightning.data.splits import SplitError, SplitSettings

# Twenty patients, every fourth with two timepoints.
PATIENT = {f"P{p:02d}-{t:03d}": f"P{p:02d}" for p in range(20) for t in range(2 if p % 4 == 0 else 1)}


def some(*bounds):
    return dict(list(PATIENT.items())[slice(*bounds)])


def patients(names):
    return {PATIENT[name] for name in names}


def test_every_case_goes_one_way_and_patients_stay_together():
    split = SplitSettings(0.2, 0.1).split(PATIENT)
    assert sorted(split.train + split.val + split.test) == sorted(PATIENT)
    assert not patients(split.train) & patients(split.val)
    assert not (patients(split.train) | patients(split.val)) & patients(split.test)
    assert (len(patients(split.val)), len(patients(split.test))) == (4, 2)


def test_the_seed_decides_and_the_order_of_the_cases_does_not():
    assert SplitSettings(seed=1).split(PATIENT) != SplitSettings(seed=2).split(PATIENT)
    same = SplitSettings(seed=1).split(some(None, None, -1))
    assert {*same.train} == {*SplitSettings(seed=1).split(PATIENT).train}


def test_folds_partition_the_patients_that_do_not_test():
    splits = [SplitSettings(test_share=0.1, folds=5, fold=k).split(PATIENT) for k in range(5)]
    assert len({split.test for split in splits}) == 1
    validated = [name for split in splits for name in split.val]
    assert sorted(validated) == sorted(set(PATIENT) - set(splits[0].test))
    for split in splits:
        assert not patients(split.train) & patients(split.val)


def test_shares_of_0_leave_all_for_training_even_of_one_case():
    split = SplitSettings(0, 0).split(some(1))
    assert (split.train, split.val, split.test) == (("P00-000",), (), ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_share": 0.6, "test_share": 0.4}, "leave patients"),
        ({"val_share": -0.1}, "at least 0"),
        ({"folds": 5}, "together"),
        ({"folds": 5, "fold": 5}, "0 … folds-1"),
        ({"folds": 1, "fold": 0}, "at least 2 folds"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(SplitError, match=message):
        SplitSettings(**settings)


def test_too_few_patients():
    with pytest.raises(SplitError, match="none is left to train"):
        SplitSettings().split(some(2, 4))
    with pytest.raises(SplitError, match="fewer folds"):
        SplitSettings(folds=9, fold=0).split(some(8))


def write(path, content):
    path.write_text(json.dumps(content))
    return SplitSettings(file=str(path))


def test_file_round_trip(tmp_path):
    split = SplitSettings().split(PATIENT)
    split.save(tmp_path / "split.json")
    assert SplitSettings(file=str(tmp_path / "split.json")).split(PATIENT) == split


def test_yaml_is_read_too(tmp_path):
    (tmp_path / "s.yaml").write_text("train: [P01-000]\ntest: [P02-000]\n")
    split = SplitSettings(file=str(tmp_path / "s.yaml")).split(PATIENT)
    assert (split.train, split.val, split.test) == (("P01-000",), (), ("P02-000",))


@pytest.mark.parametrize("name", ["s.json", "s.yaml"])
def test_files_as_windows_writes_them(tmp_path, name):
    content = json.dumps({"train": ["P01-000"], "test": ["P02-000"]}, indent=1)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    split = SplitSettings(file=str(tmp_path / name)).split(PATIENT)
    assert (split.train, split.val, split.test) == (("P01-000",), (), ("P02-000",))


def test_file_faults_are_all_named_with_near_misses(tmp_path):
    settings = write(tmp_path / "s.json", {"train": ["P00-000", "P01-00"], "val": ["P02-000", "P02-000"], "test": []})
    with pytest.raises(SplitError) as error:
        settings.split(PATIENT)
    assert "did you mean P01-000" in str(error.value)
    assert "P02-000 is listed twice" in str(error.value)


def test_a_test_patient_that_trains_is_refused(tmp_path):
    with pytest.raises(SplitError, match="no test"):
        write(tmp_path / "s.json", {"train": ["P00-000"], "test": ["P00-001"]}).split(PATIENT)


def test_a_validation_patient_that_trains_is_allowed_with_a_warning(tmp_path):
    settings = write(tmp_path / "s.json", {"train": ["P00-000", "P01-000"], "val": ["P00-000"]})
    with pytest.warns(UserWarning, match="P00-000"):
        assert settings.split(PATIENT).val == ("P00-000",)


@pytest.mark.parametrize("content", ["[1, 2]", '{"train": []}', '{"train": ["P00-000"], "validation": []}', "{a"])
def test_files_of_another_kind(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(SplitError, match=r"s\.json"):
        SplitSettings(file=str(tmp_path / "s.json")).split(PATIENT)


def test_missing_file(tmp_path):
    with pytest.raises(SplitError, match="there is no"):
        SplitSettings(file=str(tmp_path / "none.json")).split(PATIENT)
