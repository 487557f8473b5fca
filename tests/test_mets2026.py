"""``experiment=mets2026`` from the unpacked data to a checked submission, on phantoms that have all that is new."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.data.cases import CaseError
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.evaluate import evaluate
from brats_lightning.plan import plan
from brats_lightning.predict import predict
from brats_lightning.preprocess import preprocess
from brats_lightning.submission import submission
from brats_lightning.train import train
from brats_lightning.tune import tune
from tests.cohort import SETTINGS, make_cohort

DATA = ["data.labels=[netc,snfh,et,rc]", "data.optional=[t2w]", "data.preprocessing.spacing=median"]
SMALL = [
    "experiment=mets2026",
    "trainer=cpu",
    "model/size=small",
    "model.widths=[4,8,16]",
    "model.deep_supervision=1",
    "sampling.size=[16,24,24]",
    "inference.window=[32,32,32]",
    "data.workers=0",
    "data.patches_per_case=1",
    "trainer.max_steps=12",
    "trainer.val_check_interval=12",
    "trainer.log_every_n_steps=4",
]


def cases_of(root):
    """The names of all cases."""
    return [case.id for case in find_cases(root / "cases")]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort")
    return root, make_cohort(root)


@pytest.fixture
def composed_here(composed, cohort):
    root, _ = cohort

    def make(*overrides, name):
        data = ["data=brats_mets", f"data.root={root}/cases", f"data.masks={root}/masks"]
        fixed = [*data, f"paths.cache_dir={root}/cache", "data.cache_workers=1"]
        fixed = fixed if name in ("train", "preprocess", "plan") else []
        return composed(*fixed, *overrides, name=name, plain=True)

    return make


def test_the_cohort_is_what_it_is_said_to_be(cohort):
    root, _ = cohort
    cases = find_cases(root / "cases", root / "masks")
    assert len(cases) == 40
    assert sum(case.mask is None for case in cases) == 5
    assert sum("t2w" not in case.images for case in cases) == 8
    assert sum(case.masks_from is not None for case in cases) == 2
    kinds = [SETTINGS.kind(number) for number in range(40)]
    assert (kinds.count("cavity"), kinds.count("empty")) == (6, 4)
    spacings = {tuple(np.round(nib.load(case.images["t1n"]).header.get_zooms(), 3)) for case in cases}
    assert len(spacings) == 3


def test_each_fault_is_named(composed_here, cohort):
    with pytest.raises(CaseError) as error:
        preprocess(composed_here(*DATA, name="preprocess"))
    found = {problem.case: problem for problem in error.value.problems}
    assert list(found) == sorted(cohort[1]["faulty"])
    assert [problem.file for problem in found.values()] == ["t1c", "seg", "t2f"]
    assert "label 6" in list(found.values())[1].found


def test_from_preprocess_to_submission(composed_here, cohort, tmp_path):
    root, chosen = cohort
    report = preprocess(composed_here(*DATA, "data.on_bad_case=skip", name="preprocess"))
    assert (report["accepted"], report["rejected"]) == (37, 3)
    assert list(report["spacing"]) == [1, 0.85, 0.85]
    rows = {row["case"]: row for row in report["cases"]}
    assert all(rows[name]["lesions"] > 0 for name in chosen["corrected"])  # not those of the masks they replace

    planned = plan(composed_here(*SMALL[:2], "data.on_bad_case=skip", "memory=3GB", "seconds=1000", name="plan"))
    assert planned["fingerprint"]["sequences"]["t2w"]["missing"] > 0
    assert planned["fingerprint"]["lesions"]["rc"]["cases"] == 6 - sum(
        SETTINGS.kind(sorted(cases_of(root)).index(name)) == "cavity" for name in chosen["faulty"]
    )
    assert planned["plan"]["settings"]["sampling.size"] == planned["plan"]["settings"]["inference.window"]

    results = train(composed_here(*SMALL, "data.on_bad_case=skip", "logger=none", name="train"))
    assert "test/brats2026/lesion_dsc_rc" in results
    split = json.loads((tmp_path / "run/split.json").read_text())
    assert sum(map(len, split.values())) == 40 - 5 - 3

    best = tmp_path / "run/checkpoints/best.ckpt"
    grid = ["grid.hysteresis.low=[0.5]", "grid.hysteresis.high=[0.5]", "grid.core=null", "grid.min_volume=null"]
    tuned = tune(composed_here(f"ckpt={best}", "protocol=brats2026", *grid, name="tune"))
    assert sorted(tuned["cases"]) == sorted(split["val"])

    masks = tmp_path / "masks"
    predict(composed_here(f"ckpt={best}", f"input={root}/cases", f"output={masks}", "on_bad_case=skip", name="predict"))
    cases = {case.id: case for case in find_cases(root / "cases")}
    readable = set(cases) - {chosen["faulty"][0], chosen["faulty"][2]}
    assert {path.name.removesuffix(".nii.gz") for path in masks.iterdir()} == readable
    for name in readable:
        mask, image = nib.load(masks / f"{name}.nii.gz"), nib.load(cases[name].images["t1c"])
        assert mask.shape == image.shape
        np.testing.assert_array_equal(mask.affine, image.affine)

    scores = evaluate(
        composed_here(
            f"predictions={masks}", "data=brats_mets", f"data.root={root}/cases", f"data.masks={root}/masks",
            f"split={tmp_path}/run/split.json", "data.on_bad_case=skip", "data.labels=[netc,snfh,et,rc]",
            "protocol=[brats2025,brats2026]", f"output={tmp_path}/scores",
            "processes=1", "resamples=50", "pictures=1", name="evaluate",
        )
    )  # fmt: skip
    assert set(scores["scores"]["brats2025"]) == {"et", "tc", "wt", "rc"}
    for region in ("et", "tc", "wt", "rc"):
        voxel = scores["voxel_scores"][region]["dice"]["mean"]
        assert voxel == pytest.approx(results[f"test/dice_{region}"], abs=1e-5, nan_ok=True)

    for name in chosen["faulty"]:
        (masks / f"{name}.nii.gz").unlink(missing_ok=True)
    sound = tmp_path / "sound"
    for name in set(cases) - set(chosen["faulty"]):
        shutil.copytree(cases[name].images["t1c"].parent, sound / name)
    told = f"predictions={masks}", f"input={sound}", "labels=[1,2,3,4]", "max_share=1"  # an untrained network's masks
    checked = submission(composed_here(*told, name="submission"))
    assert checked["masks"] == 37
