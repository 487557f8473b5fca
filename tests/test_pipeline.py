"""Train, predict, evaluate: three commands, one truth."""

import json

import pytest

from brats_lightning.evaluate import evaluate
from brats_lightning.predict import predict
from brats_lightning.train import train


@pytest.mark.parametrize(
    "settings",
    [[], ["data.preprocessing.spacing=[2,1.5,1.5]"], ["target=regions", "model.deep_supervision=1"]],
    ids=["native", "resampled", "regions"],
)
def test_scores_of_written_masks_are_those_of_the_run(composed, tmp_path, shared_outputs, settings):
    cfg = composed("trainer.max_steps=30", "trainer.precision=32-true", "logger=none", *settings)
    results = train(cfg)
    assert results["test/dice_wt"] > 0

    split_file = tmp_path / "run/split.json"
    split = json.loads(split_file.read_text())
    root = next(path for path in (shared_outputs / "phantoms").iterdir() if (path / split["test"][0]).is_dir())
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
            "protocol=brats2024", "processes=1", name="evaluate",
        )
    )  # fmt: skip

    summary = json.loads((scores / "summary.json").read_text())
    assert sorted(path.name for path in masks.iterdir()) == sorted(f"{case}.nii.gz" for case in split["test"])
    for region in ("et", "tc", "wt"):
        official = summary["scores"]["brats2024"][region]["LesionWise_Score_Dice"]["mean"]
        assert official == pytest.approx(results[f"test/brats2024/lesion_dice_{region}"], abs=1e-5)
        voxel = summary["voxel_scores"][region]["dice"]["mean"]
        assert voxel == pytest.approx(results[f"test/dice_{region}"], abs=1e-5)
