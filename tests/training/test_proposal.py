import numpy as np
import pytest

from brats_lightning.training.proposal import propose, target_spacing, topology

CUBE = (1.0, 1.0, 1.0)


def test_spacing_is_the_median_rounded():
    assert target_spacing(np.array([(1, 0.9, 0.9), (1, 0.86, 0.86), (2, 0.5, 0.5)])) == [1.0, 0.85, 0.85]


def test_equal_spacings_need_no_resampling():
    assert target_spacing(np.array([(1, 0.86, 0.86)] * 3 + [(1.01, 0.86, 0.865)])) is None


def test_thick_slices_get_the_tenth_percentile():
    thick = np.array([(z, 0.5, 0.5) for z in (1, 3, 5, 5, 5, 5, 5, 5, 5, 5, 6)])  # the median is ten times the pixel
    assert target_spacing(thick) == [3.0, 0.5, 0.5]


def test_every_axis_is_halved_down_to_four_voxels():
    found = topology((128, 128, 128), CUBE)
    assert found.patch == (128, 128, 128)
    assert found.strides == ((2, 2, 2),) * 5
    assert found.kernels == ((3, 3, 3),) * 6
    assert found.widths(32, 320) == [32, 64, 128, 256, 320, 320]


def test_a_short_axis_is_halved_less_often():
    found = topology((20, 60, 64), CUBE)
    assert found.patch == (20, 64, 64)  # rounded up to multiples of 4, 8 and 16
    assert found.strides == ((2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 2))


def test_thick_slices_wait_until_the_others_have_caught_up():
    found = topology((32, 256, 256), (5.0, 0.5, 0.5))
    assert found.patch == (32, 256, 256)
    assert found.strides == ((1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    assert found.kernels == ((1, 3, 3), (1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def fits_voxels(most, widths=(32,)):
    return lambda found: found.batch * np.prod(found.topology.patch) <= most and found.first_width in widths


@pytest.mark.parametrize("side", [64, 96, 128, 192])
def test_the_patch_is_as_large_as_fits_with_two(side):
    found = propose((142, 215, 206), CUBE, 1000, (32, 16), fits_voxels(2 * side**3))
    patch, factor = found.topology.patch, np.prod(found.topology.strides, axis=0)
    assert found.first_width == 32
    assert found.batch * np.prod(patch) <= 2 * side**3
    assert np.prod(patch) > 0.6 * side**3
    assert (np.array(patch) % factor == 0).all()
    assert (np.array(patch) // factor >= 4).all()
    assert patch[0] <= patch[1]  # as the scan is


def test_the_batch_grows_where_the_whole_scan_fits():
    found = propose((64, 64, 64), CUBE, 100, (32,), fits_voxels(4 * 64**3))
    assert (found.topology.patch, found.batch) == ((64, 64, 64), 4)
    few = propose((64, 64, 64), CUBE, 60, (32,), fits_voxels(1e9))
    assert few.batch == 3  # a twentieth of 60 scans


def test_a_narrower_network_is_tried_last():
    assert propose((64, 64, 64), CUBE, 10, (32, 16), fits_voxels(1e9, widths=(16,))).first_width == 16
    assert propose((64, 64, 64), CUBE, 10, (32, 16), fits_voxels(100)) is None
