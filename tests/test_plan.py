"""A plan: what it proposes, that `train` takes it, and that its prediction is near what a training takes."""

import json
import re

import numpy as np
import pytest
from omegaconf import OmegaConf

from brats_lightning.config.measure import measured_steps
from brats_lightning.config.planning import Machine, PlanError, Planner, predict
from brats_lightning.config.values import nested
from brats_lightning.data.cases import CaseError
from brats_lightning.plan import plan
from brats_lightning.train import train
from tests.data.tiny_cases import write_case

SMALL = ["experiment=cpu_small", "seconds=1000", "data=phantom_tiny", "data.cache_workers=1", "name=mine"]


def scans(count, shape, spacing=(1.0, 1.0, 1.0)):
    """The spacings and the shapes of that many equal scans."""
    return np.array([spacing] * count), np.array([shape] * count)


@pytest.fixture
def planned(composed, tmp_path, shared_outputs):
    """A plan for tiny phantoms and 2 GB, and its folder."""

    def make(*overrides):
        given = [*SMALL, f"paths.phantom_dir={shared_outputs}/phantoms", "memory=2GB", *overrides]
        return plan(composed(*given, name="plan")), tmp_path / "run"

    return make


def test_train_takes_the_plan(planned, composed):
    report, folder = planned("model=unet", "data.modalities=[t1c,t2f]", "seed=3")
    settings = report["plan"]["settings"]
    assert json.loads((folder / "report.json").read_text())["plan"]["settings"] == settings
    assert "Proposal" in (folder / "report.html").read_text()
    assert report["plan"]["command"].endswith(f"--config-dir {folder} experiment=mine")

    text = (folder / "experiment/mine.yaml").read_text()
    assert text.startswith("# @package _global_\n# Proposed by brats_lightning.plan for synthetic phantoms")
    assert "  - cpu_small\n  - override /data: phantom_tiny\n  - override /model: unet\n  - _self_\n" in text
    assert "memory: 2GB" not in text
    cfg = composed("experiment=mine", f"hydra.searchpath=[file://{folder}]", "trainer.max_steps=2", "test_on=null",
                   "trainer.val_check_interval=2", "logger=none", plain=True)  # fmt: skip
    assert list(cfg.data.modalities) == ["t1c", "t2f"]
    assert (cfg.name, cfg.seed) == ("mine", 0)  # what is given to train comes last
    for key, value in settings.items():
        found = OmegaConf.select(cfg, key)
        assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == value, key
    train(cfg)


def test_the_patch_fits_the_scans_and_the_network_the_patch(planned):
    report, _ = planned()
    settings, predicted = report["plan"]["settings"], report["plan"]["predicted"]
    shape = report["fingerprint"]["shape"]["median"]
    assert all(n <= patch < n + 32 for n, patch in zip(shape, settings["sampling.size"], strict=True))
    assert settings["inference.window"] == settings["sampling.size"]
    assert settings["data.batch_size"] >= 2
    assert "data.preprocessing.spacing" not in settings  # all have 1 mm
    levels = len(settings["model.widths"])
    assert settings["model.widths"] == [16 * 2**level for level in range(levels)]
    assert settings["model.deep_supervision"] == min(2, levels - 2)
    assert predicted["memory"] < 0.9 * 2e9
    assert predicted["seconds"] > 0


def test_less_memory_or_time_makes_a_smaller_patch(composed, tmp_path, shared_outputs):
    given = [*SMALL, f"paths.phantom_dir={shared_outputs}/phantoms", "trainer.precision=32-true"]
    cfg = composed(*given, name="plan")

    def voxels(memory, seconds=None):
        planner = Planner(cfg, Machine("cpu", memory, seconds is not None, 10**8), seconds)
        planner._pace.update({16: 1e-9, 8: 1e-9})  # a GFLOP in a second
        settings, predicted = planner.propose(*scans(40, (96, 128, 112)))
        assert predicted.memory <= 0.9 * memory
        return np.prod(settings["sampling.size"])

    assert voxels(4 * 10**9) > voxels(10**9) > voxels(4 * 10**8)
    assert voxels(4 * 10**9) > voxels(4 * 10**9, seconds=20)
    with pytest.raises(PlanError, match=r"memory=0\.11GB is too little"):
        voxels(11 * 10**7)


def test_mixed_spacings_are_resampled_to_the_median(composed, tmp_path):
    cfg = composed(*SMALL, "data=brats_mets", "data.root=x", name="plan")
    planner = Planner(cfg, Machine("cpu", 2 * 10**9, False, 10**8), None)
    spacings = np.array([(1.0, 0.9, 0.9), (1.5, 0.86, 0.86), (1.0, 0.5, 0.5)] * 10)
    shapes = np.array([(60, 70, 70), (40, 72, 72), (60, 128, 128)] * 10)
    settings, _ = planner.propose(spacings, shapes)
    assert settings["data.preprocessing.spacing"] == [1.0, 0.85, 0.85]
    chosen = composed(*SMALL, "data=brats_mets", "data.root=x", "data.preprocessing.spacing=[2,2,2]", name="plan")
    settings, _ = Planner(chosen, planner.machine, None).propose(spacings, shapes)
    assert "data.preprocessing.spacing" not in settings


def test_a_gpu_elsewhere_is_planned_for_by_its_memory(composed):
    cfg = composed("experiment=mets", "memory=24GB", name="plan")
    machine = Machine.of(cfg.trainer.accelerator, cfg.memory)
    assert (machine.kind, machine.memory, machine.here) == ("cuda", 24 * 10**9, False)
    planner = Planner(cfg, machine, None)
    assert planner.precision == "bf16-mixed"
    settings, predicted = planner.propose(*scans(1296, (142, 215, 206), (1.0, 0.9, 0.86)))
    assert predicted.seconds is None
    assert 0.5 * 24e9 < predicted.memory <= 0.9 * 24e9
    assert settings["model.widths"][:2] == [32, 64]
    assert np.prod(settings["sampling.size"]) > 128**3


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_a_gpu_that_is_not_here_and_whose_memory_is_unknown():
    with pytest.raises(PlanError, match=r"give the memory of the one you have, e\.g\. memory=24GB"):
        Machine.of("gpu", None)
    assert Machine.of("auto", None).kind == "cpu"
    assert 0 < Machine.of("cpu", None).resting < Machine.of("cpu", None).memory


def test_a_network_from_elsewhere_gets_a_patch_only(composed):
    pytest.importorskip("monai")
    cfg = composed("experiment=quick", "trainer=cpu", "model=monai_segresnet", name="plan")
    planner = Planner(cfg, Machine("cpu", 10**9, False, 10**8), None)
    settings, predicted = planner.propose(*scans(20, (64, 64, 64)))
    assert not [key for key in settings if key.startswith("model.")]
    assert predicted.footprint.parameters > 10**6


def test_lists_by_level_are_cut_to_the_depth(composed):
    cfg = composed(*SMALL, "model/size=large", name="plan")
    planner = Planner(cfg, Machine("cpu", 4 * 10**8, False, 10**8), None)
    settings, _ = planner.propose(*scans(20, (40, 48, 32)))
    assert settings["model.blocks"] == [1, 3, 4, 6, 6, 6][: len(settings["model.widths"])]


def test_what_cannot_be_planned_for(composed, tmp_path):
    with pytest.raises(PlanError, match="set sampling=lesion or uniform"):
        plan(composed(*SMALL, "sampling=slices", name="plan"))
    with pytest.raises(PlanError, match="name becomes the name of an experiment"):
        plan(composed(*SMALL, "name='a b'", name="plan"))
    for setting in ("pictures", "seconds"):
        with pytest.raises(ValueError, match=f"{setting} must be 0 or more, got -1"):
            plan(composed(*SMALL[:1], *SMALL[2:], f"{setting}=-1", name="plan"))
    with pytest.raises(ValueError, match=r"memory must be a size such as 24GB or 22\.5GiB, got 'much'"):
        plan(composed(*SMALL, "memory=much", name="plan"))
    write_case(tmp_path / "raw", t1c=None)
    given = ["experiment=cpu_small", "data=brats_mets", f"data.root={tmp_path}/raw", f"paths.cache_dir={tmp_path}/c"]
    with pytest.raises(CaseError, match="t1c"):
        plan(composed(*given, name="plan"))
    with pytest.raises(PlanError, match="none of the 1 cases is accepted"):
        plan(composed(*given, "data.on_bad_case=skip", name="plan"))


def test_dotted_keys_are_nested():
    assert nested({"a.b": 1, "a.c.d": [2], "e": None}) == {"a": {"b": 1, "c": {"d": [2]}}, "e": None}


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=unet", "sampling.size=[32,32,32]", "trainer.precision=32-true", "data.batch_size=4"],
        ["model=resunet", "model.widths=[16,32,64,128,256]", "sampling.size=[64,64,64]", "callbacks=averaged"],
    ],
    ids=["32 bits", "averaged"],
)
def test_the_prediction_is_near_what_a_training_takes(composed, overrides):
    cfg = composed(*overrides, "augmentation=none")
    if cfg.trainer.precision == "auto":
        cfg.trainer.precision = "32-true"
    # A process that imports the same; what this one holds depends on the tests before.
    _, predicted = predict(cfg, Machine("cpu", 10**9, True, 0))
    measured = measured_steps(OmegaConf.to_container(cfg))
    assert measured.seconds > 0
    resting = 0.55e9
    assert 0.65 < (predicted + resting) / measured.memory < 1.5


def test_measured_steps_are_reported(planned):
    report, folder = planned("measure=true", "memory=4GB")
    assert report["plan"]["measured"]["memory"] > 10**8
    assert re.search(r"GB predicted, \d\.\d\d GB measured, of 4\.00 GB", (folder / "report.html").read_text())
