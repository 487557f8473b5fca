"""The same cases give the same arrays, splits and scores in every layout."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.config.build import build_data, describe_data
from brats_lightning.data.cases import CaseError
from brats_lightning.evaluate import evaluate
from brats_lightning.predict import predict
from brats_lightning.submission import submission
from brats_lightning.tune import tune
from tests.data.layouts.same_cases import IDS, LAYOUTS, bids_id, write_layouts
from tests.tiny_models import bright_is_et

ARRAYS = ("image", "mask", "positions")


@pytest.fixture
def layouts(tmp_path):
    return write_layouts(tmp_path)


@pytest.fixture
def filled(composed, layouts, tmp_path):
    """Layout → its data module, with cases and split."""

    def make(layout, *overrides):
        cache = f"paths.cache_dir={tmp_path}/cache"
        data = build_data(composed(*layouts[layout], cache, "data.cache_workers=1", *overrides, name="preprocess"))
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def renamed(layout, case):
    return bids_id(case) if layout == "bids" else case


def test_cached_arrays_are_byte_identical_and_splits_equal(filled):
    first = filled("brats_mets")
    assert sorted(first.cases) == list(IDS)
    for layout in LAYOUTS[1:]:
        other = filled(layout)
        assert sorted(other.cases) == [renamed(layout, case) for case in IDS]
        for case in IDS:
            ours, theirs = first.cases[case], other.cases[renamed(layout, case)]
            for name in ARRAYS:
                assert getattr(theirs, name)().tobytes() == getattr(ours, name)().tobytes(), (layout, name)
            assert theirs.reference().tobytes() == ours.reference().tobytes()
            assert theirs.lesions == ours.lesions
            assert theirs.intensities == ours.intensities
        for part in ("train", "val", "test"):
            assert getattr(other.split, part) == tuple(renamed(layout, c) for c in getattr(first.split, part)), layout
    assert min(map(len, (first.split.train, first.split.val, first.split.test))) > 0


def test_all_timepoints_of_a_patient_belong_together(filled):
    for layout in LAYOUTS:
        patients = [case.patient for case in filled(layout).source()]
        assert patients[0] == patients[1]
        assert len(set(patients)) == 4


def test_the_label_map_that_dataset_json_states_is_told(composed, layouts):
    cfg = composed(*layouts["nnunet"], name="preprocess")
    assert dict(cfg.data.label_map) == {1: 2, 2: 1}
    assert describe_data(cfg).endswith("/nnunet; labels read: 1 as snfh, 2 as netc")
    own = composed(*layouts["nnunet"], "data.label_map={1:1}", name="preprocess")
    assert dict(own.data.label_map) == {1: 1}


@pytest.fixture
def scores(composed, tmp_path):
    """The rows of scores.csv without the names of cases, after a prediction and an evaluation."""

    def make(name, given, evaluated):
        masks, out = tmp_path / f"masks_{name}", tmp_path / f"scores_{name}"
        common = [f"ckpt={bright_is_et(tmp_path / 'et.ckpt')}", f"output={masks}", "device=cpu", "precision=32"]
        predict(composed(*common, *given, name="predict"))
        quick = [f"output={out}", "processes=1", "resamples=20", "pictures=2", "protocol=brats2026"]
        evaluate(composed(*quick, f"predictions={masks}", *evaluated, name="evaluate"))
        rows = list(csv.reader((out / "scores.csv").read_text().splitlines()))
        return masks, [row[0] for row in rows[1:]], [row[1:] for row in rows]

    return make


def test_predicted_in_a_layout_and_evaluated_there_as_directly(layouts, scores, tmp_path):
    root = f"{tmp_path}/brats_mets"
    _, _, expected = scores("direct", [f"input={root}"], [f"references={root}"])
    assert len(expected) == 1 + 3 * len(IDS)
    names = {
        "brats_mets": f"{IDS[0]}-seg.nii.gz",
        "nnunet": f"{IDS[0]}.nii.gz",
        "datalist": f"data/{IDS[0]}_seg.nii.gz",
        "bids": "sub-00001/ses-000/anat/sub-00001_ses-000_desc-prediction_dseg.nii.gz",
        "files": f"masks/{IDS[0]}.nii.gz",
    }
    for layout, name in names.items():
        masks, cases, found = scores(layout, [*layouts[layout], "names=layout"], layouts[layout])
        assert found == expected, layout
        assert (masks / name).exists()
        assert len([*masks.rglob("*.nii.gz")]) == len(IDS)
        assert cases[0] == ("sub-00001_ses-000" if layout == "bids" else "00001-000")
    _, _, by_id = scores("by_id", layouts["bids"], layouts["bids"])
    assert by_id == expected


def test_files_of_the_input_are_never_written(composed, layouts, tmp_path):
    common = [f"ckpt={bright_is_et(tmp_path / 'et.ckpt')}", "device=cpu", "precision=32", "overwrite=true"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}

    def run(layout, output, *overrides):
        predict(composed(*common, *layouts[layout], f"output={output}", *overrides, name="predict"))

    with pytest.raises(ValueError, match=rf"output: .*labelsTr/{IDS[0]}.nii.gz is a file of the input"):
        run("nnunet", tmp_path / "nnunet/labelsTr")
    for layout in LAYOUTS:
        with pytest.raises(ValueError, match=f"lies in .*{layout}.*; choose a folder outside"):
            run(layout, tmp_path / layout / "out", "names=layout")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")} == before


def test_a_data_set_beside_another_folder_is_refused(composed, layouts, tmp_path):
    common = [f"ckpt={bright_is_et(tmp_path / 'et.ckpt')}", f"output={tmp_path}/out", "device=cpu"]
    with pytest.raises(ValueError, match="both name the cases; leave input out"):
        predict(composed(*common, *layouts["nnunet"], f"input={tmp_path}/brats_mets", name="predict"))
    with pytest.raises(ValueError, match=r"must be given on the command line: input=…$"):
        composed(*common, name="predict")
    with pytest.raises(ValueError, match=r"must be given on the command line: data.root=…$"):
        composed(*common, "data=brats_mets", name="predict")


def test_cases_of_a_split_are_predicted_and_scored_in_any_layout(composed, layouts, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [bids_id(IDS[0])], "test": [bids_id(IDS[3])]}))
    chosen = [*layouts["bids"], f"split={split}"]
    output = [f"output={tmp_path}/out", "device=cpu", "precision=32"]
    found = predict(composed(f"ckpt={bright_is_et(tmp_path / 'et.ckpt')}", *output, *chosen, name="predict"))
    assert list(found["cases"]) == [bids_id(IDS[3])]
    quick = [f"output={tmp_path}/scores", "processes=1", "resamples=20", "pictures=0"]
    result = evaluate(composed(f"predictions={tmp_path}/out", *quick, *chosen, name="evaluate"))
    assert result["cases"]["scored"] == 1


def test_post_processing_is_tuned_on_another_layout_of_the_cases(composed, layouts, tmp_path):
    path = bright_is_et(tmp_path / "run/checkpoints/best.ckpt", label_map=None)
    (tmp_path / "run/split.json").write_text(json.dumps({"train": [IDS[0]], "val": [IDS[2], IDS[3]], "test": []}))
    common = [f"ckpt={path}", "device=cpu", "precision=32", "grid.hysteresis=null", "grid.core=null"]
    expected = tune(composed(*common, f"input={tmp_path}/brats_mets", name="tune"))
    assert tune(composed(*common, *layouts["nnunet"], name="tune")) == expected


def test_a_submission_is_checked_against_any_layout(composed, layouts, tmp_path):
    common = [f"ckpt={bright_is_et(tmp_path / 'et.ckpt')}", f"output={tmp_path}/out", "device=cpu", "precision=32"]
    predict(composed(*common, *layouts["nnunet"], name="predict"))
    checked = [f"predictions={tmp_path}/out", *layouts["nnunet"], "max_share=1"]  # all that is bright is labelled
    assert submission(composed(*checked, name="submission"))["masks"] == len(IDS)
    (tmp_path / f"out/{IDS[0]}.nii.gz").unlink()
    with pytest.raises(CaseError, match=rf"(?s)1 case cannot be used.*00001-000 .*missing .*{IDS[0]}"):
        submission(composed(*checked, name="submission"))


IMAGES = {
    "brats_mets": "brats_mets/{0}/{0}-t1c.nii.gz",
    "nnunet": "nnunet/imagesTr/{0}_0001.nii.gz",
    "datalist": "datalist/data/{0}_t1c.nii.gz",
    "bids": "bids/sub-{1}/ses-{2}/anat/sub-{1}_ses-{2}_ce-gadolinium_T1w.nii.gz",
    "files": "files/scans/BraTS-MET-{1}/{0}/T1C_T1post.nii.gz",
}
MASKS = {
    "brats_mets": "brats_mets/{0}/{0}-seg.nii.gz",
    "nnunet": "nnunet/labelsTr/{0}.nii.gz",
    "datalist": "datalist/data/{0}_seg.nii.gz",
    "bids": "bids/derivatives/lesions/sub-{1}/ses-{2}/anat/sub-{1}_ses-{2}_dseg.nii.gz",
    "files": "files/masks/{0}.nii.gz",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_faults_of_a_layout_in_one_table(filled, tmp_path, layout):
    def file(paths, number):
        case = IDS[number]
        return tmp_path / paths[layout].format(case, *case.split("-")[2:])

    file(IMAGES, 0).unlink()
    cut = file(IMAGES, 1)
    cut.write_bytes(cut.read_bytes()[:200])
    mask = nib.load(file(MASKS, 2))
    array = np.asanyarray(mask.dataobj).copy()
    array[0, 0, :2] = 7
    nib.Nifti1Image(array, mask.affine).to_filename(file(MASKS, 2))
    nib.Nifti1Image(np.ones((3, 3, 3), np.int16), np.eye(4)).to_filename(file(IMAGES, 3))
    with pytest.raises(CaseError) as error:
        filled(layout)
    found = {(problem.case, problem.file) for problem in error.value.problems}
    wanted = [(0, "t1c"), (1, "t1c"), (2, "seg"), (3, "t1c")]
    assert found == {(renamed(layout, IDS[number]), kind) for number, kind in wanted}
    assert str(error.value).startswith("4 cases cannot be used")
    assert not [*tmp_path.rglob("*.tmp")]
    cached = {path.name.partition(".")[0] for path in (tmp_path / "cache").rglob("*.json")}
    assert cached == {renamed(layout, IDS[4])}


def test_masks_in_a_folder_of_their_own_replace_those_of_any_layout(filled, tmp_path):
    empty = nib.Nifti1Image(np.zeros((12, 14, 10), np.uint8), nib.load(tmp_path / MASKS["files"].format(IDS[0])).affine)
    for layout in LAYOUTS:
        name = f"{bids_id(IDS[0])}_dseg" if layout == "bids" else IDS[0]
        (tmp_path / f"corrected_{layout}").mkdir()
        empty.to_filename(tmp_path / f"corrected_{layout}/{name}.nii.gz")
        data = filled(layout, f"data.masks={tmp_path}/corrected_{layout}")
        assert [bool(case.lesions) for _, case in sorted(data.cases.items())] == [False, True, True, True, True]


def test_saved_configs_list_their_cases_again(filled, layouts, composed):
    from omegaconf import OmegaConf

    from brats_lightning.config.allow_list import SOURCES, build_saved

    for layout in LAYOUTS:
        cfg = composed(*layouts[layout], name="preprocess")
        node = OmegaConf.to_container(cfg.data.source)
        assert len(build_saved(node, known=tuple(SOURCES.values()))) == len(IDS)
