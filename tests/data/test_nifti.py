import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.core.geometry import GridTransform
from brats_lightning.data import nifti
from brats_lightning.data.nifti import UnreadableFile, read_header, read_volume

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def whole(volume):
    """The volume on its own grid again."""
    transform = GridTransform.whole(volume.grid).crop(volume.start, volume.values.shape)
    return transform.restore(volume.values)


def save(path, array, affine=AFFINE, kind=nib.Nifti1Image):
    kind(array, affine).to_filename(path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_are_as_stored(tmp_path, name, dtype, kind):
    array = np.zeros((6, 7, 5), dtype)
    array[1:4, 2:6, 3] = np.random.default_rng(0).integers(0, 200, (3, 4))
    volume = read_volume(save(tmp_path / name, array, kind=kind))
    assert volume.values.dtype == dtype
    assert volume.values.shape == (1, 4, 3)
    np.testing.assert_array_equal(whole(volume), array)
    np.testing.assert_array_equal(volume.grid.affine, AFFINE)


def test_big_endian(tmp_path):
    array = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    image = nib.Nifti1Image(array, AFFINE, nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(">i2")
    image.to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.values.dtype == np.dtype("=i2")
    np.testing.assert_array_equal(whole(volume), array)


def test_scaling_is_honoured(tmp_path):
    array = np.array([-4, 0, 4, 8], np.int16).reshape(4, 1, 1)
    image = nib.Nifti1Image(array, AFFINE)
    image.header.set_slope_inter(0.5, 2)
    # nibabel would undo the scaling on saving; the stored integers are what is meant here
    path = tmp_path / "a.nii"
    image.header.set_data_offset(352)
    path.write_bytes(image.header.binaryblock + b"\0" * 4 + array.tobytes())
    assert nib.load(path).get_fdata().ravel().tolist() == [0, 2, 4, 6]
    volume = read_volume(path)
    assert volume.values.dtype == np.float32
    assert volume.values.ravel().tolist() == [2, 4, 6]  # the voxel of value 0, stored as −4, is outside
    assert whole(volume).ravel().tolist() == [0, 2, 4, 6]


def test_header_extensions_are_skipped(tmp_path):
    array = np.arange(1, 25, dtype=np.int16).reshape(2, 3, 4)
    image = nib.Nifti1Image(array, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 3000))
    image.to_filename(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(whole(read_volume(tmp_path / "a.nii.gz")), array)


@pytest.mark.parametrize("codec", ["isal", "zlib"])
def test_gzip_members_and_codecs(tmp_path, monkeypatch, codec):
    if codec == "zlib":
        monkeypatch.setattr(nifti, "_decompress", nifti.zlib.decompress)
    array = np.random.default_rng(0).integers(0, 99, (6, 7, 8)).astype(np.int16)
    raw = save(tmp_path / "a.nii", array).read_bytes()
    (tmp_path / "two.nii.gz").write_bytes(gzip.compress(raw[:500]) + gzip.compress(raw[500:]))
    (tmp_path / "one.nii.gz").write_bytes(gzip.compress(raw))
    for name in ("one", "two"):
        np.testing.assert_array_equal(whole(read_volume(tmp_path / f"{name}.nii.gz")), array)
    for cut in (1, 20, 300):
        (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "one.nii.gz").read_bytes()[:-cut])
        with pytest.raises(UnreadableFile, match=r"cannot be read.*expected an intact .* again"):
            read_volume(tmp_path / "cut.nii.gz")


def test_an_empty_volume_has_an_empty_box(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii", np.zeros((3, 4, 5), np.int16)))
    assert volume.values.shape == (0, 0, 0)
    assert not whole(volume).any()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no NIfTI header: the file is empty"),
        (b"hello", "no NIfTI header"),
        (b"<!DOCTYPE html>\n<html>", "no NIfTI header: the file is text, '<!DOCTYPE html>'"),
        (b"PK\3\4" + b"\0" * 1000, "no NIfTI header: the file is a zip archive"),
        (b"\0" * 1000, "no NIfTI header"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_no_nifti(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(UnreadableFile, match=reason):
        read_volume(tmp_path / "a.nii")


def test_a_file_that_is_compressed_twice_is_called_so(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.ones((6, 7, 8), np.int16))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UnreadableFile, match="compressed twice"):
        read_volume(path)


def test_a_link_to_nothing_says_what_it_links_to(tmp_path):
    (tmp_path / "a.nii").symlink_to(tmp_path / "annex")
    with pytest.raises(UnreadableFile, match=r"a link to .*annex, where there is no file"):
        read_volume(tmp_path / "a.nii")
    with pytest.raises(UnreadableFile, match=r"a link to .*annex"):
        read_header(tmp_path / "a.nii")


def changed(path, place, form, *values):
    """The file with other values at a place of its header."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, place, *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("offset", "found"), [(float("nan"), "no NIfTI header"), (1e9, "truncated: 0 bytes of voxels; expected 672")]
)
def test_an_offset_of_voxels_that_are_not_there(tmp_path, offset, found):
    path = changed(save(tmp_path / "a.nii", np.ones((6, 7, 8), np.int16)), 108, "<f", offset)
    with pytest.raises(UnreadableFile, match=found):
        read_volume(path)


@pytest.mark.parametrize("sizes", [(0, 0, 0), (-1, -1, 2), (float("nan"),) * 3])
def test_voxel_sizes_that_are_no_sizes_are_the_affines(tmp_path, caplog, capfd, sizes):
    path = changed(save(tmp_path / "a.nii", np.ones((6, 7, 8), np.int16)), 80, "<fff", *sizes)
    grid = read_header(path).grid
    assert grid.spacing == (1, 1, 2)
    assert all(size > 0 for size in grid.zooms)
    assert not caplog.records  # nibabel would not say which file
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [0.001, 1000.0])
def test_voxel_sizes_in_another_unit(tmp_path, size):
    path = save(tmp_path / "a.nii", np.ones((6, 7, 8), np.int16), np.diag([size, size, size, 1]))
    with pytest.raises(UnreadableFile, match=rf"voxels of {size:g} × .* mm; expected 0.005 … 100 mm"):
        read_volume(path)


def test_truncated_uncompressed(tmp_path):
    path = save(tmp_path / "a.nii", np.ones((6, 7, 8), np.int16))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UnreadableFile, match=r"truncated: 670 bytes of voxels; expected 672"):
        read_volume(path)


def test_not_three_dimensional(tmp_path):
    for shape in ((3, 4), (3, 4, 5, 2)):
        with pytest.raises(UnreadableFile, match=r"array of shape .*expected one 3-D volume"):
            read_volume(save(tmp_path / "a.nii", np.ones(shape, np.int16)))


def test_complex_values(tmp_path):
    with pytest.raises(UnreadableFile, match="voxels of type complex64"):
        read_volume(save(tmp_path / "a.nii", np.ones((2, 2, 2), np.complex64)))


def test_a_flat_affine(tmp_path):
    path = save(tmp_path / "a.nii", np.ones((2, 2, 2), np.int16))
    data = bytearray(path.read_bytes())
    data[280 : 280 + 48] = bytes(48)  # srow_x, srow_y, srow_z
    path.write_bytes(data)
    with pytest.raises(UnreadableFile, match="invertible"):
        read_volume(path)


def test_the_content_tells_whether_a_file_is_compressed_not_its_name(tmp_path):
    array = np.arange(1, 61, dtype=np.int16).reshape(3, 4, 5)
    plain, packed = save(tmp_path / "a.nii", array), save(tmp_path / "b.nii.gz", array)
    plain.rename(tmp_path / "plain.nii.gz")
    packed.rename(tmp_path / "packed.nii")
    for name, compressed in (("plain.nii.gz", False), ("packed.nii", True)):
        np.testing.assert_array_equal(whole(read_volume(tmp_path / name)), array)
        header = read_header(tmp_path / name)
        assert header.compressed == compressed
        assert (header.shape, header.grid.shape, header.dtype, header.scaling) == ((3, 4, 5), (3, 4, 5), np.int16, None)


def with_scaling(path, array, slope, inter):
    """The stored integers, and a header that scales them; nibabel would undo it on saving."""
    header = nib.Nifti1Image(array, AFFINE).header
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, inter, 352
    path.write_bytes(header.binaryblock + b"\0" * 4 + array.tobytes(order="F"))
    return path


@pytest.mark.parametrize("inter", [np.nan, np.inf])
def test_an_intercept_that_is_no_number(tmp_path, inter):
    path = with_scaling(tmp_path / "a.nii", np.ones((2, 3, 4), np.int16), 1, inter)
    for read in (read_volume, read_header):
        with pytest.raises(UnreadableFile, match=rf"scl_inter {inter} in the header; expected a finite one, .*repair"):
            read(path)


@pytest.mark.parametrize("slope", [0, np.nan, np.inf])
def test_a_slope_that_is_no_number_means_no_scaling(tmp_path, slope):
    array = np.arange(1, 25, dtype=np.int16).reshape(2, 3, 4)
    path = with_scaling(tmp_path / "a.nii", array, slope, 3)
    volume = read_volume(path)
    assert volume.values.dtype == np.int16
    np.testing.assert_array_equal(whole(volume), array)
    np.testing.assert_array_equal(nib.load(path).get_fdata(), array)


def test_scaling_beyond_32_bits_is_infinite_and_warns_nobody(tmp_path):
    path = with_scaling(tmp_path / "a.nii", np.full((2, 3, 4), 9, np.int16), 3e38, 0)
    assert np.isinf(read_volume(path).values).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_a_background_that_scaling_moved_off_0_is_0(tmp_path, dtype):
    # a float image saved with its old header of integers: nibabel chooses slope and intercept for its range
    image = np.zeros((9, 8, 7))
    image[3:6, 2:5, 2:4] = np.random.default_rng(0).uniform(-7.3, 1000, (3, 3, 2))
    image[3, 2, 2], image[5, 4, 3] = -7.3, 1000
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    nib.Nifti1Image(image, AFFINE, header).to_filename(tmp_path / "a.nii")
    loaded = nib.load(tmp_path / "a.nii")
    assert loaded.dataobj.inter != 0
    volume = read_volume(tmp_path / "a.nii")
    assert volume.values.shape == (2, 3, 3)
    values = whole(volume)
    assert not values[image == 0].any()
    np.testing.assert_allclose(values, image, atol=0.51 * loaded.dataobj.slope)
    moved = loaded.get_fdata()[0, 0, 0]
    assert volume.remark == ("" if moved == 0 else f"the header's scaling gives the background {moved:.2g}, taken as 0")


def test_a_background_that_is_another_number_is_told(tmp_path):
    image = np.random.default_rng(0).normal(0, 1, (5, 6, 7)).astype(np.float32)
    image[0] = image[-1] = image[:, 0] = image[:, -1] = -0.31
    volume = read_volume(save(tmp_path / "a.nii", image))
    assert volume.values.shape == (7, 6, 5)
    assert volume.remark.startswith("all corners are -0.31, not 0 as outside the brain")


def test_a_brain_that_touches_every_side_needs_no_remark(tmp_path):
    image = np.ones((5, 6, 7), np.int16)
    image[np.ix_((0, -1), (0, -1), (0, -1))] = 0
    volume = read_volume(save(tmp_path / "a.nii", image))
    assert volume.values.shape == (7, 6, 5)
    assert volume.remark == ""
    image[0, 0, 0] = 1
    assert read_volume(save(tmp_path / "a.nii", image)).remark == ""


@pytest.mark.parametrize("more", [(1,), (1, 1)])
def test_further_axes_of_one_voxel_are_left_out(tmp_path, more):
    array = np.arange(1, 61, dtype=np.int16).reshape(3, 4, 5)
    path = save(tmp_path / "a.nii.gz", array.reshape(3, 4, 5, *more))
    np.testing.assert_array_equal(whole(read_volume(path)), array)
    assert read_header(path).shape == (3, 4, 5, *more)
    assert read_header(path).grid.shape == (3, 4, 5)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "a.nii")

    monkeypatch.setattr(nifti.Path, "read_bytes", refuse)
    with pytest.raises(UnreadableFile, match=r"Permission denied.*allow it to be read"):
        read_volume(tmp_path / "a.nii")


def test_scores_use_the_headers_voxel_size(tmp_path):
    image = nib.Nifti1Image(np.ones((2, 3, 4), np.uint8), np.diag([1.5, 1.0, 1.0, 1.0]))
    image.header["pixdim"][1:4] = 2, 1, 1  # of a scan whose affine was corrected alone
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + b"\0" * 4 + b"\1" * 24)
    grid = read_volume(tmp_path / "a.nii").grid
    assert grid.spacing == (1.5, 1, 1)
    assert grid.zooms == (2, 1, 1)
