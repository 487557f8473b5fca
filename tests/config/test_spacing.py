"""``data.preprocessing.spacing=median``: numbers before anything is built, and the same ones ever after."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from brats_lightning.config.build import build_data, with_spacing
from brats_lightning.data.cases import CaseError
from brats_lightning.preprocess import preprocess
from brats_lightning.train import train
from tests.data.tiny_cases import write_case

MEDIAN = "data.preprocessing.spacing=median"
SHORT = [
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "test_on=null",
    "logger=none",
    "data=brats_mets",
    MEDIAN,
]


def affine(x, y, z):
    return np.diag([-x, -y, z, 1.0])


@pytest.fixture
def root(tmp_path):
    for patient in range(12):
        size = (1, 1, 1) if patient % 2 else (0.87, 0.87, 1.5)
        write_case(
            tmp_path / "raw", f"BraTS-MET-{patient:05d}-000", affine(*size), **({"seg": None} if patient == 11 else {})
        )
    return tmp_path / "raw"


@pytest.fixture
def config(composed, root, tmp_path):
    def make(*overrides, **kind):
        return composed("data=brats_mets", f"data.root={root}", f"paths.cache_dir={tmp_path}/cache", *overrides, **kind)

    return make


def spacing_of(cfg):
    return OmegaConf.to_container(cfg.data.preprocessing.spacing)


def test_the_median_is_of_all_cases_and_needs_no_voxels(config, root):
    for file in root.glob("*/*"):
        file.write_bytes(file.read_bytes()[:600])  # of which a header needs about half
    cfg = config(MEDIAN)
    # Six cases of each size, one of them unlabelled: means of the two; 0.935 becomes 0.95.
    assert spacing_of(with_spacing(cfg)) == [1.25, 0.95, 0.95]
    assert cfg.data.preprocessing.spacing == "median"


def test_all_folds_share_a_cache(config):
    folds = [build_data(with_spacing(config(MEDIAN, "data.folds=2", f"data.fold={fold}"))) for fold in (0, 1)]
    assert folds[0].cache.directory == folds[1].cache.directory
    assert folds[0].cache.key.startswith("1.25x0.95x0.95mm")


@pytest.mark.parametrize("given", ["null", "[1,2,3]"])
def test_other_settings_stay(config, given):
    cfg = config(f"data.preprocessing.spacing={given}")
    assert with_spacing(cfg) is cfg


def test_a_resumed_run_keeps_its_numbers(config):
    saved = {"data": {"preprocessing": {"spacing": [2.0, 1.0, 1.0]}}}
    assert spacing_of(with_spacing(config(MEDIAN), saved)) == [2, 1, 1]


def test_headers_that_cannot_be_read_are_all_in_one_report(config, root):
    for file in root.glob("*/*"):
        file.write_bytes(b"")
    with pytest.raises(CaseError, match="12 cases cannot be used"):
        with_spacing(config(MEDIAN))


def test_another_word_is_refused(config):
    with pytest.raises(ValueError, match=r"(?s)data.preprocessing: .*spacing.*mean"):
        build_data(config("data.preprocessing.spacing=mean"))


def test_preprocess_says_which_it_took_and_fills_the_cache_of_training(config, caplog):
    caplog.set_level("INFO")
    report = preprocess(config(MEDIAN, name="preprocess"))
    assert list(report["spacing"]) == [1.25, 0.95, 0.95]
    assert "spacing: 1.25 × 0.95 × 0.95 mm (z, y, x), the median of 12 cases" in caplog.text
    assert {tuple(round(s, 6) for s in row["spacing"]) for row in report["cases"]} == {(1.25, 0.95, 0.95)}
    data = build_data(with_spacing(config(MEDIAN)))
    assert not data.cache.fill([case for case in data.source() if case.mask]).built


def test_a_run_holds_the_numbers_and_resumes_with_them_when_cases_came(config, root, tmp_path):
    train(config(*SHORT, run="begun"))
    assert spacing_of(OmegaConf.load(tmp_path / "begun/config.yaml")) == [1.25, 0.95, 0.95]
    last = tmp_path / "begun/checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=True)["config"]["data"]["preprocessing"]
    assert saved["spacing"] == [1.25, 0.95, 0.95]
    for patient in range(20, 40):
        write_case(root, f"BraTS-MET-{patient:05d}-000", affine(0.5, 0.5, 3))
    train(config(*SHORT, f"ckpt_path={last}", "trainer.max_steps=4", run="rest"))
    assert spacing_of(OmegaConf.load(tmp_path / "rest/config.yaml")) == [1.25, 0.95, 0.95]
    train(config(*SHORT, run="new"))
    assert spacing_of(OmegaConf.load(tmp_path / "new/config.yaml")) == [3, 0.5, 0.5]


def test_a_run_in_native_spacing_is_not_resumed_with_the_median(config, tmp_path):
    train(config(*SHORT, "data.preprocessing.spacing=null", run="begun"))
    last = tmp_path / "begun/checkpoints/last.ckpt"
    with pytest.raises(ValueError, match=r"data.preprocessing.spacing: None → \[1.25, 0.95, 0.95\]"):
        train(config(*SHORT, f"ckpt_path={last}", run="rest"))
