"""The program from Python: the same masks, probabilities and scores as its commands."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import brats_lightning
from brats_lightning.api import evaluate, show
from brats_lightning.data.cases import CaseError
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.nifti import UnreadableFile
from brats_lightning.data.probabilities import read_probabilities
from brats_lightning.predict import predict
from brats_lightning.train import train

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder and a case that it can predict."""
    from hydra import compose, initialize_config_dir

    from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
    from tests.conftest import TINY

    out = tmp_path_factory.mktemp("api")
    register_resolvers()
    overrides = [*TINY, "trainer=cpu", "seed=0", "trainer.max_steps=8", "logger=none", "postprocessing=hysteresis"]
    overrides += ["name=api", "postprocessing.steps.hysteresis.low=0.2", "postprocessing.steps.hysteresis.high=0.3"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = resolved(compose("train", [*overrides, f"paths.outputs={out}", f"paths.run_dir={out}/run"]))
    train(cfg)
    names = json.loads((out / "run/split.json").read_text())["test"]
    return out / "run", next(case for case in find_cases(cfg.data.root) if case.id in names)


@pytest.fixture(scope="module")
def model(run):
    return brats_lightning.load(run[0] / "checkpoints/best.ckpt", device="cpu", precision=32)


def test_masks_and_probabilities_are_those_of_the_command(run, model, composed, tmp_path):
    folder, case = run
    settings = [f"ckpt={folder}/checkpoints/best.ckpt", f"input={case.images['t1c'].parent}", f"output={tmp_path}/o"]
    predict(composed(*settings, "probabilities=true", "device=cpu", "precision=32", name="predict"))
    mask, image = model.predict(**case.images), nib.load(case.images["t1n"])
    written = nib.load(tmp_path / f"o/{case.id}.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(written.dataobj))
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert mask.get_data_dtype() == np.uint8
    found = model.probabilities(**case.images)
    written, _ = read_probabilities(tmp_path / f"o/{case.id}_probabilities.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), written.whole())
    np.testing.assert_allclose(found.get_fdata().sum(-1), 1, atol=4e-5)  # each is rounded


def test_paths_images_and_arrays_are_the_same(run, model):
    _, case = run
    images = {name: nib.load(path) for name, path in case.images.items()}
    expected = np.asarray(model.predict(**case.images).dataobj)
    np.testing.assert_array_equal(np.asarray(model.predict(**images).dataobj), expected)
    arrays = {name: np.asarray(image.dataobj) for name, image in images.items()}
    affine = images["t1c"].affine
    np.testing.assert_array_equal(np.asarray(model.predict(affine=affine, **arrays).dataobj), expected)
    mixed = {**images, "t1c": str(case.images["t1c"])}
    np.testing.assert_array_equal(np.asarray(model.predict(**mixed).dataobj), expected)
    again = brats_lightning.load([run[0] / "checkpoints/best.ckpt"] * 2, device="cpu", precision=32)
    np.testing.assert_allclose(
        again.probabilities(**case.images).get_fdata(), model.probabilities(**case.images).get_fdata(), atol=1e-6
    )


def test_what_a_model_takes_and_gives(model):
    assert model.sequences == ("t1n", "t1c", "t2w", "t2f")
    assert model.optional == ()
    assert model.labels == {0: "background", 1: "netc", 2: "snfh", 3: "et"}


def test_wrong_images_are_named(run, model):
    _, case = run
    images = dict(case.images)
    with pytest.raises(TypeError, match="no sequence of this model: flair; it takes t1n, t1c, t2w, t2f"):
        model.predict(flair=images["t2f"])
    with pytest.raises(CaseError, match="t2w"):
        model.predict(**{name: path for name, path in images.items() if name != "t2w"})
    with pytest.raises(TypeError, match="t1n is an array: give its affine, too"):
        model.predict(**images | {"t1n": np.zeros((3, 3, 3))})
    with pytest.raises(TypeError, match="t1n must be a path, a nibabel image or an array, got int"):
        model.predict(**images | {"t1n": 3})
    with pytest.raises(CaseError, match="t1n"):
        model.predict(affine=AFFINE, **images | {"t1n": np.ones((3, 3, 3))})  # elsewhere than the others


def masks():
    reference, prediction = np.zeros((2, 12, 12, 8), np.uint8)
    reference[2:6, 2:6, 2:4], prediction[2:6, 2:6, 3:5] = 3, 3
    return prediction, reference


def test_scores_have_the_names_and_values_of_a_run():
    prediction, reference = masks()
    scores = evaluate(prediction, reference, affine=AFFINE, protocols=["brats2024", "brats2026"])
    assert scores["dice_et"] == scores["dice_wt"] == pytest.approx(0.5)  # 16 of 32 voxels each
    assert scores["iou_et"] == pytest.approx(1 / 3)
    assert scores["brats2024/lesion_dice_et"] == pytest.approx(0.5)
    assert "brats2026/lesion_dsc_mean" in scores
    mapped = evaluate(prediction, np.where(reference == 3, 4, 0), affine=AFFINE, label_map={4: 3}, protocols=[])
    assert mapped["dice_et"] == pytest.approx(0.5)
    assert evaluate(nib.Nifti1Image(reference, AFFINE), reference, affine=AFFINE)["dice_mean"] == 1


def test_masks_that_cannot_be_compared():
    prediction, reference = masks()
    with pytest.raises(ValueError, match=r"the prediction: .*shape"):
        evaluate(prediction[:-1], reference, affine=AFFINE)
    with pytest.raises(UnreadableFile, match="label 7"):
        evaluate(prediction, reference + 7, affine=AFFINE)


def test_pictures_of_a_mask_and_of_its_errors():
    prediction, reference = masks()
    image = np.random.default_rng(0).normal(100, 10, prediction.shape).astype(np.float32)
    alone, compared = (show(image, prediction, other, affine=AFFINE) for other in (None, reference))
    assert alone.size[1] == compared.size[1]
    assert alone.size[0] == pytest.approx(2 / 3 * compared.size[0], abs=2)
    assert np.asarray(compared).std() > 0
    with pytest.raises(ValueError, match="the mask: "):
        show(image[1:], prediction, affine=AFFINE)


def test_the_package_is_imported_without_torch():
    code = "import sys, brats_lightning; print([name for name in ('torch', 'nibabel', 'hydra') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_callers_image_stays_what_it_was(run, model):
    _, case = run
    image = nib.load(case.images["t1c"])
    model.predict(**case.images | {"t1c": image})
    assert image.get_filename() == str(case.images["t1c"])
