import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import brats_lightning
from brats_lightning.data.cases import Case, CaseError
from brats_lightning.data.splits import SplitError
from brats_lightning.evaluation.pairing import (
    EvaluationError,
    Pair,
    case_and_kind,
    find_images,
    find_masks,
    method_names,
    pair_masks,
)
from brats_lightning.evaluation.results import scores_csv
from brats_lightning.evaluation.scoring import case_workers, over_cases
from brats_lightning.runtime.files import UnwritableFile
from brats_lightning.runtime.workers import DeadWorker
from tests.data.tiny_cases import LPS, RAS, brain, lesions, save, write_case
from tests.evaluation.evaluating import run

METRIC_CASES = Path(os.environ.get("BRATS_METRIC_CASES", ""))
needs_metric_cases = pytest.mark.skipif("BRATS_METRIC_CASES" not in os.environ, reason="BRATS_METRIC_CASES is not set")


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folders(tmp_path):
    """Two cases with references and predictions: one perfect, one empty."""
    for case in ("00001-000", "00002-000"):
        save(tmp_path / f"ref/BraTS-MET-{case}-seg.nii.gz", lesions())
    save(tmp_path / "pred/00001-000.nii.gz", lesions())
    save(tmp_path / "pred/00002-000.nii.gz", np.zeros_like(lesions()))
    return tmp_path / "pred", tmp_path / "ref", tmp_path / "out"


def test_an_output_that_cannot_be_written_is_found_before_scoring(folders, monkeypatch):
    predictions, references, output = folders
    output.write_text("a file")
    monkeypatch.setattr("brats_lightning.evaluation.scoring.score_pairs", lambda *_: pytest.fail("scored in vain"))
    with pytest.raises(UnwritableFile, match=f"cannot write {output}: File exists"):
        run(predictions, references, output)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("00132-000.nii.gz", ("00132-000", None)),
        ("SEG-00217-000.nii.gz", ("00217-000", None)),
        ("BraTS-MET_01325-000.nii.gz", ("01325-000", None)),
        ("BraTS-MET-00110-000-seg.nii", ("00110-000", "seg")),
        ("BraTS-MET-00110-000-t1c.nii.gz", ("00110-000", "t1c")),
        ("run1_00001-001_00110-000.nii.gz", ("00110-000", None)),  # the submission rule: the name ends with the number
        ("BraTS2021_00000.nii.gz", ("BraTS2021_00000", None)),
        ("BraTS2021_00000_seg.nii.gz", ("BraTS2021_00000", "seg")),
        ("BraTS2021_00000_flair.nii.gz", ("BraTS2021_00000", "t2f")),
        ("case.1_t1ce.nii", ("case.1", "t1c")),
        ("100132-000.nii.gz", ("100132-000", None)),  # six digits are no challenge number
        ("a_probabilities.nii.gz", ("a", "probabilities")),
    ],
)
def test_names(file, expected):
    assert case_and_kind(file) == expected


def test_only_cases_of_a_split_are_scored(folders):
    predictions, references, output = folders
    split = references.parent / "split.json"
    lists = {"train": ["BraTS-MET-00001-000"], "val": [], "test": ["BraTS-MET-00002-000"]}
    split.write_text(json.dumps(lists))
    run(predictions, references, output, f"split={split}")
    assert {row["case"] for row in rows(output / "scores.csv")} == {"00002-000"}
    run(predictions, references, output, f"split={split}", "part=train")
    assert {row["case"] for row in rows(output / "scores.csv")} == {"00001-000"}
    settings = json.loads((output / "summary.json").read_text())["settings"]
    assert (settings["split"], settings["part"]) == (str(split), "train")

    for part, message in (("val", "lists no case under val"), ("tset", "part must be one of train, val, test")):
        with pytest.raises(SplitError, match=message):
            run(predictions, references, output, f"split={split}", f"part={part}")
    split.write_text(json.dumps(lists | {"test": ["BraTS-MET-00002-000", "BraTS-MET-00003-000"]}))
    with pytest.raises(CaseError, match=r"BraTS-MET-00003-000.*reference.*missing"):
        run(predictions, references, output, f"split={split}")


def test_references_lie_among_images(tmp_path):
    write_case(tmp_path / "ref/Site A", "BraTS-MET-00001-000")
    save(tmp_path / "ref/Site A/BraTS-MET-00001-000/BraTS-MET-00001-000-brain.nii.gz", lesions())
    save(tmp_path / "ref/old/BraTS2021_00003/BraTS2021_00003_seg.nii", lesions())
    save(tmp_path / "ref/old/BraTS2021_00003/BraTS2021_00003_t1ce.nii", lesions())
    save(tmp_path / "ref/.hidden/00009-000.nii", lesions())
    save(tmp_path / "pred/x/y_00001-000.nii", lesions())
    save(tmp_path / "pred/BraTS2021_00003.nii.gz", lesions())
    save(tmp_path / "pred/BraTS2021_00003_probabilities.nii.gz", lesions())
    (tmp_path / "ref/old/loop").symlink_to(tmp_path / "ref")
    pairs, problems = pair_masks(tmp_path / "pred", tmp_path / "ref")
    assert problems == []
    assert [(pair.case, pair.reference.name, pair.prediction.name) for pair in pairs] == [
        ("00001-000", "BraTS-MET-00001-000-seg.nii.gz", "y_00001-000.nii"),
        ("BraTS2021_00003", "BraTS2021_00003_seg.nii", "BraTS2021_00003.nii.gz"),
    ]
    assert sorted(find_images(pairs[0].reference)) == ["t1c", "t1n", "t2f", "t2w"]
    assert {m: path.name for m, path in find_images(pairs[1].reference).items()} == {"t1c": "BraTS2021_00003_t1ce.nii"}


def test_folders_must_hold_masks(tmp_path):
    with pytest.raises(EvaluationError, match=r"predictions=.*is not a folder"):
        find_masks(tmp_path / "nowhere", "predictions")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(EvaluationError, match="holds no mask"):
        find_masks(tmp_path, "references")


def test_a_perfect_and_an_empty_prediction(folders):
    predictions, _, output = folders
    before = {path: path.stat().st_mtime_ns for path in predictions.parent.rglob("*.nii.gz")}
    result = run(*folders, "protocol=brats2026")
    assert {path: path.stat().st_mtime_ns for path in predictions.parent.rglob("*.nii.gz")} == before
    assert sorted(path.name for path in output.iterdir()) == [
        "report.html",
        "scores.csv",
        "summary.json",
        "voxel_scores.csv",
    ]
    table = rows(output / "scores.csv")
    assert [(row["case"], row["region"]) for row in table] == [
        (case, region) for case in ("00001-000", "00002-000") for region in ("et", "tc", "wt")
    ]
    # WT: 2·5·2 voxels, and one voxel apart
    wt = {row["case"]: row for row in table if row["region"] == "wt"}
    assert wt["00001-000"]["lesionwise_dsc_mean"] == "1.0"
    assert wt["00001-000"]["small_instance_f1"] == "1.0"
    assert wt["00002-000"]["all_instance_fn"] == "2.0"
    assert wt["00002-000"]["all_instance_prec"] == ""
    assert wt["00002-000"]["lesionwise_hd95_mean"] == "373.0"
    stored = json.loads((output / "summary.json").read_text())
    dice = stored["scores"]["brats2026"]["wt"]["lesionwise_dsc_mean"]
    assert dice["mean"] == 0.5
    assert dice["std"] == pytest.approx(0.5**0.5)
    assert dice["n"] == 2
    assert (dice["low"], dice["high"]) == (0, 1)
    assert stored["scores"]["brats2026"]["et"]["lesionwise_dsc_mean"]["mean"] is None  # 7 and 1 mm³: none is large
    assert stored["settings"]["thresholds"] == {"name": "default", "volume": 20.0, "overlap": 0.1}
    assert stored["settings"]["spacing"] == "official"
    assert stored["cases"] == {"scored": 2, "patients": 2, "missing": 0, "missing_predictions": [], "left_out": []}
    assert result["lesions"]["et"]["lesions"] == 4
    assert result["lesions"]["et"]["detected"] == 2


def test_voxel_scores(folders):
    run(*folders)
    table = {(row["case"], row["region"]): row for row in rows(folders[2] / "voxel_scores.csv")}
    assert {region for _, region in table} == {"et", "tc", "wt", "netc", "snfh", "et_class", "all"}
    perfect, empty = (table[case, "wt"] for case in ("00001-000", "00002-000"))
    assert (perfect["dice"], perfect["iou"], perfect["nsd"], perfect["volume_error"]) == ("1.0", "1.0", "1.0", "0.0")
    assert (empty["dice"], float(empty["volume_error"])) == ("0.0", pytest.approx(-21 / 1000))
    assert float(empty["hd95"]) == pytest.approx((12**2 + 14**2 + 10**2) ** 0.5)
    assert float(table["00002-000", "all"]["accuracy"]) == pytest.approx(1 - 21 / (12 * 14 * 10))


def test_missing_predictions(folders):
    (folders[0] / "00002-000.nii.gz").unlink()
    result = run(*folders, "protocol=[brats2026,brats2023]")
    assert result["cases"]["missing_predictions"] == ["00002-000"]
    missing = [row for row in rows(folders[2] / "scores_brats2026.csv") if row["case"] == "00002-000"]
    assert [row["all_instance_fn"] for row in missing] == ["0.0"] * 3  # the program's rule: every column 0
    assert [row["global_hd95"] for row in missing] == ["373.0"] * 3
    older = [row for row in rows(folders[2] / "scores_brats2023.csv") if row["case"] == "00002-000"]
    assert [row["LesionWise_Score_Dice"] for row in older] == ["0.0"] * 3
    assert [row["Num_FN"] for row in older] == ["1.0"] * 3  # the single voxel is no lesion of 2023
    assert result["lesions"]["et"]["lesions"] == 4  # what nobody predicted was missed
    with pytest.raises(CaseError, match="missing=score"):
        run(*folders, "missing=error")


def test_several_protocols_and_an_earlier_result(folders):
    run(*folders, "protocol=[brats2024,brats2026]")
    output = folders[2]
    assert (output / "scores.csv").read_text() == (output / "scores_brats2024.csv").read_text()
    assert "lesionwise_dsc_mean" in rows(output / "scores_brats2026.csv")[0]
    (output / "mine.txt").write_text("stays")
    run(*folders, "protocol=brats2023")
    assert sorted(path.name for path in output.iterdir()) == [
        "mine.txt",
        "report.html",
        "scores.csv",
        "summary.json",
        "voxel_scores.csv",
    ]


FAULTS = {
    "00003-000": "cannot be read",
    "00004-000": "shape (13, 14, 10)",
    "00005-000": "mm off its reference",
    "00006-000": "2 files: 00006-000.nii, x_00006-000.nii.gz",
    "00007-000": "no reference of this case",
    "00008-000": "1 voxels of label 6",
    "00009-000": "voxels of label 4",
}


@pytest.fixture
def faulty(folders):
    predictions, references, _ = folders
    for case in FAULTS:
        if case != "00007-000":
            save(references / f"{case}.nii.gz", lesions())
        save(predictions / f"{case}.nii.gz", lesions())
    whole = (predictions / "00003-000.nii.gz").read_bytes()
    (predictions / "00003-000.nii.gz").write_bytes(whole[: len(whole) // 2])
    save(predictions / "00004-000.nii.gz", np.zeros((13, 14, 10), np.uint8))
    save(predictions / "00005-000.nii.gz", lesions(), RAS)
    (predictions / "00006-000.nii.gz").rename(predictions / "x_00006-000.nii.gz")
    save(predictions / "00006-000.nii", lesions())
    odd = lesions()
    odd[1, 1, 1] = 6
    save(predictions / "00008-000.nii.gz", odd)
    save(references / "00009-000.nii.gz", np.where(lesions() == 3, 4, lesions()))
    return folders


def test_all_faults_in_one_report(faulty):
    with pytest.raises(CaseError) as caught:
        run(*faulty)
    assert {problem.case for problem in caught.value.problems} == set(FAULTS)
    for problem in caught.value.problems:
        assert FAULTS[problem.case] in problem.found
        assert problem.expected
        assert problem.remedy
    by_case = {problem.case: problem for problem in caught.value.problems}
    assert "prediction_label_map" in by_case["00008-000"].remedy
    assert by_case["00008-000"].file == "prediction 00008-000.nii.gz"
    assert "data.label_map" in by_case["00009-000"].remedy
    assert by_case["00009-000"].file == "reference 00009-000.nii.gz"
    assert not faulty[2].exists()


def test_faulty_cases_are_left_out_and_told(faulty, caplog):
    result = run(*faulty, "on_bad_case=skip")
    assert result["cases"]["scored"] == 2
    assert {problem["case"] for problem in result["cases"]["left_out"]} == set(FAULTS)
    assert "00008-000" in caplog.text
    assert "voxels of label 6" in (faulty[2] / "report.html").read_text()


def test_nothing_left_is_an_error(tmp_path):
    save(tmp_path / "ref/00001-000.nii", lesions())
    save(tmp_path / "pred/00001-000.nii", lesions()[1:])
    with pytest.raises(EvaluationError, match="no case of pred is left"):
        run(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", "on_bad_case=skip")


def test_a_tolerated_shift(tmp_path):
    shifted = LPS.copy()
    shifted[0, 3] = 0.3
    save(tmp_path / "ref/00001-000.nii", lesions())
    save(tmp_path / "pred/00001-000.nii", lesions(), shifted)
    folders = tmp_path / "pred", tmp_path / "ref", tmp_path / "out"
    with pytest.raises(CaseError, match=r"0\.3 mm off"):
        run(*folders)
    assert run(*folders, "data.affine_tolerance=0.5")["scores"]["brats2024"]["et"]["Legacy_Dice"]["mean"] == 1


def test_label_maps(tmp_path):
    old = np.where(lesions() == 3, 4, lesions()).astype(np.uint8)
    save(tmp_path / "ref/BraTS2021_00000/BraTS2021_00000_seg.nii.gz", old)
    save(tmp_path / "pred/BraTS2021_00000.nii.gz", lesions())
    folders = tmp_path / "pred", tmp_path / "ref", tmp_path / "out"
    result = run(*folders, "data.label_map={4:3}")
    assert result["scores"]["brats2024"]["et"]["Legacy_Dice"]["mean"] == 1
    assert json.loads((tmp_path / "out/summary.json").read_text())["settings"]["label_map"] == {"4": 3}
    save(tmp_path / "pred/BraTS2021_00000.nii.gz", old)
    result = run(*folders, "data.label_map={4:3}", "prediction_label_map={4:3}")
    assert result["scores"]["brats2024"]["et"]["Legacy_Dice"]["mean"] == 1
    with pytest.raises(ValueError, match=r"data.label_map must map .*background stays 0"):
        run(*folders, "data.label_map={0:1}")


def test_partly_labelled_references_are_scored_as_if_they_were_cut(tmp_path):
    mask, guess = lesions(), np.roll(lesions(), 1, axis=2)
    mask[:, 8:], guess[2:5, 9:12, 2:5] = 9, 3  # what is predicted there is neither right nor wrong
    save(tmp_path / "ref/00001-000.nii.gz", mask)
    save(tmp_path / "pred/00001-000.nii.gz", guess)
    save(tmp_path / "cut_ref/00001-000.nii.gz", mask[:, :8])
    save(tmp_path / "cut_pred/00001-000.nii.gz", guess[:, :8])
    told = "protocol=[brats2024,brats2026]", "data.ignore_label=9"
    summary = run(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", *told)
    run(tmp_path / "cut_pred", tmp_path / "cut_ref", tmp_path / "cut", told[0])
    for file in ("scores.csv", "voxel_scores.csv"):
        found, expected = rows(tmp_path / "out" / file), rows(tmp_path / "cut" / file)
        assert found
        for row in (*found, *expected):
            row.pop("Specificity", None)  # of the whole volume
        assert found == expected
    assert summary["settings"]["label_map"] == {9: 255}
    assert summary["lesions"]["et"]["false_positives"] == 0
    assert "9 → not labelled" in (tmp_path / "out/report.html").read_text()


def test_what_cannot_be_ignored(folders):
    with pytest.raises(ValueError, match=r"data.ignore_label must be one label of 4 … 255"):
        run(*folders, "data.ignore_label=3")
    with pytest.raises(EvaluationError, match="a prediction has a class everywhere"):
        run(*folders, "prediction_label_map={4:255}")
    save(folders[0] / "00001-000.nii.gz", np.full_like(lesions(), 9))
    with pytest.raises(CaseError, match=r"prediction 00001-000.nii.gz .* voxels of label 9"):
        run(*folders, "data.ignore_label=9")


def test_resection_cavity_is_a_fourth_region(tmp_path):
    mask = lesions()
    mask[8:10, 3:6, 3:6] = 4
    save(tmp_path / "ref/00001-000.nii.gz", mask)
    save(tmp_path / "pred/00001-000.nii.gz", np.where(mask == 4, 0, mask).astype(np.uint8))
    folders = tmp_path / "pred", tmp_path / "ref", tmp_path / "out"
    result = run(*folders, "data.labels=[netc,snfh,et,rc]")
    scores = {
        region: columns["LesionWise_Score_Dice"]["mean"] for region, columns in result["scores"]["brats2024"].items()
    }
    assert scores == {"et": 1, "tc": 1, "wt": 1, "rc": 0}
    assert "resection cavity" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize("spacing", ["official", "correct"])
def test_anisotropic_volumes_in_mm(tmp_path, spacing):
    affine = np.diag([-0.5, -0.75, 5.0, 1.0])
    mask, moved = np.zeros((2, 12, 14, 10), np.uint8)
    mask[4:8, 4:8, 4:6] = 3
    moved[4:8, 4:8, 5:7] = 3
    save(tmp_path / "ref/00001-000.nii.gz", mask, affine)
    save(tmp_path / "pred/00001-000.nii.gz", moved, affine)
    folders = tmp_path / "pred", tmp_path / "ref", tmp_path / "out"
    result = run(*folders, "protocol=brats2026", f"spacing={spacing}", "thresholds=challenge")
    assert result["lesions"]["et"]["size_bands"][1]["lesions"] == 1  # 32 · 1.875 = 60 mm³
    hd95 = result["scores"]["brats2026"]["et"]["lesionwise_hd95_mean"]["mean"]
    assert hd95 == (0.5 if spacing == "official" else 5.0)  # one voxel along z
    assert result["voxel_scores"]["et"]["hd95"]["mean"] == 5.0
    assert result["settings"]["thresholds"]["volume"] == 27.0


def test_no_lesion_anywhere(tmp_path):
    empty = np.zeros((6, 7, 8), np.uint8)
    for case in ("00001-000", "00002-000"):
        save(tmp_path / f"ref/{case}.nii", empty)
        save(tmp_path / f"pred/{case}.nii", empty)
    result = run(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", "protocol=[brats2026,brats2023]")
    assert np.isnan(result["scores"]["brats2026"]["et"]["lesionwise_dsc_mean"]["mean"])
    assert result["scores"]["brats2023"]["et"]["LesionWise_Score_Dice"]["mean"] == 1
    assert "nothing to find, nothing found" in (tmp_path / "out/report.html").read_text()


def test_one_case_has_no_interval(tmp_path):
    save(tmp_path / "ref/00001-000.nii", lesions())
    save(tmp_path / "pred/00001-000.nii", lesions())
    result = run(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    row = result["scores"]["brats2024"]["wt"]["LesionWise_Score_Dice"]
    assert (row["mean"], row["n"]) == (1, 1)
    assert np.isnan([row["std"], row["low"], row["high"]]).all()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("protocol=brats2022", "brats2023, brats2024, brats2025, brats2026, got 'brats2022'"),
        ("thresholds=strict", "default, challenge, got 'strict'"),
        ("spacing=iso", "official, correct, got 'iso'"),
        ("missing=skip", "score or error, got 'skip'"),
        ("on_bad_case=warn", "error or skip, got 'warn'"),
        ("protocol=[]", "protocol names none"),
    ],
)
def test_unknown_settings(folders, override, message):
    with pytest.raises(EvaluationError, match=message):
        run(*folders, override)


def test_a_warning_where_the_predictions_are_the_references(folders, caplog):
    run(folders[1], folders[1], folders[2])
    assert "2 predictions are the reference's own file" in caplog.text


def test_processes_change_nothing(folders, tmp_path):
    (folders[0] / "00002-000.nii.gz").unlink()
    run(*folders)
    other = tmp_path / "other"
    run(folders[0], folders[1], other, "processes=2")
    for name in ("scores.csv", "voxel_scores.csv", "summary.json", "report.html"):
        assert (other / name).read_text() == (folders[2] / name).read_text()


def test_method_names(tmp_path):
    def paths(*names):
        return [tmp_path / name for name in names]

    assert method_names(paths("a", "b"), None) == ["a", "b"]
    assert method_names(paths("x/masks", "y/masks"), None) == ["x_masks", "y_masks"]
    assert method_names(paths("lr=1,2"), None) == ["lr_1_2"]
    assert method_names(paths("a", "b"), ["ours", "theirs"]) == ["ours", "theirs"]
    with pytest.raises(EvaluationError, match="twice"):
        method_names(paths("a", "a"), None)
    for bad in (["one"], ["same", "same"], ["a/b", "c"], ["a=b", "c"], ["", "c"], ["..", "c"]):
        with pytest.raises(EvaluationError, match="2 distinct folder names"):
            method_names(paths("a", "b"), bad)


def test_csv_keeps_every_digit():
    text = scores_csv({"a": {"et": {"x": 1 / 3, "y": float("nan")}}, "b": {"et": {"y": 2.0}}})
    assert text == f"case,region,x,y\na,et,{1 / 3!r},\nb,et,,2.0\n"


def test_the_command_writes_into_its_output_only(folders, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    told = [f"predictions={folders[0]}", f"references={folders[1]}", "output=o", "processes=1", "resamples=10"]
    command = [sys.executable, "-m", "brats_lightning.evaluate", *told, "pictures=0"]
    root = str(Path(brats_lightning.__file__).parents[1])
    done = subprocess.run(
        command, cwd=work, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": root}
    )
    assert done.returncode == 0, done.stderr
    assert "Lesion-wise Dice" in done.stdout
    assert [path.name for path in work.iterdir()] == ["o"]


@needs_metric_cases
@pytest.mark.parametrize(
    ("protocol", "key", "override"),
    [
        ("brats2023", "brats2023", "spacing=official"),
        ("brats2025", "brats2025", "spacing=official"),
        ("brats2026", "brats2026", "spacing=official"),
        ("brats2026", "brats2026_spacing_xyz_fixed", "spacing=correct"),
    ],
)
def test_the_official_values_under_other_names(tmp_path, protocol, key, override):
    tolerance = 1e-6 if override == "spacing=correct" else 1e-10  # there the program was not given the header's float32
    cases = json.loads((METRIC_CASES / "expected.json").read_text())["cases"]
    (tmp_path / "pred").mkdir()
    for i, (case, entry) in enumerate(cases.items()):
        name = (f"{case}.nii.gz", f"SEG-{case}.nii.gz", f"BraTS-MET_{case}.nii.gz")[i % 3]
        shutil.copyfile(METRIC_CASES / entry["pred"], tmp_path / "pred" / name)
    run(tmp_path / "pred", METRIC_CASES / "ref", tmp_path / "out", f"protocol={protocol}", override)
    table = {(row.pop("case"), row.pop("region")): row for row in rows(tmp_path / "out/scores.csv")}
    assert len(table) == 3 * len(cases)
    for case, entry in cases.items():
        for region, protocols in entry["regions"].items():
            expected = {c: v for c, v in protocols[key].items() if c not in ("source", "raw_legacy_in_lesionwise")}
            found = {c: float(v) if v else np.nan for c, v in table[case, region].items()}
            assert found.keys() == expected.keys()
            for column, value in expected.items():
                value = np.nan if value is None else float(value)
                np.testing.assert_allclose(
                    found[column], value, rtol=0, atol=tolerance, err_msg=f"{case} {region} {column}"
                )


def test_masks_need_no_common_data_type(tmp_path):
    save(tmp_path / "ref/00001-000.nii", lesions().astype(np.int16))
    nib.Nifti1Image(lesions().astype(np.float32), LPS).to_filename(tmp_path / "m.nii")
    (tmp_path / "pred").mkdir()
    (tmp_path / "m.nii").rename(tmp_path / "pred/00001-000.nii")
    result = run(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert result["scores"]["brats2024"]["et"]["Legacy_Dice"]["mean"] == 1


def test_what_is_read_is_scored_whatever_the_files_are_called_and_shaped(folders):
    predictions, references, _ = folders
    before = run(*folders, "protocol=[brats2024,brats2026]")["scores"]
    for path in (predictions / "00001-000.nii.gz", references / "BraTS-MET-00001-000-seg.nii.gz"):
        path.write_bytes(gzip.decompress(path.read_bytes()))
    save(references / "BraTS-MET-00002-000-seg.nii.gz", lesions()[..., None])
    assert str(run(*folders, "protocol=[brats2024,brats2026]")["scores"]) == str(before)  # NaN is not itself


def test_folders_named_like_files_and_folders_that_may_not_be_read(tmp_path, monkeypatch, caplog):
    for kind, array in (("seg", lesions()), ("t1ce", brain())):
        save(tmp_path / f"ref/B_0001/B_0001_{kind}.nii/000_x_{kind}.nii", array)
    save(tmp_path / "pred/B_0001.nii.gz", lesions())
    (tmp_path / "pred/private").mkdir()
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (pair,), problems = pair_masks(tmp_path / "pred", tmp_path / "ref")
    assert problems == []
    assert pair.reference.name == "000_x_seg.nii"
    assert {m: path.name for m, path in find_images(pair.reference).items()} == {"t1c": "000_x_t1ce.nii"}
    assert f"passed over {tmp_path / 'pred/private'}: Permission denied" in caplog.text


def test_patients_are_those_of_the_data_set_or_of_the_names(tmp_path):
    save(tmp_path / "pred/BraTS-MET-00001-000.nii.gz", lesions())
    mask = save(tmp_path / "ref/BraTS-MET-00001-000-seg.nii.gz", lesions())
    (pair,), _ = pair_masks(tmp_path / "pred", tmp_path / "ref")
    assert pair.patient == "00001"
    case = Case("BraTS-MET-00001-000", "Müller", "000", {}, mask)
    (pair,), _ = pair_masks(tmp_path / "pred", tmp_path / "ref", cases=[case])
    assert pair.patient == "Müller"


def test_a_process_that_dies_names_its_case():
    pairs = [Pair(f"0000{i}-000", Path("a"), None) for i in (1, 2, 3)]
    with (
        case_workers(2) as pool,
        pytest.raises(DeadWorker, match=r"those at 00001-000, 00002-000: .*use fewer processes: processes=1"),
    ):
        over_cases(_die, pairs, pool, "scoring")


def _die(_):
    os._exit(1)
