import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS, LabelScheme
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.training.baseline import best_threshold_dice
from tests.data.tiny_cases import write_case


def cached(tmp_path, t1c, mask, **options):
    write_case(tmp_path / "raw", t1c=t1c.astype(np.int16), seg=mask.astype(np.uint8), **options)
    return Cache(tmp_path / "cache").fill(find_cases(tmp_path / "raw"), modalities=()).cases


def volume(bright):
    """A flat brain of 1000 voxels with ``bright`` of them ten times as bright."""
    image = np.zeros((12, 14, 10), int)
    image[1:11, 2:12, 0:10] = 100
    image.reshape(-1)[np.flatnonzero(image)[:bright]] = 1000
    return image


def test_a_threshold_that_separates_the_tumour_reaches_1(tmp_path):
    image = volume(20)
    cases = cached(tmp_path, image, 3 * (image == 1000))
    assert best_threshold_dice(cases, BRATS_METS) == 1


def test_half_of_what_is_bright_is_tumour(tmp_path):
    image = volume(20)
    mask = np.zeros_like(image)
    mask.reshape(-1)[np.flatnonzero(image)[:10]] = 3
    assert best_threshold_dice(cached(tmp_path, image, mask), BRATS_METS) == pytest.approx(2 * 10 / (10 + 20))


def test_oedema_counts_for_wt_alone(tmp_path):
    image = volume(20)
    mask = 3 * (image == 1000)
    mask.reshape(-1)[np.flatnonzero(image == 100)[:20]] = 2
    assert best_threshold_dice(cached(tmp_path, image, mask), BRATS_METS) == pytest.approx(
        (1 + 1 + 2 * 20 / (20 + 40)) / 3
    )


def test_nothing_to_compare_with(tmp_path):
    assert best_threshold_dice([], BRATS_METS) is None
    image = volume(5)
    cases = cached(tmp_path, image, 0 * image)
    # No lesion at all: whatever is above the threshold is a false positive.
    assert best_threshold_dice(cases, BRATS_METS) == 0
    assert best_threshold_dice(cases, LabelScheme(("lesion",))) is None
