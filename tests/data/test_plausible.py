import numpy as np
import pytest

from brats_lightning.core.geometry import Grid
from brats_lightning.data.nifti import Volume
from brats_lightning.data.plausible import plausible
from brats_lightning.data.preprocessing import quantise


def volume(values):
    return Volume(Grid(values.shape[::-1], np.eye(4)), values, (0, 0, 0))


def brain(dtype=np.float32):
    """1.5, 2.5 … 1000.5 and, in one slice, 0."""
    values = (np.arange(1000).reshape(10, 10, 10) + 1.5).astype(dtype)
    values[0] = 0
    return values


@pytest.mark.parametrize("wild", [1e30, -1e30, 3e5])
def test_one_wild_voxel_does_not_take_the_steps_of_the_others(wild):
    values = brain()
    values[5, 5, 5] = wild
    found = plausible(volume(values))
    assert found.remark.startswith(f"1 voxel far from all others, such as {wild:.4g}, taken as ")
    limit = float(found.values[5, 5, 5])
    others = np.ones(values.shape, bool)
    others[5, 5, 5] = False
    np.testing.assert_array_equal(found.values[others], values[others])
    first, last = np.percentile(values[values != 0], (1, 99))
    assert limit == pytest.approx(last + 20 * (last - first) if wild > 0 else first - 20 * (last - first), rel=1e-3)
    codes = np.empty(values.shape, np.uint16)
    decoded = quantise(found.values, codes)
    worst = np.abs(codes * decoded.scale + decoded.offset - values)[others & (values != 0)].max()
    assert worst <= decoded.scale / 2 < 0.35
    assert values[5, 5, 5] == np.float32(wild)  # what was given is not changed


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_whole_numbers_that_fit_are_kept(dtype):
    values = np.floor(brain()).astype(dtype)
    values[5, 5, 5] = 65535
    assert plausible(volume(values)).values is values


def test_bright_tissue_is_no_outlier():
    values = brain()
    values[5, 5, 5] = 10 * values.max()
    found = plausible(volume(values))
    assert found.values is values
    assert found.remark == ""


def test_images_without_contrast_are_told():
    nothing = volume(np.zeros((0, 0, 0), np.int16))
    assert plausible(nothing).remark == "all voxels are 0"
    flat = np.where(brain() > 0, 9, 0)
    assert plausible(volume(flat)).remark == "all voxels of the brain are 9"
    flat[7, 1, 1] = 8  # not among the voxels that are looked at first
    assert plausible(volume(flat)).remark == ""
