"""Masks with voxels of unknown class, from the file to the patches."""

import numpy as np
import pytest

from brats_lightning.config.build import build_data
from brats_lightning.core.labels import IGNORE
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.preprocessing import Preprocessing
from brats_lightning.data.sampling.hard_examples import HardExamples, PredictionError
from brats_lightning.training.baseline import best_threshold_dice
from tests.data.tiny_cases import SHAPE, brain, lesions, save, write_case

CASE = "BraTS-MET-00001-000"
KNOWN = (288 - 16, 1, 8, 7)  # voxels of each class of `partly` in the brain
IGNORED = {9: IGNORE}


def partly(label=9, first=8):
    """The tiny case's mask, of which nobody has looked at the back: it cuts the oedema and hides the single voxel."""
    mask = lesions()
    mask[:, first:] = label
    return mask


def one(root, label_map=IGNORED, **settings):
    (case,) = Cache(root / "cache", label_map=label_map, **settings).fill(find_cases(root / "raw")).cases
    return case


@pytest.fixture
def case(tmp_path):
    write_case(tmp_path / "raw", CASE, seg=partly())
    return one(tmp_path)


def test_the_cache_keeps_what_is_unknown_and_counts_what_is_known(case):
    np.testing.assert_array_equal(case.reference(), partly(IGNORE))
    assert case.class_voxels == KNOWN
    assert case.partly_labelled
    assert [lesion.voxels for lesion in case.lesions] == [8]
    lesion, label, *at = case.positions().T
    assert np.bincount(label).tolist() == [0, *KNOWN[1:]]
    np.testing.assert_array_equal(case.mask()[tuple(at)], label)
    assert (lesion == 0).sum() == 8  # the oedema


def test_the_working_array_is_the_brain_however_far_the_unknown_reaches(case):
    assert case.shape == (6, 10, 8)
    assert (case.mask() == IGNORE).sum() == 6 * 4 * 8


@pytest.mark.parametrize(
    "settings", [{"spacing": (1.5, 1.2, 0.8)}, {"fit": "crop_or_pad", "size": (6, 8, 12)}], ids=["resampled", "cropped"]
)
def test_other_working_arrays_keep_the_reference(tmp_path, settings):
    write_case(tmp_path / "raw", CASE, seg=partly())
    case = one(tmp_path, preprocessing=Preprocessing(**settings))
    np.testing.assert_array_equal(case.reference(), partly(IGNORE))
    assert set(np.unique(case.mask())) <= {0, 1, 2, 3, IGNORE}
    assert sum(case.class_voxels) == (case.mask() != IGNORE).sum()


def test_any_label_that_is_no_class_will_do(tmp_path):
    for number, label in enumerate((4, 9, 255), 1):
        write_case(tmp_path / f"{label}/raw", f"BraTS-MET-{number:05d}-000", seg=partly(label))
        np.testing.assert_array_equal(one(tmp_path / str(label), {label: IGNORE}).reference(), partly(IGNORE))


def test_an_undeclared_label_is_a_fault(tmp_path):
    mask = partly(255)
    mask[0, 0, 0] = 9
    write_case(tmp_path, CASE, seg=mask)
    (case,) = find_cases(tmp_path)
    for label_map, found in ((None, {9, 255}), (IGNORED, {255}), ({255: IGNORE}, {9})):
        (problem,) = Cache(tmp_path / "cache", label_map=label_map).fill([case]).problems
        assert {label for label in (9, 255) if f"voxels of label {label}" in problem.found} == found


def test_a_wholly_labelled_case_is_cached_as_ever(tmp_path):
    write_case(tmp_path / "raw", CASE)
    plain, declared = one(tmp_path, None), one(tmp_path)
    assert not plain.partly_labelled
    assert not declared.partly_labelled
    assert plain.directory != declared.directory
    assert "_9to255_" in declared.directory.name
    for name, array in plain.arrays.items():
        assert array.crc32 == declared.arrays[name].crc32


# ---- patches


@pytest.fixture
def build(composed, tmp_path):
    def make(*overrides, masks=None):
        for number, mask in enumerate(masks or (partly(), lesions())):
            write_case(tmp_path / "raw", f"BraTS-MET-{number:05d}-000", seg=mask)
        common = ["data=brats_mets", f"data.root={tmp_path}/raw", f"paths.cache_dir={tmp_path}/cache"]
        common += ["data.val_share=0", "data.test_share=0", "data.batch_size=4", "data.patches_per_case=50"]
        data = build_data(composed(*common, "data.ignore_label=9", "sampling.size=[1,1,1]", *overrides))
        data.prepare_data()
        data.setup("fit")
        return data

    return make


def drawn(data):
    """The voxels of all patches of an epoch, as classes, and their cases."""
    batches = data.train_dataloader().dataset
    read = [batches[0, index] for index in range(len(batches))]
    return np.concatenate([batch.mask.flatten().numpy() for batch in read]), [c for batch in read for c in batch.cases]


def test_patches_hold_what_is_known(build):
    classes, cases = drawn(build("sampling=uniform"))
    assert len(classes) == 100
    assert set(cases) == {"BraTS-MET-00000-000", "BraTS-MET-00001-000"}
    assert classes.max() <= 3


def test_lesions_are_drawn_where_they_are_known(build):
    classes, _ = drawn(build("sampling.ratio=1", "sampling.margin=0", masks=(partly(),)))
    assert set(classes) == {1, 3}


def test_nothing_known_is_no_endless_search(build):
    unlabelled = np.full(SHAPE, 9, np.uint8)
    classes, _ = drawn(build(masks=(unlabelled,)))
    assert set(classes) == {IGNORE}


def test_the_log_says_how_many_masks_are_incomplete(build):
    assert build().summary() == "cases: 2 train, 0 val, 0 test; 1 partly labelled"


def test_other_patches_are_drawn_as_ever(build):
    wholly = (lesions(), lesions())
    first, again = drawn(build(masks=wholly)), drawn(build("data.ignore_label=null", masks=wholly))
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]


def test_balanced_weights_count_what_is_known(build):
    data = build(masks=(partly(),))
    expected = 1 / np.sqrt(KNOWN)
    assert data.balanced_class_weights() == pytest.approx(expected / expected.sum())
    assert data.partly_labelled
    assert not build("data.ignore_label=null", masks=(lesions(),)).partly_labelled


def test_hard_examples_are_known_errors(case, tmp_path):
    prediction = np.zeros(SHAPE, np.uint8)
    prediction[2:4, 11, 2:4] = 3  # all of it unknown
    prediction[8, 6:10, 5] = 3  # across the border
    save(tmp_path / "masks" / f"{CASE}.nii.gz", prediction)
    sampler = HardExamples([1, 1, 1], tmp_path / "masks", ratio=0, negative_ratio=1, margin=0)
    sampler.prepare([case])
    rng = np.random.default_rng(0)
    assert {sampler.draw_start(case, (1, 1, 1), rng) for _ in range(30)} == {(3, 4, 6), (3, 5, 6)}
    assert sampler.lesion_weights(case).tolist() == [3.0]  # the one lesion that is known


def test_predictions_are_wholly_labelled(case, tmp_path):
    save(tmp_path / "masks" / f"{CASE}.nii.gz", partly(255))
    with pytest.raises(PredictionError, match="voxels of label 255"):
        HardExamples([1, 1, 1], tmp_path / "masks").prepare([case])


def test_the_t1c_baseline_leaves_them_out(tmp_path):
    image = brain().clip(max=100)
    image[3:6, 3, 3:6], image[3:6, 9, 3:6] = 1000, 1000
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:6, 3, 3:6], mask[:, 8:] = 3, 9
    write_case(tmp_path / "raw", CASE, t1c=image, seg=mask)
    case = one(tmp_path)
    assert best_threshold_dice([case], Cache(tmp_path).scheme) == 1
