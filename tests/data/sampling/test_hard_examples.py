"""Hard examples from hand-made predictions: how often missed lesions and false positives are drawn."""

import nibabel as nib
import numpy as np
import pytest
from scipy.stats import chisquare

from brats_lightning.config.build import build_data
from brats_lightning.data.sampling.hard_examples import HardExamples, PredictionError
from tests.data.tiny_cases import LPS, RAS, SHAPE, lesions, save, write_case

CASE = "BraTS-MET-00001-000"
CORE, SINGLE = (4, 4, 4), (8, 10, 6)  # voxels of the two lesions in the file's (x, y, z), see tiny_cases.lesions


@pytest.fixture
def sampled(composed, tmp_path):
    """A sampler of 1-voxel patches over one case with the given prediction, and that case."""

    def make(prediction, *overrides, affine=LPS, cases=(CASE,), missing=()):
        for case in cases:
            write_case(tmp_path / "raw", case, affine=affine)
            if prediction is not None and case not in missing:
                save(tmp_path / "masks" / f"{case}.nii.gz", prediction, affine)
        cfg = composed(
            "data=brats_mets",
            f"data.root={tmp_path}/raw",
            f"paths.cache_dir={tmp_path}/cache",
            "data.val_share=0",
            "data.test_share=0",
            "sampling=hard",
            f"sampling.predictions={tmp_path}/masks",
            "sampling.size=[1,1,1]",
            *overrides,
        )
        data = build_data(cfg)
        data.prepare_data()
        data.setup("fit")
        return data.sampler, [data.cases[case] for case in cases]

    return make


def kinds(sampler, case, n=3000, seed=0):
    """How many of n patches lie on the core, on the single voxel, on the false positives, elsewhere."""
    rng = np.random.default_rng(seed)
    mask, predicted = case.mask(), case.transform.apply(false_positives())
    counts = np.zeros(4, int)
    for _ in range(n):
        at = sampler.draw_start(case, (1, 1, 1), rng)
        if mask[at] in (1, 3):
            counts[1 if case.transform.restore(one_voxel(mask.shape, at))[SINGLE] else 0] += 1
        else:
            counts[2 if predicted[at] else 3] += 1
    return counts


def one_voxel(shape, at):
    out = np.zeros(shape, np.uint8)
    out[at] = 1
    return out


def false_positives():
    """Two components off the reference: one of a voxel, one of three in a row."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[9, 3, 3] = 2
    mask[3, 11, 4:7] = 3
    return mask


def predicted():
    """The core is found, the single voxel is missed, two components are false."""
    mask = false_positives()
    mask[4, 4, 4] = 1
    return mask


@pytest.mark.parametrize("affine", [LPS, RAS])
def test_missed_lesions_and_false_positives_come_as_often_as_asked_for(sampled, affine):
    overrides = ["sampling.ratio=0.6", "sampling.negative_ratio=0.3", "sampling.missed_weight=3", "sampling.margin=0"]
    sampler, (case,) = sampled(predicted(), *overrides, affine=affine)
    brain = np.prod([n - 4 for n in SHAPE])
    core, single, false, rest = 8 / brain, 1 / brain, 4 / brain, 1 - 13 / brain
    shares = [0.15 + 0.1 * core, 0.45 + 0.1 * single, 0.3 + 0.1 * false, 0.1 * rest]
    assert chisquare(kinds(sampler, case), np.array(shares) * 3000).pvalue > 0.01


def test_each_false_positive_is_equally_likely_and_found_lesions_alike(sampled):
    prediction = false_positives() + lesions()
    sampler, (case,) = sampled(prediction, "sampling.ratio=0", "sampling.negative_ratio=1", "sampling.margin=0")
    rng = np.random.default_rng(0)
    drawn = [sampler.draw_start(case, (1, 1, 1), rng) for _ in range(2000)]
    alone = case.transform.apply((false_positives() == 2).astype(np.uint8))
    hits = sum(int(alone[at]) for at in drawn)
    assert hits / 2000 == pytest.approx(0.5, abs=0.04)
    sampler, (case,) = sampled(prediction, "sampling.ratio=1", "sampling.negative_ratio=0", "sampling.margin=0")
    core, single, *others = kinds(sampler, case)
    assert others == [0, 0]
    assert chisquare([core, single]).pvalue > 0.01


def test_a_lesion_called_another_class_is_missed_and_touches_no_negative(sampled):
    prediction = np.zeros(SHAPE, np.uint8)
    prediction[SINGLE] = 2  # the enhancing voxel taken for oedema
    prediction[CORE] = 3  # a wrong class there, but one that the lesion has
    overrides = ["sampling.ratio=1", "sampling.negative_ratio=0", "sampling.missed_weight=4", "sampling.margin=0"]
    sampler, (case,) = sampled(prediction, *overrides)
    core, single, *others = kinds(sampler, case)
    assert chisquare([core, single], [600, 2400]).pvalue > 0.01
    assert others == [0, 0]
    assert sampler._difficulties[CASE].negatives == []


def test_without_false_positives_their_share_is_uniform(sampled):
    sampler, (case,) = sampled(lesions(), "sampling.ratio=0", "sampling.negative_ratio=1")
    rng = np.random.default_rng(0)
    drawn = {sampler.draw_start(case, (1, 1, 1), rng) for _ in range(300)}
    assert len(drawn) > 150
    empty, _ = sampled(np.zeros(SHAPE, np.uint8))
    assert empty._difficulties[CASE].missed == [True, True]


def test_cases_weigh_what_their_lesions_weigh(sampled):
    cases = ("BraTS-MET-00001-000", "BraTS-MET-00002-000")
    found = ["sampling.across_cases=true", "sampling.missed_weight=3"]
    sampler, read = sampled(lesions(), *found, cases=cases)
    np.testing.assert_allclose(sampler.case_weights(read), [0.5, 0.5])
    missed = np.where(lesions() == 3, 0, lesions())
    missed[CORE] = 1
    save(sampler.predictions / f"{cases[1]}.nii.gz", missed)
    sampler.prepare(read)
    np.testing.assert_allclose(sampler.case_weights(read), [2 / 6, 4 / 6])  # 1 + 1 and 1 + 3
    sampler.across_cases = False
    assert sampler.case_weights(read) is None


def test_equal_predictions_give_equal_patches(sampled):
    sampler, (case,) = sampled(predicted())
    first = [sampler.draw_start(case, (3, 3, 3), np.random.default_rng(seed)) for seed in range(40)]
    sampler, (case,) = sampled(predicted())
    assert [sampler.draw_start(case, (3, 3, 3), np.random.default_rng(seed)) for seed in range(40)] == first


def test_all_missing_and_unusable_predictions_are_listed(sampled):
    cases = [f"BraTS-MET-0000{i}-000" for i in range(4)]
    with pytest.raises(PredictionError, match="2 of the 4 training cases") as caught:
        sampled(lesions(), cases=cases, missing=cases[2:])
    assert all(f"there is no {case}.nii.gz" in str(caught.value) for case in cases[2:])
    assert cases[0] not in str(caught.value)


def test_predictions_stored_as_scaled_integers_keep_their_classes(sampled, tmp_path):
    sampler, (case,) = sampled(predicted())
    wanted = sampler.lesion_weights(case).tolist()
    assert sorted(wanted) == [1.0, 3.0]
    stored = nib.Nifti1Image((predicted().astype(np.int16) * 1000), LPS)
    stored.header.set_slope_inter(0.0009999999, 0)  # 1 is read as 0.9999999
    nib.save(stored, tmp_path / "masks" / f"{CASE}.nii.gz")
    sampler, (case,) = sampled(None)
    assert sampler.lesion_weights(case).tolist() == wanted


def test_labels_that_are_no_class_are_refused(sampled):
    with pytest.raises(PredictionError, match=r"voxels of label 7; expected 0 background, 1 netc"):
        sampled(np.where(lesions() > 0, 7, 0).astype(np.uint8))


def test_predictions_on_another_grid_are_refused(sampled, tmp_path):
    with pytest.raises(PredictionError, match=r"shape .* expected .* as the case's images"):
        sampled(lesions()[1:])
    shifted = LPS.copy()
    shifted[0, 3] += 5
    write_case(tmp_path / "raw", CASE)
    save(tmp_path / "masks" / f"{CASE}.nii.gz", lesions(), shifted)
    with pytest.raises(PredictionError, match=r"lies 5 mm off the case's images .* expected ≤ 0.1 mm"):
        sampled(None)
    (tmp_path / "masks" / f"{CASE}.nii.gz").write_bytes(b"nonsense")
    with pytest.raises(PredictionError, match="NIfTI"):
        sampled(None)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"ratio": 0.8, "negative_ratio": 0.3}, "negative_ratio"),
        ({"negative_ratio": -0.1}, "negative_ratio"),
        ({"missed_weight": 0}, "missed_weight"),
    ],
)
def test_wrong_settings_are_named(settings, key):
    with pytest.raises(ValueError, match=rf"sampling.*{key}"):
        HardExamples([8, 8, 8], "masks", **settings)


def test_masks_may_hold_floats(sampled):
    sampler, (case,) = sampled(lesions())
    path = sampler.predictions / f"{CASE}.nii.gz"
    nib.Nifti1Image(lesions().astype(np.float32), LPS).to_filename(path)
    sampler.prepare([case])
    assert sampler._difficulties[CASE].missed == [False, False]
