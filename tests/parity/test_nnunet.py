"""Checkpoints of nnU-Net's own trainer give the same logits in our networks."""

import json
import os
import sys
import warnings

import numpy as np
import pytest
import torch

from brats_lightning.config.build import build_network
from brats_lightning.core.labels import MODALITIES
from tests.data.tiny_cases import save

pytest.importorskip("nnunetv2")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of nnU-Net

REGIONS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": [3]}
CLASSES = {"background": 0, "netc": 1, "snfh": 2, "et": 3}
NAMES = {"regions": ("wt", "tc", "et"), "classes": ("background", "netc", "snfh", "et")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train with a planner and labels for a few steps on five tiny cases; the folder of the model."""
    root = tmp_path_factory.mktemp("nnunet")
    for variable in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{variable}"] = str(root / variable)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
    made = {}

    def train(planner, target):
        if (planner, target) not in made:
            number = 500 + len(made)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[planner, target] = _train(root, number, planner, target)
        return made[planner, target]

    return train


def _train(root, number, planner, target):
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.run.run_training import get_trainer_from_args

    name, rng = f"Dataset{number}_Tiny", np.random.default_rng(number)
    for folder in ("imagesTr", "labelsTr"):
        (root / "raw" / name / folder).mkdir(parents=True)
    for case in range(5):
        mask = np.zeros((24, 32, 40), np.uint8)
        for label, side in ((2, 12), (1, 8), (3, 4)):
            mask[6 : 6 + side, 8 : 8 + side, 10 : 10 + side] = label
        for channel in range(4):
            image = (rng.normal(size=mask.shape) + channel * mask + 10).astype(np.float32)
            save(root / "raw" / name / f"imagesTr/case{case}_{channel:04d}.nii.gz", image)
        save(root / "raw" / name / f"labelsTr/case{case}.nii.gz", mask)
    labels = {"labels": REGIONS, "regions_class_order": [2, 1, 3]} if target == "regions" else {"labels": CLASSES}
    channels = {str(number): modality for number, modality in enumerate(MODALITIES)}
    content = {"channel_names": channels, "numTraining": 5, "file_ending": ".nii.gz", **labels}
    (root / "raw" / name / "dataset.json").write_text(json.dumps(content))
    api.extract_fingerprints([number], num_processes=1, show_progress_bar=False, verbose=False)
    plans = api.plan_experiments([number], experiment_planner_class_name=planner)
    api.preprocess([number], plans or "nnUNetPlans", configurations=("3d_fullres",), num_processes=(1,))
    trainer = get_trainer_from_args(str(number), "3d_fullres", 0, "nnUNetTrainer", plans, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 3, 1
    os.environ |= {"nnUNet_n_proc_DA": "0"}  # augmentation in this process; its planner wants a number above
    trainer.run_training()
    os.environ |= {"nnUNet_n_proc_DA": "1"}
    return root / "results" / name / f"nnUNetTrainer__{plans}__3d_fullres"


@pytest.mark.parametrize(
    ("planner", "target", "model"),
    [("nnUNetPlannerResEncM", "regions", "resenc"), ("ExperimentPlanner", "classes", "unet")],
)
def test_logits_of_a_trained_model(trained, composed, planner, target, model):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = trained(planner, target)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    theirs = predictor.network.eval()
    with pytest.raises(ValueError, match="they fit one with") as refused:
        build_network(composed(f"weights={folder}", f"target={target}", "model=attention_unet", plain=True))
    asked = str(refused.value).partition("they fit one with ")[2].replace("'", "").split()
    assert asked[0] == f"model={model}"
    cfg = composed(f"weights={folder}", f"target={target}", "data.modalities=[t2f,t1n,t1c,t2w]", *asked, plain=True)
    network, start = build_network(cfg)
    assert start == f"all {len(network.state_dict())} of {folder}"
    image = torch.randn(1, 4, 32, 32, 40)
    here = [list(MODALITIES).index(name) for name in cfg.data.modalities]
    with torch.inference_mode():
        expected, found = theirs(image), network.eval()(image[:, here])
    order = ["et", "tc", "wt"] if target == "regions" else NAMES["classes"]
    expected = expected[:, [NAMES[target].index(name) for name in order]]
    difference = (found - expected).abs().max().item()
    sys.stdout.write(f"{planner}: largest difference of logits {difference:.1e}, of {expected.abs().max():.1f}\n")
    assert difference < 1e-4
