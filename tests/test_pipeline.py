"""Train, predict, evaluate: three commands, one truth."""

import json

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.evaluate import evaluate
from brats_lightning.predict import predict
from brats_lightning.synthetic.phantom import phantom_cases
from brats_lightning.train import train
from tests.data.tiny_cases import save

SHORT = ["trainer.max_steps=30", "trainer.precision=32-true", "logger=none"]


@pytest.mark.parametrize(
    "settings",
    [[], ["data.preprocessing.spacing=[2,1.5,1.5]"], ["target=regions", "model.deep_supervision=1"]],
    ids=["native", "resampled", "regions"],
)
def test_scores_of_written_masks_are_those_of_the_run(composed, tmp_path, shared_outputs, settings):
    results = train(composed(*SHORT, *settings))
    name = json.loads((tmp_path / "run/split.json").read_text())["test"][0]
    root = next(path for path in (shared_outputs / "phantoms").iterdir() if (path / name).is_dir())
    check_written_masks(composed, tmp_path, results, root)


@pytest.mark.parametrize(
    "settings",
    [
        ["model=resunet", "model.deep_supervision=1"],
        ["target=regions", "model.deep_supervision=1", "loss=cc_dice_focal", "data.preprocessing.spacing=[2,1.5,1.5]"],
    ],
    ids=["classes", "regions, resampled"],
)
def test_partly_labelled_masks(composed, tmp_path, settings):
    """Of each case the upper half is unknown."""
    for case in phantom_cases(tmp_path / "phantoms", cases=10, shape=[40, 48, 32]):
        for name, file in case.files.items():
            volume = nib.load(file)
            values = np.asarray(volume.dataobj).copy()
            if name == "seg":
                values[:, :, 16:] = 9
            save(tmp_path / "raw" / case.id / file.name, values, volume.affine)
    data = ["data=brats_mets", f"data.root={tmp_path}/raw", "data.ignore_label=9", f"paths.cache_dir={tmp_path}/cache"]
    results = train(composed(*SHORT, *data, *settings))
    check_written_masks(composed, tmp_path, results, tmp_path / "raw", "data.ignore_label=9")
    for file in (tmp_path / "masks").iterdir():
        assert np.asarray(nib.load(file).dataobj).max() <= 3


def check_written_masks(composed, tmp_path, results, root, *labels):
    """Predict and score the test cases below ``root``: as the run itself scored them."""
    assert results["test/dice_wt"] > 0
    split_file = tmp_path / "run/split.json"
    split = json.loads(split_file.read_text())
    masks, scores = tmp_path / "masks", tmp_path / "scores"
    predict(
        composed(
            f"ckpt={tmp_path}/run/checkpoints/best.ckpt", f"input={root}", f"split={split_file}", f"output={masks}",
            "precision=32", name="predict",
        )
    )  # fmt: skip
    evaluate(
        composed(
            f"predictions={masks}", f"references={root}", f"split={split_file}", f"output={scores}",
            "protocol=brats2024", "processes=1", *labels, name="evaluate",
        )
    )  # fmt: skip

    summary = json.loads((scores / "summary.json").read_text())
    assert sorted(path.name for path in masks.iterdir()) == sorted(f"{case}.nii.gz" for case in split["test"])
    for region in ("et", "tc", "wt"):
        official = summary["scores"]["brats2024"][region]["LesionWise_Score_Dice"]["mean"]
        assert official == pytest.approx(results[f"test/brats2024/lesion_dice_{region}"], abs=1e-5)
        voxel = summary["voxel_scores"][region]["dice"]["mean"]
        assert voxel == pytest.approx(results[f"test/dice_{region}"], abs=1e-5)
    assert summary["voxel_scores"]["all"]["accuracy"]["mean"] == pytest.approx(results["test/accuracy"], abs=1e-5)
