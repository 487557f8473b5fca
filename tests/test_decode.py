"""Masks from saved probabilities: equal to those of predict, for all rules."""

import json
import os

import nibabel as nib
import numpy as np
import pytest
import torch

from brats_lightning.config.postprocessing import as_config, tuned_file
from brats_lightning.config.resolvers import config_dir
from brats_lightning.data.cases import CaseError
from brats_lightning.data.probabilities import read_record
from brats_lightning.decode import decode
from brats_lightning.inference.decoding import SavedError
from brats_lightning.inference.fusion import FusionError
from brats_lightning.inference.postprocessing import MinVolume, Postprocessing, PostprocessingError
from brats_lightning.inference.provenance import ForeignMasks
from brats_lightning.predict import predict
from tests.data.tiny_cases import LPS, RAS, SHAPE, write_case
from tests.tiny_models import bright_is_et, voxelwise

NAMES = [f"BraTS-MET-0000{n}-000" for n in (1, 2)]
CHOICES = sorted(path.stem for path in (config_dir() / "postprocessing").glob("*.yaml"))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cases(tmp_path):
    """Two cases on different grids, of noise with a few bright blobs."""
    for number, (name, affine) in enumerate(zip(NAMES, (LPS, RAS), strict=True)):
        rng = np.random.default_rng(number)
        image = rng.integers(1, 600, SHAPE).astype(np.int16)
        image[2:5, 3:6, 2:6], image[8:10, 9:12, 4:8] = 700, 1000
        image[0], image[:, :, -2:] = 0, 0
        write_case(tmp_path / "in", name, affine=affine, t1c=image, seg=None)


@pytest.fixture
def predicted(composed, tmp_path, cases):
    """Predicts the cases with their probabilities."""

    def make(ckpt, *overrides, to="saved"):
        where = [f"ckpt={ckpt}", f"input={tmp_path}/in", f"output={tmp_path}/{to}", "device=cpu", "precision=32"]
        return predict(composed(*where, "probabilities=true", *overrides, name="predict"))

    return make


@pytest.fixture
def decoded(composed, tmp_path):
    def make(*overrides, saved="saved", to="out"):
        saved = saved if saved.startswith("[") else f"{tmp_path}/{saved}"
        where = [f"probabilities={saved}", f"output={tmp_path}/{to}", "processes=1"]
        return decode(composed(*where, *overrides, name="decode"))

    return make


def graded(path, shift=0.0, **settings):
    """Certain of nothing: classes that grow with the value, one after the other."""
    return voxelwise(path, [[0.0], [4.0], [6.0], [9.0]], [2.0, 0.0 + shift, -0.5, -2.5], **settings)


def masks(folder):
    files = sorted(path for path in folder.glob("*.nii.gz") if "_probabilities" not in path.name)
    return {path.name: path for path in files}


@pytest.mark.parametrize("choice", [name for name in CHOICES if name != "tuned"])
@pytest.mark.parametrize("target", ["classes", "regions"])
def test_masks_are_those_of_predict(predicted, decoded, tmp_path, choice, target):
    if target == "classes":
        graded(tmp_path / "a.ckpt")
    else:
        voxelwise(tmp_path / "a.ckpt", [[9.0], [8.0], [7.0]], [-5.0, -4.0, -2.5], target="regions")
    predicted(tmp_path / "a.ckpt", "postprocessing=none")
    predicted(tmp_path / "a.ckpt", f"postprocessing={choice}", "probabilities=false", to="expected")
    result = decoded(f"postprocessing={choice}")
    assert list(result["cases"]) == NAMES
    found, expected = masks(tmp_path / "out"), masks(tmp_path / "expected")
    assert list(found) == list(expected) == [f"{name}.nii.gz" for name in NAMES]
    for name, path in found.items():
        assert path.read_bytes() == expected[name].read_bytes()  # voxels, header and origin
    assert len(np.unique(nib.load(found[f"{NAMES[0]}.nii.gz"]).dataobj)) > 1


def test_tuned_rules_are_those_of_the_checkpoint_or_the_folder(predicted, decoded, tmp_path):
    path = bright_is_et(tmp_path / "a.ckpt")
    rules = {"chosen": as_config(Postprocessing({"small": MinVolume(3)}))}
    tuned_file(path).write_text(json.dumps(rules))
    predicted(path, "postprocessing=tuned")
    with pytest.raises(ValueError, match=r"no .*saved/postprocessing.yaml; make it with: .* probabilities="):
        decoded("postprocessing=tuned")
    tuned_file(tmp_path / "saved").write_text(json.dumps(rules))
    decoded("postprocessing=tuned")
    decoded("postprocessing=tuned", f"postprocessing.checkpoint={path}", to="again")
    for folder in ("out", "again"):
        for name, mask in masks(tmp_path / folder).items():
            assert mask.read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_the_rules_are_those_of_predict_unless_chosen(predicted, decoded, tmp_path, caplog):
    graded(tmp_path / "a.ckpt")
    first = predicted(tmp_path / "a.ckpt", "postprocessing=strict", "postprocessing.steps.core.threshold=0.6")
    result = decoded()
    for name, path in masks(tmp_path / "out").items():
        assert path.read_bytes() == (tmp_path / "saved" / name).read_bytes()
    for name, case in result["cases"].items():
        del case["seconds"], first["cases"][name]["seconds"]
        assert case == first["cases"][name]
    # so they are the same masks, which are not made again
    assert decoded(to="saved")["existing"] == NAMES
    assert decoded()["existing"] == NAMES
    assert "that are older than" not in caplog.text
    (tmp_path / f"saved/{NAMES[0]}_probabilities.nii.gz").touch()
    decoded()
    assert (
        f"{tmp_path}/out: masks are kept that are older than what they were made from: {NAMES[0]}.nii.gz;"
        in caplog.text
    )
    with pytest.raises(ForeignMasks, match="was made with other post-processing"):
        decoded("postprocessing=none")
    assert list(decoded("postprocessing=none", "overwrite=true")["cases"]) == NAMES


def test_ensembles_keep_their_spread_and_their_members(predicted, decoded, tmp_path):
    split = {"train": ["BraTS-MET-00001-001"], "val": NAMES[1:], "test": []}
    for name, shift in (("a", 0.0), ("b", 2.0)):
        graded(
            tmp_path / f"{name}.ckpt", shift, preprocessing={"spacing": [0.8, 0.8, 0.8], "fit": "none", "size": None}
        )
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    torch.save(content | {"split": split}, tmp_path / "a.ckpt")
    first = predicted(f"[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt]")
    result = decoded()
    lesions = [case["regions"]["et"]["confidence"] for case in (result["cases"][NAMES[0]], first["cases"][NAMES[0]])]
    assert lesions[0] == lesions[1]
    assert lesions[0][0]["disagreement"] > 0
    parts = [[m.part for m in read_record(tmp_path / f"saved/{n}_probabilities.nii.gz").members] for n in NAMES]
    assert parts == [["train", None], ["val", None]]  # the first by its patient; b's split is not known


def test_processes_and_names(predicted, decoded, tmp_path):
    bright_is_et(tmp_path / "a.ckpt")
    predicted(tmp_path / "a.ckpt")
    (tmp_path / "saved/nested").mkdir()
    file = f"{NAMES[0]}_probabilities.nii.gz"
    (tmp_path / "saved" / file).rename(tmp_path / "saved/nested/other_probabilities.nii.gz")
    leftover = tmp_path / "out/nested/.other.nii.gz.1.tmp"  # of a killed process
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    os.utime(leftover, (0, 0))
    decoded("processes=2", "names=layout", f"summary={tmp_path}/new/summary.json")
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.nii.gz")) == [
        f"{NAMES[1]}.nii.gz",
        "nested/other.nii.gz",
    ]
    assert not leftover.exists()
    assert list(json.loads((tmp_path / "new/summary.json").read_text())["cases"]) == NAMES
    decoded(to="ids")
    assert list(masks(tmp_path / "ids")) == [f"{name}.nii.gz" for name in NAMES]


def test_bad_files_are_in_one_report_and_the_others_decoded(predicted, decoded, tmp_path):
    bright_is_et(tmp_path / "a.ckpt")
    write_case(tmp_path / "in", "BraTS-MET-00003-000", seg=None)
    predicted(tmp_path / "a.ckpt")
    first, second = (tmp_path / f"saved/{name}_probabilities.nii.gz" for name in NAMES)
    first.write_bytes(b"mine")
    second.write_bytes(second.read_bytes()[:-40])
    with pytest.raises(CaseError, match="2 cases cannot be used") as error:
        decoded()
    assert {problem.case for problem in error.value.problems} == set(NAMES)
    assert {problem.file for problem in error.value.problems} == {str(first), str(second)}
    assert {problem.remedy for problem in error.value.problems} == {"predict this case again, or remove the file"}
    assert list(masks(tmp_path / "out")) == ["BraTS-MET-00003-000.nii.gz"]
    assert len(decoded("on_bad_case=skip")["problems"]) == 2
    first.unlink()
    second.unlink()
    (tmp_path / "saved/BraTS-MET-00003-000_probabilities.nii.gz").write_bytes(b"mine")
    with pytest.raises(CaseError, match="BraTS-MET-00003-000"):
        decoded("on_bad_case=skip")  # nothing is left


def test_what_labels_lack_is_left_out_and_said_once(predicted, decoded, tmp_path, caplog):
    bright_is_et(tmp_path / "a.ckpt")
    predicted(tmp_path / "a.ckpt", "postprocessing=hysteresis", "postprocessing.steps.hysteresis.regions=[wt,rc]")
    said = "postprocessing.steps.hysteresis leaves out rc, not among the labels netc, snfh, et"
    assert caplog.messages.count(said) == 1
    caplog.clear()
    decoded()
    assert caplog.messages.count(said) == 1
    for name, path in masks(tmp_path / "out").items():
        assert path.read_bytes() == (tmp_path / "saved" / name).read_bytes()
    with pytest.raises(PostprocessingError, match="regions has cavity"):
        decoded("postprocessing=hysteresis", "postprocessing.steps.hysteresis.regions=[cavity]")


def test_several_predictions_are_fused_case_by_case(predicted, decoded, tmp_path):
    for name, shift in (("a", 0.0), ("b", 2.0)):
        graded(tmp_path / f"{name}.ckpt", shift)
        predicted(tmp_path / f"{name}.ckpt", to=name)
    predicted(f"[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt]", to="both")
    folders = f"[{tmp_path}/a,{tmp_path}/b]"
    decoded(saved=folders)
    for name, path in masks(tmp_path / "out").items():
        found, ensemble = (np.asarray(nib.load(p).dataobj) for p in (path, tmp_path / "both" / name))
        assert np.count_nonzero(found != ensemble) <= 1  # the mean of rounded probabilities, and the rounded mean
    assert decoded(saved=folders)["existing"] == NAMES
    with pytest.raises(ForeignMasks, match="was made by another model"):
        decoded("fusion=weighted", "weights=[2,1]", saved=folders)
    decoded("fusion=weighted", "weights=[1,0]", saved=folders, to="first")
    for name, path in masks(tmp_path / "first").items():
        np.testing.assert_array_equal(nib.load(path).dataobj, nib.load(tmp_path / "a" / name).dataobj)
    with pytest.raises(FusionError, match="one for each of 2 predictions"):
        decoded("fusion=weighted", "weights=[1]", saved=folders)


def test_folders_that_do_not_fit_together(predicted, decoded, tmp_path):
    bright_is_et(tmp_path / "a.ckpt")
    bright_is_et(tmp_path / "rc.ckpt", labels=("netc", "snfh", "et", "rc"))
    predicted(tmp_path / "a.ckpt", to="a")
    predicted(tmp_path / "a.ckpt", to="b")
    folders = f"[{tmp_path}/a,{tmp_path}/b]"
    (tmp_path / f"b/{NAMES[0]}_probabilities.nii.gz").unlink()
    with pytest.raises(CaseError, match=rf"{NAMES[0]}.*missing in") as error:
        decoded(saved=folders)
    assert [problem.case for problem in error.value.problems] == NAMES[:1]
    write_case(tmp_path / "in", NAMES[0], affine=RAS, seg=None)
    predicted(tmp_path / "a.ckpt", "overwrite=true", to="b")
    with pytest.raises(CaseError, match="mm off"):
        decoded("overwrite=true", saved=folders)
    predicted(tmp_path / "rc.ckpt", to="rc")
    with pytest.raises(SavedError, match=r"different classes .*has netc, snfh, et; .*has netc, snfh, et, rc"):
        decoded(saved=f"[{tmp_path}/a,{tmp_path}/rc]")
    with pytest.raises(SavedError, match="is not a folder"):
        decoded(saved="nowhere")
    with pytest.raises(SavedError, match="holds no …_probabilities"):
        decoded(saved="in")


def test_saved_with_different_rules(predicted, decoded, tmp_path):
    path = bright_is_et(tmp_path / "a.ckpt")
    predicted(path, to="a")
    predicted(path, "postprocessing=hysteresis", to="b")
    with pytest.raises(PostprocessingError, match="saved with different rules; choose: postprocessing=none"):
        decoded(saved=f"[{tmp_path}/a,{tmp_path}/b]")
    assert len(decoded("postprocessing=none", saved=f"[{tmp_path}/a,{tmp_path}/b]")["cases"]) == 2


def test_recorded_rules_of_other_packages_must_be_trusted(predicted, decoded, tmp_path):
    path = bright_is_et(tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    content["config"]["postprocessing"] = as_config(Postprocessing({"own": MinVolume(1)}))
    content["config"]["postprocessing"]["steps"]["own"] = {"_target_": "tests.test_decode.Own", "mm3": 2}
    torch.save(content, path)
    predicted(path, "trust=[tests]")
    with pytest.raises(ValueError, match=r"'trust=\[tests\]'"):
        decoded()
    decoded("trust=[tests]")
    for name, mask in masks(tmp_path / "out").items():
        assert mask.read_bytes() == (tmp_path / "saved" / name).read_bytes()


class Own(MinVolume):
    """A step of a package that nobody trusts unasked."""
