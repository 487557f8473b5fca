import errno
import gzip
import json
import os
import re
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from brats_lightning.config.checkpoint import load_model
from brats_lightning.config.postprocessing import as_config, tuned_file
from brats_lightning.data.cases import CaseError
from brats_lightning.data.layouts.brats import find_inputs
from brats_lightning.data.probabilities import read_probabilities
from brats_lightning.data.splits import SplitError
from brats_lightning.inference.ensemble import CHECKPOINT_FORMAT, Ensemble
from brats_lightning.inference.postprocessing import MinVolume, Postprocessing
from brats_lightning.inference.prediction import infer
from brats_lightning.inference.provenance import ForeignMasks
from brats_lightning.inference.windows import SlidingWindow
from brats_lightning.predict import predict
from brats_lightning.runtime.files import UnwritableFile
from tests.data.tiny_cases import LPS, RAS, SHAPE, write_case
from tests.tiny_models import bright_is_et, voxelwise

ROTATED = np.array([[0, 0, 2.0, -3], [1.5, 0, 0, 5], [0, -0.5, 0, 7], [0, 0, 0, 1]])  # axes A, I, R
OBLIQUE = np.array([[-0.98, 0.1, 0, 4], [0.1, 0.98, 0.05, 5], [0, -0.05, 1.5, 6], [0, 0, 0, 1]])
MARKS = [(3, 4, 2), (8, 4, 2), (3, 11, 5), (8, 9, 7)]  # no symmetry maps them onto themselves

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(composed, tmp_path):
    """Predicts ``tmp_path/in`` into ``tmp_path/out`` in 32 bits on the CPU."""

    def make(*overrides, ckpt=None):
        ckpt = ckpt or tmp_path / "et.ckpt"
        common = [f"ckpt={ckpt}", f"input={tmp_path}/in", f"output={tmp_path}/out", "device=cpu", "precision=32"]
        return predict(composed(*common, *overrides, name="predict"))

    return make


def marked(shape=SHAPE, marks=MARKS):
    """A brain of 1 … 499 that fills a box, with a few voxels of 1000; and the mask of those."""
    image = np.zeros(shape, np.int16)
    inner = tuple(slice(1, n - 1) for n in shape)
    image[inner] = np.random.default_rng(0).integers(1, 500, image[inner].shape)
    truth = np.zeros(shape, np.uint8)
    for mark in marks:
        image[mark], truth[mark] = 1000, 3
    return image, truth


def min_volume(mm3):
    """Overrides that remove smaller components of ET."""
    step = "postprocessing.steps.min_volume"
    return "postprocessing=none", "postprocessing/step=[min_volume]", f"{step}.mm3={mm3}", f"{step}.regions=[et]"


def written(tmp_path, case="BraTS-MET-00001-000"):
    return nib.load(tmp_path / f"out/{case}.nii.gz")


def written_probabilities(tmp_path, case="BraTS-MET-00001-000"):
    """On the original grid, the classes last."""
    return read_probabilities(tmp_path / f"out/{case}_probabilities.nii.gz")[0].whole()


@pytest.mark.parametrize("affine", [LPS, RAS, ROTATED, OBLIQUE], ids=["LPS", "RAS", "rotated", "oblique"])
@pytest.mark.parametrize(
    "preprocessing",
    [{"fit": "none", "size": None}, {"fit": "crop_or_pad", "size": [20, 21, 23]}],
    ids=["brain", "padded"],
)
def test_every_voxel_comes_back_to_its_place(run, tmp_path, affine, preprocessing):
    image, truth = marked()
    write_case(tmp_path / "in", affine=affine, t1c=image, seg=None)
    bright_is_et(tmp_path / "et.ckpt", preprocessing={"spacing": None} | preprocessing)
    result = run()
    out = written(tmp_path)
    assert np.array_equal(np.asanyarray(out.dataobj), truth)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    et = result["cases"]["BraTS-MET-00001-000"]["regions"]["et"]
    confidence = et.pop("confidence")
    assert et == {"lesions": 4, "volume_ml": pytest.approx(4 * spacing.prod() / 1000, abs=1e-4)}
    assert [lesion["volume_mm3"] for lesion in confidence] == pytest.approx([spacing.prod()] * 4, abs=1e-3)


@pytest.mark.parametrize("other", ["t1c", "t2w"])
def test_an_image_in_another_order_of_voxels_changes_nothing(run, tmp_path, other):
    image, truth = marked()
    folder = write_case(tmp_path / "in", t1c=image, t2w=image, t1n=None, t2f=None, seg=None)
    path = folder / f"{folder.name}-{other}.nii.gz"
    turn = nib.orientations.ornt_transform(nib.io_orientation(LPS), nib.orientations.axcodes2ornt("SAR"))
    nib.load(path).as_reoriented(turn).to_filename(path)
    # T1c and T2w count alike: half the sum of what they are, where 1000 is the brightest.
    voxelwise(
        tmp_path / "et.ckpt", [[0.0, 0.0]] * 3 + [[20.0, 20.0]], [0.0, -50.0, -50.0, -30.0], modalities=["t1c", "t2w"]
    )
    run()
    out, first = written(tmp_path), nib.load(folder / f"{folder.name}-t1c.nii.gz")
    np.testing.assert_array_equal(out.affine, first.affine)
    back = out.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(out.affine), nib.io_orientation(LPS)))
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), truth)


def test_a_case_is_predicted_by_the_sequences_it_has(run, tmp_path):
    image, truth = marked()
    flat = np.where(image, 100, 0).astype(np.int16)
    # T1c alone is ET from half its range on; T2w adds as much, so that with it the whole brain is.
    bare = {"t1n": None, "t2f": None, "seg": None}
    write_case(tmp_path / "in", "with-001", t1c=image, t2w=image, **bare)
    write_case(tmp_path / "in", "without-001", t1c=image, t2w=None, **bare)
    write_case(tmp_path / "in", "neither-001", t1c=None, t2w=flat, **bare)
    network = [[0.0, 0.0]] * 3 + [[40.0, 40.0]]
    settings = {"modalities": ["t1c", "t2w"], "optional": ["t2w"]}
    voxelwise(tmp_path / "et.ckpt", network, [0.0, -50.0, -50.0, -30.0], **settings)
    with pytest.raises(CaseError, match=r"(?s)1 case cannot be used.*neither-001.*t1c.*missing"):
        run()
    values = image / image.max()
    assert np.array_equal(np.asanyarray(written(tmp_path, "without-001").dataobj), np.where(truth, 3, 0))
    both = np.asanyarray(written(tmp_path, "with-001").dataobj)
    clear = np.abs(2 * values - 0.75) > 0.02  # off the threshold
    assert np.array_equal(both[clear], np.where(2 * values > 0.75, 3, 0)[clear])
    assert (both > 0).sum() > 2 * (truth > 0).sum()


def test_an_output_of_nan_is_a_fault_and_no_empty_mask(run, tmp_path):
    image, truth = marked()
    bare = {"t1n": None, "t2f": None, "seg": None}
    write_case(tmp_path / "in", "A-001", t1c=image, t2w=image, **bare)
    write_case(tmp_path / "in", "B-001", t1c=image, t2w=None, **bare)
    large = 3e38  # of two such numbers the sum is infinite, and its softmax NaN
    settings = {"modalities": ["t1c", "t2w"], "optional": ["t2w"]}
    voxelwise(tmp_path / "et.ckpt", [[0.0, 0.0]] * 3 + [[large, large]], [2e38, 0.0, 0.0, 0.0], **settings)
    with pytest.raises(CaseError, match=r"(?s)1 case cannot be used.*A-001.*NaN from"):
        run("probabilities=true")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"B-001.nii.gz", "B-001_probabilities.nii.gz"}
    assert np.array_equal(np.asanyarray(written(tmp_path, "B-001").dataobj), truth)
    ensemble = Ensemble([load_model(tmp_path / "et.ckpt")])
    problems = infer(find_inputs(tmp_path / "in")[0], ensemble, 0.1)
    assert [(problem.case, problem.found) for problem in problems] == [
        ("A-001", f"NaN from the network of {tmp_path}/et.ckpt")
    ]


def test_a_sequence_that_one_member_needs_is_required(run, tmp_path):
    image, _ = marked()
    write_case(tmp_path / "in", t1c=image, t2w=None, seg=None)
    bright_is_et(tmp_path / "a.ckpt", channels=2, modalities=["t1c", "t2w"], optional=["t2w"])
    bright_is_et(tmp_path / "b.ckpt", channels=2, modalities=["t1c", "t2w"])
    run(ckpt=tmp_path / "a.ckpt")
    with pytest.raises(CaseError, match=r"(?s)t2w.*missing"):
        run("overwrite=true", ckpt=f"[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt]")


@pytest.mark.parametrize("affine", [LPS, RAS, ROTATED], ids=["LPS", "RAS", "rotated"])
def test_resampled_predictions_come_back_to_their_place(run, tmp_path, affine):
    # an L of three arms, each on its own side, in blocks of several voxels
    shape = (24, 26, 22)
    truth = np.zeros(shape, np.uint8)
    truth[3:9, 4:8, 3:19] = 3
    truth[3:21, 4:8, 3:7] = 3
    image = np.where(truth, 1000, 100).astype(np.int16)
    write_case(tmp_path / "in", affine=affine, t1c=image, t1n=image, t2w=image, t2f=image, seg=None)
    z, y, x = (float(nib.affines.voxel_sizes(affine)[i]) for i in ((1, 0, 2) if affine is ROTATED else (2, 1, 0)))
    spacing = [0.7 * z, 0.8 * y, 0.9 * x]
    bright_is_et(tmp_path / "et.ckpt", preprocessing={"spacing": spacing, "fit": "none", "size": None})
    run()
    out = np.asanyarray(written(tmp_path).dataobj)
    assert 2 * np.count_nonzero((out == 3) & (truth == 3)) / (np.count_nonzero(out) + np.count_nonzero(truth)) > 0.9
    centre = np.argwhere(out == 3).mean(0)
    np.testing.assert_allclose(centre, np.argwhere(truth == 3).mean(0), atol=0.25)


def test_what_a_cropping_model_does_not_see_is_background(run, tmp_path):
    image, truth = marked(marks=[(4, 5, 4), (8, 9, 6), (8, 4, 2)])
    write_case(tmp_path / "in", t1c=image, seg=None)
    size = [4, 6, 6]  # (z, y, x) about the middle
    bright_is_et(tmp_path / "et.ckpt", 0.75, preprocessing={"spacing": None, "fit": "crop_or_pad", "size": size})
    run("postprocessing=hysteresis", "probabilities=true")
    seen = np.zeros(SHAPE, bool)
    seen[3:9, 4:10, 3:7] = True
    assert np.count_nonzero(truth[seen]) == 2
    out = np.asanyarray(written(tmp_path).dataobj)
    assert np.array_equal(out, np.where(seen, truth, 0))
    background = written_probabilities(tmp_path)[..., 0]
    np.testing.assert_allclose(background[~seen], 1, atol=1e-6)


def test_what_one_member_does_not_see_is_background_to_it(run, tmp_path):
    image, _ = marked()
    write_case(tmp_path / "in", t1c=image, seg=None)
    small = {"spacing": None, "fit": "crop_or_pad", "size": [2, 2, 2]}
    bright_is_et(tmp_path / "a.ckpt")
    bright_is_et(tmp_path / "b.ckpt", preprocessing=small)
    run("probabilities=true", ckpt=f"[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt]")
    values = written_probabilities(tmp_path)
    np.testing.assert_allclose([values[mark] for mark in MARKS], [[0.5, 0, 0, 0.5]] * 4, atol=1e-4)
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-4)


def test_the_file_has_its_inputs_geometry_and_no_more_of_it(run, tmp_path):
    image, _ = marked()
    folder = write_case(tmp_path / "in", seg=None)
    source = nib.Nifti1Image(image, LPS)
    source.set_sform(LPS, code=4)
    source.set_qform(RAS, code=1)  # they need not agree
    source.header.set_xyzt_units("mm")
    source.header["cal_max"], source.header["descrip"] = 900, b"a patient's scan"
    source.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of a patient"))
    for name in ("t1n", "t1c", "t2w", "t2f"):
        source.to_filename(folder / f"{folder.name}-{name}.nii.gz")
    bright_is_et(tmp_path / "et.ckpt")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run()
    out = written(tmp_path)
    assert out.shape == SHAPE
    assert out.get_data_dtype() == np.uint8
    assert (out.dataobj.slope, out.dataobj.inter) == (1, 0)
    for form in ("get_sform", "get_qform"):
        (got, code), (expected, wanted) = (getattr(x, form)(coded=True) for x in (out, source))
        assert code == wanted
        np.testing.assert_array_equal(got, expected)
    assert out.header.get_zooms() == source.header.get_zooms()
    assert out.header["cal_max"] == 0
    assert out.header["descrip"].item().startswith(b"brats_lightning model=")
    assert not out.header.extensions
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["BraTS-MET-00001-000.nii.gz"]


def test_a_nifti_2_file_gives_one(run, tmp_path):
    folder = write_case(tmp_path / "in", seg=None)
    nib.Nifti2Image(marked()[0], LPS).to_filename(folder / f"{folder.name}-t1c.nii.gz")
    bright_is_et(tmp_path / "et.ckpt")
    run()
    assert isinstance(written(tmp_path), nib.Nifti2Image)


def test_scaled_input_gives_unscaled_labels(run, tmp_path):
    image, truth = marked()
    folder = write_case(tmp_path / "in", seg=None)
    scaled = nib.Nifti1Image(image, LPS)
    scaled.header.set_slope_inter(0.5, 0)
    scaled.to_filename(folder / f"{folder.name}-t1c.nii.gz")
    bright_is_et(tmp_path / "et.ckpt")
    run()
    assert np.array_equal(written(tmp_path).get_fdata(), truth)


def test_probabilities_are_on_the_original_grid_and_sum_to_1(run, tmp_path):
    image, truth = marked()
    write_case(tmp_path / "in", affine=RAS, t1c=image, seg=None)
    # logits 0, 0, 0, ln 3 at value 1: ET has 3 of 6; at value 0 each class a quarter
    voxelwise(tmp_path / "et.ckpt", [[0.0], [0.0], [0.0], [np.log(3.0)]], [0.0] * 4)
    run("probabilities=true")
    values = written_probabilities(tmp_path)
    assert values.shape == (*SHAPE, 4)
    np.testing.assert_allclose(values.sum(-1), 1, atol=4e-5)
    np.testing.assert_allclose(values[truth == 3], [[1 / 6, 1 / 6, 1 / 6, 1 / 2]] * len(MARKS), atol=1e-5)
    np.testing.assert_allclose(values[0] - [1, 0, 0, 0], 0, atol=1e-6)  # outside the brain's box
    darkest = np.unravel_index(np.where(image > 0, image, 9999).argmin(), SHAPE)
    np.testing.assert_allclose(values[darkest], [1 / 4] * 4, atol=1e-5)


def test_an_ensemble_averages_probabilities_not_logits(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    # softmax: (0.9, 0, 0, 0.1) and (0.4, 0, 0, 0.6); their mean 0.65 is background, that of the logits is 0.71
    for name, et in (("a", 0.1), ("b", 0.6)):
        bias = [float(np.log(1 - et)), -99.0, -99.0, float(np.log(et))]
        voxelwise(tmp_path / f"{name}.ckpt", [[0.0]] * 4, bias)
    run("probabilities=true", ckpt=f"[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt]")
    values = written_probabilities(tmp_path)[6, 6, 5]
    np.testing.assert_allclose(values, [0.65, 0, 0, 0.35], atol=1e-5)


def test_members_that_disagree_about_a_lesion(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    for name, et in (("a", 0.6), ("b", 0.8)):
        bias = [float(np.log(1 - et)), -99.0, -99.0, float(np.log(et))]
        voxelwise(tmp_path / f"{name}.ckpt", [[0.0]] * 4, bias)
    summary = run(ckpt=f"[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt]")
    (lesion,) = summary["cases"]["BraTS-MET-00001-000"]["regions"]["et"]["confidence"]
    assert lesion["mean"] == lesion["peak"] == pytest.approx(0.7)
    assert lesion["disagreement"] == pytest.approx(0.1)  # the standard deviation of 0.6 and 0.8
    summary = run("overwrite=true", ckpt=f"[{tmp_path}/a.ckpt,{tmp_path}/a.ckpt,{tmp_path}/a.ckpt]")
    (lesion,) = summary["cases"]["BraTS-MET-00001-000"]["regions"]["et"]["confidence"]
    assert lesion["disagreement"] == 0
    summary = run("overwrite=true", ckpt=f"{tmp_path}/a.ckpt")
    assert set(summary["cases"]["BraTS-MET-00001-000"]["regions"]["et"]["confidence"][0]) == {
        "volume_mm3",
        "peak",
        "mean",
    }


def test_an_ensembles_file_weighs_its_members(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    (tmp_path / "members").mkdir()
    for name, et in (("a", 0.6), ("b", 0.8)):
        bias = [float(np.log(1 - et)), -99.0, -99.0, float(np.log(et))]
        voxelwise(tmp_path / f"members/{name}.ckpt", [[0.0]] * 4, bias)
    listed = "members: [{ckpt: members/a.ckpt, weight: 3}, {ckpt: members/b.ckpt}]"
    (tmp_path / "ensemble.yaml").write_text(listed)
    summary = run(ckpt=tmp_path / "ensemble.yaml")
    (lesion,) = summary["cases"]["BraTS-MET-00001-000"]["regions"]["et"]["confidence"]
    assert lesion["mean"] == pytest.approx(0.65)  # (3 · 0.6 + 0.8) / 4
    assert lesion["disagreement"] == pytest.approx(0.0866, abs=1e-4)  # √((3 · 0.05² + 0.15²) / 4)
    # equal weights, however they are written, are the same models; others are not
    (tmp_path / "ensemble.yaml").write_text(listed.replace("b.ckpt}", "b.ckpt, weight: 3.0}"))
    run("overwrite=true", ckpt=tmp_path / "ensemble.yaml")
    assert run(ckpt=f"[{tmp_path}/members/b.ckpt,{tmp_path}/members/a.ckpt]")["existing"]
    (tmp_path / "ensemble.yaml").write_text(listed)
    with pytest.raises(ValueError, match="another model"):
        run(ckpt=tmp_path / "ensemble.yaml")


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("members:", ["lists no members; an ensemble is"]),
        ("- a.ckpt", ["lists no members"]),
        ("a: [", ["cannot be read"]),
        ("members: [{ckpt: a.ckpt}]\nweights: [2]\ndecode: regions", ["has weights, decode beside members"]),
        (
            "members: [{ckpt: no.ckpt}, a.ckpt, {ckpt: a.ckpt, weight: 0}, {ckpt: a.ckpt, wieght: 1}]",
            ["no checkpoint .*no.ckpt", "member 2 is 'a.ckpt'", "3, a.ckpt: weight must .* got 0", "4 is .*wieght"],
        ),
        (
            "members: [{ckpt: a.ckpt, regions: rc}, {ckpt: a.ckpt, regions: []}, {ckpt: a.ckpt, inference: {winow: 1}},"
            " {ckpt: a.ckpt, inference: {overlap: 1}}]",
            [
                "1, a.ckpt: regions must be a list .* got 'rc'",
                "2, a.ckpt: regions",
                "3, .* hold window, .*winow",
                "4, .*overlap must",
            ],
        ),
    ],
)
def test_a_file_that_is_no_ensemble(run, tmp_path, content, messages):
    write_case(tmp_path / "in", seg=None)
    bright_is_et(tmp_path / "a.ckpt")
    (tmp_path / "ensemble.yaml").write_text(content)
    with pytest.raises(ValueError, match="(?s)" + ".*".join(["ensemble.yaml", *messages])):
        run(ckpt=tmp_path / "ensemble.yaml")


def test_members_of_both_targets(run, tmp_path):
    write_case(tmp_path / "in", seg=None)

    def logits(*probabilities):
        return [float(np.log(p / (1 - p))) for p in probabilities]

    # one says ET 0.25, TC 0.5, WT 0.875; the other background 0.6, snfh 0.2, et 0.2
    voxelwise(tmp_path / "regions.ckpt", [[0.0]] * 3, logits(0.25, 0.5, 0.875), target="regions")
    voxelwise(tmp_path / "classes.ckpt", [[0.0]] * 4, [float(np.log(3)), -99.0, 0.0, 0.0])
    for first, second, label in (("regions", "classes", 2), ("classes", "regions", 0)):
        run("probabilities=true", "overwrite=true", ckpt=f"[{tmp_path}/{first}.ckpt,{tmp_path}/{second}.ckpt]")
        values = written_probabilities(tmp_path)[6, 6, 5]
        # background (0.125 + 0.6) / 2, netc (0.25 + 0) / 2, snfh (0.375 + 0.2) / 2, et (0.25 + 0.2) / 2
        np.testing.assert_allclose(values, [0.3625, 0.125, 0.2875, 0.225], atol=1e-5)
        # decoded as the first was trained: WT 0.6375 but TC 0.35; or the most probable class
        assert np.asanyarray(written(tmp_path).dataobj)[6, 6, 5] == label


def test_members_see_the_case_as_each_was_trained(run, tmp_path):
    image, truth = marked()
    other = np.where(truth, 1, image).astype(np.int16)  # dark where t1c is bright
    write_case(tmp_path / "in", t1c=image, t2f=other, seg=None)
    bright_is_et(tmp_path / "a.ckpt")
    # by the difference of two z-scores, in larger windows
    zscore = {"method": "zscore", "low": 0.5, "high": 99.5}
    bright_is_et(
        tmp_path / "b.ckpt", 4.0, modalities=["t1c-t2f"], normalisation=zscore, window=[12, 12, 12], mirror_axes=[1]
    )
    # on another grid, which smears single voxels away: its share of the marks stays below a half
    fine = {"spacing": [0.5, 0.5, 0.5], "fit": "none", "size": None}
    bright_is_et(tmp_path / "c.ckpt", preprocessing=fine)
    run("probabilities=true", ckpt=f"[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt]")
    assert np.array_equal(np.asanyarray(written(tmp_path).dataobj), truth)
    bright_is_et(tmp_path / "d.ckpt", modalities=["t2f"])
    run("overwrite=true", "probabilities=true", ckpt=f"[{tmp_path}/a.ckpt,{tmp_path}/d.ckpt]")
    values = written_probabilities(tmp_path)
    # certain for the one, and nothing for the other
    np.testing.assert_allclose([values[mark][3] for mark in MARKS], 0.5, atol=1e-3)
    run("probabilities=true", "overwrite=true", ckpt=f"[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt,{tmp_path}/c.ckpt]")
    assert np.array_equal(np.asanyarray(written(tmp_path).dataobj), truth)
    values = written_probabilities(tmp_path)
    np.testing.assert_allclose(values.sum(-1), 1, atol=4e-5)
    assert 0.6 < values[MARKS[0]][3] <= 1


def test_members_of_other_classes_are_refused(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    for name in "ac":
        bright_is_et(tmp_path / f"{name}.ckpt")
    for name in "bd":
        bright_is_et(tmp_path / f"{name}.ckpt", labels=("netc", "snfh", "et", "rc"))
    other = "has the classes netc, snfh, et, rc"
    with pytest.raises(ValueError, match=rf"b\.ckpt {other}; .*d\.ckpt {other}, .*a\.ckpt netc, snfh, et;") as error:
        run(ckpt=f"[{','.join(f'{tmp_path}/{name}.ckpt' for name in 'abcd')}]")
    assert "c.ckpt" not in str(error.value)


RC = ("netc", "snfh", "et", "rc")


def constant(path, *probabilities):
    """A checkpoint that says these probabilities of background, NETC, SNFH, ET and RC everywhere in the brain."""
    return voxelwise(path, [[0.0]] * 5, [float(np.log(max(p, 1e-30))) for p in probabilities], labels=RC)


def test_regions_come_from_the_members_that_are_there_for_them(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    constant(tmp_path / "a.ckpt", 0.2, 0.1, 0.2, 0.3, 0.2)
    constant(tmp_path / "b.ckpt", 0.6, 0.1, 0.1, 0.1, 0.1)
    constant(tmp_path / "some.ckpt", 0.6, 0, 0, 0, 0.4)
    constant(tmp_path / "much.ckpt", 0.3, 0, 0, 0, 0.7)

    def values(*members):
        listed = ", ".join(members)
        (tmp_path / "ensemble.yaml").write_text(f"members: [{listed}]")
        run("probabilities=true", "overwrite=true", ckpt=tmp_path / "ensemble.yaml")
        return written_probabilities(tmp_path)[6, 6, 5]

    two = "{ckpt: a.ckpt, weight: 3}", "{ckpt: b.ckpt}"
    # WT (3 · 0.6 + 0.3) / 4, TC (3 · 0.4 + 0.2) / 4, ET (3 · 0.3 + 0.1) / 4; RC is that of one member
    found = values(*two, "{ckpt: some.ckpt, regions: [rc], weight: 9}")
    np.testing.assert_allclose(found, [0.075, 0.1, 0.175, 0.25, 0.4], atol=2e-5)
    # WT 0.525 and RC 0.7 do not both fit, and become 3/7 and 4/7
    found = values(*two, "{ckpt: much.ckpt, regions: [rc]}")
    np.testing.assert_allclose(found, [0, 0.1, 3 / 7 - 0.35, 0.25, 4 / 7], atol=2e-5)
    # two members for one region are averaged, and one may have several
    roles = "{ckpt: some.ckpt, regions: [rc]}", "{ckpt: much.ckpt, weight: 2, regions: [rc]}"
    found = values("{ckpt: b.ckpt, regions: [wt, tc, et]}", *roles)
    np.testing.assert_allclose(found, [0.1, 0.1, 0.1, 0.1, 0.6], atol=2e-5)
    # all for all is a plain mean
    every = "regions: [et, tc, wt, rc]"
    found = values(f"{{ckpt: a.ckpt, {every}}}", f"{{ckpt: b.ckpt, {every}}}")
    np.testing.assert_allclose(found, [0.4, 0.1, 0.15, 0.2, 0.15], atol=2e-5)


def test_roles_are_told_apart_from_none(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    for name, rc in (("a", 0.2), ("b", 0.4)):
        constant(tmp_path / f"{name}.ckpt", 0.8 - rc, 0, 0, 0.2, rc)
    file = tmp_path / "ensemble.yaml"
    seen = set()
    for regions in ("", ", regions: [rc]", ", regions: [et, rc]"):
        file.write_text(f"members: [{{ckpt: a.ckpt}}, {{ckpt: b.ckpt{regions}}}]")
        run("overwrite=true", ckpt=file)
        seen.add(written(tmp_path).header["descrip"].item())
    assert len(seen) == 3
    file.write_text("members: [{ckpt: a.ckpt}, {ckpt: b.ckpt, regions: [rc, et]}]")
    assert run(ckpt=file)["existing"]


def test_regions_that_are_none_or_come_from_nobody(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    constant(tmp_path / "a.ckpt", 0.2, 0.2, 0.2, 0.2, 0.2)
    constant(tmp_path / "b.ckpt", 0.2, 0.2, 0.2, 0.2, 0.2)
    file = tmp_path / "ensemble.yaml"
    file.write_text("members: [{ckpt: a.ckpt, regions: [cr]}, {ckpt: b.ckpt, regions: [et, tc]}]")
    with pytest.raises(ValueError, match=r"(?s)a\.ckpt is for the regions cr; .* are et, tc, wt, rc.*for wt, rc: each"):
        run(ckpt=file)


def test_a_member_has_windows_of_its_own(run, tmp_path, monkeypatch):
    image, _ = marked()
    write_case(tmp_path / "in", t1c=image, seg=None)
    for name in "ab":
        bright_is_et(tmp_path / f"{name}.ckpt")
    file = tmp_path / "ensemble.yaml"
    used = []
    original = SlidingWindow.__call__
    monkeypatch.setattr(SlidingWindow, "__call__", lambda self, *args: used.append(self) or original(self, *args))
    file.write_text(
        "members: [{ckpt: a.ckpt}, {ckpt: b.ckpt, inference: {window: [5, 6, 7], overlap: 0, mirror_axes: null}}]"
    )
    run(ckpt=file)
    assert used == [SlidingWindow((8, 8, 8), 0.25), SlidingWindow((5, 6, 7), 0)]
    used.clear()  # what is asked for now replaces both
    with pytest.raises(ValueError, match="another model"):
        run("inference.overlap=0.5", ckpt=file)
    run("inference.overlap=0.5", "overwrite=true", ckpt=file)
    assert used == [SlidingWindow((8, 8, 8), 0.5), SlidingWindow((5, 6, 7), 0.5)]


def test_masks_that_are_older_than_their_images_are_kept_and_told(run, tmp_path, caplog):
    for case in ("BraTS-MET-00001-000", "BraTS-MET-00002-000"):
        write_case(tmp_path / "in", case, seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    run()
    run()
    assert "that are older than" not in caplog.text
    mask = tmp_path / "out/BraTS-MET-00002-000.nii.gz"
    os.utime(mask, ns=(0, 0))
    assert len(run()["existing"]) == 2
    assert (
        f"{tmp_path}/out: masks are kept that are older than what they were made from: {mask.name}; remove them, or "
        "set overwrite=true, to make them again"
    ) in caplog.messages


def test_an_interrupted_prediction_goes_on(run, tmp_path, monkeypatch):
    for case in ("BraTS-MET-00001-000", "BraTS-MET-00002-000"):
        write_case(tmp_path / "in", case, seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    run()
    first, second = sorted((tmp_path / "out").iterdir())
    second.unlink()
    leftovers = [tmp_path / f"out/.{second.name}.{n}.tmp" for n in (1, 2)]
    for file in leftovers:
        file.touch()
    os.utime(leftovers[0], (0, time.time() - 4000))  # of a killed process; the other one may be at work
    before = first.read_bytes(), first.stat().st_mtime_ns
    result = run()
    assert (result["existing"], list(result["cases"])) == (["BraTS-MET-00001-000"], ["BraTS-MET-00002-000"])
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert [file.exists() for file in leftovers] == [False, True]
    # probabilities that are asked for now are missing
    assert list(run("probabilities=true")["cases"]) == ["BraTS-MET-00001-000", "BraTS-MET-00002-000"]
    assert list(run("overwrite=true")["cases"]) == ["BraTS-MET-00001-000", "BraTS-MET-00002-000"]
    assert first.read_bytes() == before[0]  # not even the time of writing is in it
    monkeypatch.setattr("brats_lightning.inference.prediction._read", None)
    assert len(run("probabilities=true")["existing"]) == 2
    copy = tmp_path / "copied/again.ckpt"  # the same model under another name
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "et.ckpt").read_bytes())
    assert len(run(ckpt=copy)["existing"]) == 2


def test_files_of_another_origin_are_refused_before_anything_is_predicted(run, tmp_path):
    cases = [f"BraTS-MET-0000{n}-000" for n in range(1, 5)]
    for case in cases:
        write_case(tmp_path / "in", case, seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    bright_is_et(tmp_path / "other.ckpt", 0.75)  # the same network with other weights
    write_case(tmp_path / "one", cases[0], seg=None)
    write_case(tmp_path / "two", cases[1], seg=None)
    run(f"input={tmp_path}/one", ckpt=tmp_path / "other.ckpt")
    run(f"input={tmp_path}/two", "postprocessing=hysteresis")
    by_hand, damaged = (tmp_path / f"out/{case}.nii.gz" for case in cases[2:])
    write_case(tmp_path / "hand", cases[2], seg=None)
    by_hand.write_bytes((tmp_path / f"hand/{cases[2]}/{cases[2]}-t1c.nii.gz").read_bytes())
    damaged.write_bytes(b"mine")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ForeignMasks) as error:
        run()
    assert str(error.value) == (
        f"output: {tmp_path}/out holds files of another origin, which would be mixed with the new ones: "
        f"{cases[0]}.nii.gz was made by another model; {cases[1]}.nii.gz was made with other post-processing; "
        f"{cases[2]}.nii.gz was not written by predict, or by an earlier version; {cases[3]}.nii.gz cannot be read. "
        "Choose another output, move them elsewhere, or replace them with overwrite=true"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    # the job of an array looks at its own cases only
    assert run(f"input={tmp_path}/one", ckpt=tmp_path / "other.ckpt")["existing"] == cases[:1]
    assert list(run("overwrite=true")["cases"]) == cases
    assert run()["existing"] == cases


def test_what_tells_models_and_rules_apart(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    a, b = (bright_is_et(tmp_path / f"{name}.ckpt", threshold) for name, threshold in (("a", 0.5), ("b", 0.75)))

    def made_by(*overrides, ckpt):
        run("overwrite=true", *overrides, ckpt=ckpt)
        return written(tmp_path).header["descrip"].item().decode()

    alone = made_by(ckpt=a)
    assert re.fullmatch("brats_lightning model=[0-9a-f]{16} rules=[0-9a-f]{16}", alone)
    assert made_by("inference.batch_size=4", "device=auto", "precision=bf16", ckpt=a) == alone
    both = f"[{a},{b}]"
    assert made_by(ckpt=both) == made_by(ckpt=f"[{b},{a}]")
    others = [
        made_by(ckpt=b),
        made_by(ckpt=both),
        made_by("inference.mirror_axes=[2]", ckpt=a),
        made_by(*min_volume(3), ckpt=a),
        made_by(*min_volume(4), ckpt=a),
    ]
    assert len({alone, *others}) == 6


def test_a_broken_write_leaves_nothing(run, tmp_path, monkeypatch):
    write_case(tmp_path / "in", seg=None)
    write_case(tmp_path / "in", "BraTS-MET-00002-000", seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    original = Path.write_bytes

    def full(self, data):
        original(self, data[:10])
        if "00002-000" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UnwritableFile, match=r"cannot write .*out/BraTS-MET-00002-000.nii.gz: No space left"):
            run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["BraTS-MET-00001-000.nii.gz"]
    assert list(run()["cases"]) == ["BraTS-MET-00002-000"]


def test_bad_cases_are_reported_at_the_end_and_the_good_ones_predicted(run, tmp_path):
    good, cut, less = (f"BraTS-MET-0000{n}-000" for n in (1, 2, 3))
    write_case(tmp_path / "in", less, t1c=None, seg=None)
    folder = write_case(tmp_path / "in", cut, seg=None)
    (folder / f"{cut}-t1c.nii.gz").write_bytes((folder / f"{cut}-t1c.nii.gz").read_bytes()[:100])
    write_case(tmp_path / "in", good, t2w=None, seg=None)  # a modality the model does not use
    bright_is_et(tmp_path / "et.ckpt")
    with pytest.raises(CaseError) as error:
        run()
    assert {problem.case for problem in error.value.problems} == {cut, less}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{good}.nii.gz"}
    result = run("on_bad_case=skip", "overwrite=true", f"summary={tmp_path}/new/summary.json")
    assert list(result["cases"]) == [good]
    assert {problem["case"] for problem in result["problems"]} == {cut, less}
    assert json.loads((tmp_path / "new/summary.json").read_text()) == result


def test_inputs_are_folders_nested_or_single_or_several(composed, run, tmp_path):
    a = write_case(tmp_path / "in/UCSD - Training", "BraTS-MET-00001-000", seg=None)
    b = write_case(tmp_path / "in", "BraTS-MET-00002-000")  # a mask does no harm
    bright_is_et(tmp_path / "et.ckpt")
    assert len(run()["cases"]) == 2
    find = find_inputs
    assert [case.id for case in find(str(b))] == ["BraTS-MET-00002-000"]
    assert [case.id for case in find([str(b), str(a)])] == ["BraTS-MET-00001-000", "BraTS-MET-00002-000"]
    with pytest.raises(ValueError, match=r"in two of the folders: BraTS-MET-00002-000 in .*-000 and in .*/in; leave"):
        find([str(b), str(tmp_path / "in")])
    for nothing in (tmp_path / "nowhere", tmp_path):
        (tmp_path / "in").rename(tmp_path / ".in") if nothing == tmp_path else None
        with pytest.raises((FileNotFoundError, ValueError), match=r"input=.* is not a folder|no case in input="):
            find(str(nothing))


def test_only_cases_of_a_split_are_predicted(run, tmp_path):
    for number in (1, 2, 3):
        write_case(tmp_path / "in", f"BraTS-MET-0000{number}-000", seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    split = tmp_path / "split.json"
    lists = {"train": ["BraTS-MET-00001-000"], "test": ["BraTS-MET-00003-000"]}
    split.write_text(json.dumps(lists))
    assert list(run(f"split={split}")["cases"]) == ["BraTS-MET-00003-000"]
    assert list(run(f"split={split}", "part=train")["cases"]) == ["BraTS-MET-00001-000"]
    split.write_text(json.dumps(lists | {"test": ["BraTS-MET-00004-000"]}))
    with pytest.raises(SplitError, match="that are not in input: BraTS-MET-00004-000"):
        run(f"split={split}")


def test_window_overlap_and_mirroring_can_be_changed(run, tmp_path, monkeypatch):
    image, truth = marked()
    write_case(tmp_path / "in", t1c=image, seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    used = []
    original = SlidingWindow.__call__
    monkeypatch.setattr(SlidingWindow, "__call__", lambda self, *args: used.append(self) or original(self, *args))
    run("inference.window=[5,6,7]", "inference.overlap=0", "inference.mirror_axes=[0,2]", "inference.batch_size=3")
    assert used == [SlidingWindow((5, 6, 7), 0, 3, (0, 2))]
    assert np.array_equal(np.asanyarray(written(tmp_path).dataobj), truth)


def test_an_ensemble_takes_the_rules_its_members_share(run, tmp_path):
    image, truth = marked(marks=[(3, 4, 2), (8, 9, 7), (8, 10, 7)])
    write_case(tmp_path / "in", t1c=image, seg=None)
    for name in "ab":
        bright_is_et(tmp_path / f"{name}.ckpt")
        content = {"chosen": as_config(Postprocessing({"min_volume": MinVolume(2)}))}
        tuned_file(tmp_path / f"{name}.ckpt").write_text(json.dumps(content))
    run("postprocessing=tuned", ckpt=f"[{tmp_path}/a.ckpt,{tmp_path}/b.ckpt]")
    truth[3, 4, 2] = 0
    assert np.array_equal(np.asanyarray(written(tmp_path).dataobj), truth)


def test_rules_are_the_runs_own_unless_chosen(run, tmp_path):
    image, truth = marked(marks=[(3, 4, 2), (8, 9, 7), (8, 10, 7)])
    write_case(tmp_path / "in", t1c=image, seg=None)
    path = bright_is_et(tmp_path / "et.ckpt")
    other = bright_is_et(tmp_path / "other.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["postprocessing"] = as_config(Postprocessing({"min_volume": MinVolume(2)}))
    torch.save(checkpoint, path)
    run("postprocessing=none")
    assert np.array_equal(np.asanyarray(written(tmp_path).dataobj), truth)
    run("overwrite=true")
    truth[3, 4, 2] = 0
    assert np.array_equal(np.asanyarray(written(tmp_path).dataobj), truth)
    with pytest.raises(
        ValueError, match=r"(?s)trained with different rules; choose: postprocessing=none.*et.ckpt: .*=2"
    ):
        run("overwrite=true", ckpt=f"[{path},{other}]")


def test_a_package_of_the_users_must_be_trusted(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    path = bright_is_et(tmp_path / "et.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["model"]["_target_"] = "tests.tiny_models.Ours"
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"'trust=\[tests\]'"):
        run()
    assert len(run("trust=[tests]")["cases"]) == 1


def test_postprocessing_is_applied_in_mm_of_the_input(run, tmp_path):
    image, truth = marked(marks=[(3, 4, 2), (8, 9, 7), (8, 10, 7)])
    write_case(tmp_path / "in", affine=ROTATED, t1c=image, seg=None)  # voxels of 1.5 mm³
    bright_is_et(tmp_path / "et.ckpt")
    run(*min_volume(2.9))
    truth[3, 4, 2] = 0
    assert np.array_equal(np.asanyarray(written(tmp_path).dataobj), truth)


def test_intensities_above_32767(run, tmp_path):
    image, truth = marked()
    write_case(tmp_path / "in", t1c=np.where(truth, 65000, image * 60).astype(np.uint16), seg=None)
    bright_is_et(tmp_path / "et.ckpt", 0.75, mirror_axes=[2])
    run()
    assert np.array_equal(np.asanyarray(written(tmp_path).dataobj), truth)


def test_a_case_of_float_intensities(run, tmp_path):
    image, truth = marked()
    write_case(tmp_path / "in", t1c=image.astype(np.float32) / 7, seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    run("precision=bf16")
    assert np.array_equal(np.asanyarray(written(tmp_path).dataobj), truth)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("device=tpu", "device must be auto, cpu, cuda, mps .*, got 'tpu'"),
        ("precision=8", "precision must be auto, bf16, 16, 32"),
        ("on_bad_case=ignore", "on_bad_case must be error or skip"),
        ("inference.overlap=1", r"inference\.overlap"),
    ],
)
def test_wrong_words(run, tmp_path, override, message):
    write_case(tmp_path / "in", seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    with pytest.raises(ValueError, match=message):
        run(override)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    with pytest.raises(ValueError, match="no GPU for it; device=cpu"):
        run("device=cuda")


def test_precision_auto_asks_the_processor(monkeypatch):
    from brats_lightning.runtime import device

    for answer, dtype in (("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16), ("32-true", None)):
        monkeypatch.setattr(device, "fastest_precision", lambda accelerator, answer=answer: answer)
        assert device.autocast_dtype("auto", torch.device("cpu")) is dtype
    assert device.autocast_dtype(32, torch.device("cpu")) is None


def test_predicted_as_validated(composed, tmp_path):
    """A prediction equals what a validation step of the same network makes of the same case."""
    from brats_lightning.config.build import build_data, build_segmentation
    from brats_lightning.config.checkpoint import load_model
    from brats_lightning.data.batches import WholeCases

    cfg = composed("trainer.precision=32-true")
    data = build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    module = build_segmentation(cfg, data).eval()
    path = tmp_path / "net.ckpt"
    config = dict(module.config)
    weights = {f"network.{k}": v for k, v in module.network.state_dict().items()}
    torch.save({"state_dict": weights, "config": config, "format": CHECKPOINT_FORMAT}, path)

    case = data.scored_cases("val")[0]
    volume = data.on_after_batch_transfer(WholeCases([case], data.normaliser)[0], 0)
    with torch.no_grad():
        logits = module.inference(module.network, volume.image, background=module.target.background)
        expected = module.target.probabilities(logits)
    found = infer(next(c for c in data.source() if c.id == case.id), Ensemble([load_model(path)]), 0.1)
    assert found.transform == case.transform
    np.testing.assert_allclose(found.values, expected.numpy(), atol=2e-5)  # and rounded


def test_the_content_tells_what_is_compressed(run, tmp_path):
    image, truth = marked()
    names = [f"BraTS-MET-0000{n}-000" for n in (1, 2)]
    for name in names:
        write_case(tmp_path / "in", name, t1c=image, seg=None)
    for file in (tmp_path / "in" / names[0]).iterdir():  # unpacked by a browser, say
        file.write_bytes(gzip.decompress(file.read_bytes()))
    bright_is_et(tmp_path / "et.ckpt")
    assert list(run("probabilities=true")["cases"]) == names
    for name in names:
        assert np.array_equal(np.asanyarray(written(tmp_path, name).dataobj), truth)


def test_a_header_that_cannot_be_used_is_a_bad_case_among_good_ones(run, tmp_path):
    names = [f"BraTS-MET-0000{n}-000" for n in (1, 2, 3)]
    for name in names:
        write_case(tmp_path / "in", name, seg=None)
    file = tmp_path / f"in/{names[1]}/{names[1]}-t1c.nii.gz"
    data = bytearray(gzip.decompress(file.read_bytes()))
    data[112:120] = np.array([1, np.nan], "<f4").tobytes()  # scl_slope, scl_inter
    file.write_bytes(gzip.compress(data))
    bright_is_et(tmp_path / "et.ckpt")
    with pytest.raises(CaseError, match="scl_inter nan"):
        run()
    assert sorted(path.name[:19] for path in (tmp_path / "out").iterdir()) == [names[0], names[2]]


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_a_mask_has_the_array_shape_of_its_input(run, tmp_path, more):
    image, truth = marked()
    write_case(tmp_path / "in", seg=None, **{m: image.reshape(*SHAPE, *more) for m in ("t1n", "t1c", "t2w", "t2f")})
    bright_is_et(tmp_path / "et.ckpt")
    run("probabilities=true")
    out = written(tmp_path)
    assert out.shape == (*SHAPE, *more)
    assert np.array_equal(np.asanyarray(out.dataobj).reshape(SHAPE), truth)
    assert written_probabilities(tmp_path).shape == (*SHAPE, 4)


def test_an_unusual_background_is_told(run, tmp_path, caplog):
    odd = np.full(SHAPE, -1, np.float32)
    odd[2:-2, 2:-2, 2:-2] = 5
    write_case(tmp_path / "in", t1c=odd, seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    run()
    assert "BraTS-MET-00001-000: t1c: all corners are -1, not 0 as outside the brain" in caplog.text


def test_an_output_that_cannot_be_made(run, tmp_path):
    write_case(tmp_path / "in", seg=None)
    bright_is_et(tmp_path / "et.ckpt")
    (tmp_path / "out").touch()
    with pytest.raises(UnwritableFile, match=r"cannot write .*out: File exists; .*choose another folder"):
        run()
