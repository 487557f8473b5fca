import json

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.core.geometry import Grid, GridTransform
from brats_lightning.data.nifti import UnreadableFile, read_comment, read_header, read_volume
from brats_lightning.data.probabilities import Member, Probabilities, Record, read_probabilities, read_record
from brats_lightning.data.probabilities import write_probabilities as write
from tests.data.tiny_cases import LPS, RAS, SHAPE, save

ROTATED = np.array([[0, 0, 2.0, -3], [1.5, 0, 0, 5], [0, -0.5, 0, 7], [0, 0, 0, 1]])  # axes A, I, R
OBLIQUE = np.array([[-0.98, 0.1, 0, 4], [0.1, 0.98, 0.05, 5], [0, -0.05, 1.5, 6], [0, 0, 0, 1]])
NETWORK = ("netc", "snfh", "et"), "argmax"


def made(transform, seed=0, spread=False):
    """Random probabilities of four classes on a box."""
    rng = np.random.default_rng(seed)
    values = rng.random((4, *transform.shape), np.float32)
    values /= values.sum(0)
    return Probabilities(values, transform, rng.random(transform.shape, np.float32) / 2 if spread else None)


def record(header, **settings):
    values = {"members": (Member("0f", "val"),), "postprocessing": {"steps": {}}, "origin": "brats_lightning model=0f"}
    return Record("00001-000", *NETWORK, header=header, **values | settings)


@pytest.mark.parametrize("affine", [LPS, RAS, ROTATED, OBLIQUE], ids=["LPS", "RAS", "rotated", "oblique"])
def test_what_is_written_is_read(tmp_path, affine):
    header = read_header(save(tmp_path / "scan.nii", np.zeros(SHAPE, np.int16), affine))
    box = GridTransform.whole(header.grid).crop((1, 2, 3), (4, 5, 3))
    found = made(box, spread=True).rounded()
    path = tmp_path / "a_probabilities.nii.gz"
    write(path, found, record(header))
    again, kept = read_probabilities(path)
    np.testing.assert_array_equal(again.values, found.values)
    np.testing.assert_array_equal(again.spread, found.spread)
    assert again.transform == box
    assert (kept.case, kept.labels, kept.decode) == ("00001-000", *NETWORK)
    assert (kept.members, kept.postprocessing) == ((Member("0f", "val"),), {"steps": {}})
    assert kept.origin == "brats_lightning model=0f"
    assert kept.header.grid == header.grid
    assert kept.header.nifti.binaryblock == header.nifti.binaryblock
    assert read_record(path).members == kept.members
    before = path.read_bytes()
    write(path, found, record(header))
    assert path.read_bytes() == before  # not even the time of writing is in it


@pytest.mark.parametrize("affine", [LPS, RAS, ROTATED, OBLIQUE], ids=["LPS", "RAS", "rotated", "oblique"])
def test_other_programs_see_the_box_in_its_place(tmp_path, affine):
    scan = nib.Nifti1Image(np.zeros(SHAPE, np.int16), affine)
    scan.set_sform(affine, code=4)
    scan.header.set_xyzt_units("mm")
    scan.to_filename(tmp_path / "scan.nii")
    header = read_header(tmp_path / "scan.nii")
    box = GridTransform.whole(header.grid).crop((1, 2, 3), (4, 5, 3))
    found = made(box).rounded()
    write(tmp_path / "p.nii.gz", found, record(header))
    image = nib.load(tmp_path / "p.nii.gz")
    np.testing.assert_allclose(image.get_fdata(), found.values.T, atol=1e-6)
    assert image.get_data_dtype() == np.uint16
    assert (int(image.header["sform_code"]), image.header.get_xyzt_units()[0]) == (4, "mm")
    whole = found.whole()
    there = np.argwhere(whole[..., 0] < 1)  # the voxels of the box, in the scan's own order
    assert len(there) == 4 * 5 * 3
    world = nib.affines.apply_affine(affine, there)
    index = nib.affines.apply_affine(np.linalg.inv(image.affine), world)
    np.testing.assert_allclose(index, np.rint(index), atol=1e-4)
    x, y, z = np.rint(index).astype(int).T
    np.testing.assert_allclose(image.get_fdata()[x, y, z], whole[tuple(there.T)], atol=1e-6)


def test_rounding_keeps_thresholds_and_cuts_to_the_grid():
    whole = GridTransform.whole(Grid((6, 5, 4), np.diag([-1.0, -1.0, 1.0, 1.0])))
    values = np.full((2, 8, 5, 6), 0.5, np.float32)
    values[1, 3, 2] = 0.7
    values[0, 3, 2] = 0.300003  # less than half a step off
    box = whole.crop((-2, 0, 1), (8, 5, 6))
    found = Probabilities(values, box).rounded()
    assert (found.transform.origin, found.transform.shape) == ((0.0, 0.0, 1.0), (4, 5, 5))
    assert found.values.shape == (2, 4, 5, 5)
    assert set(np.unique(found.values)) == {np.float32(0.3), np.float32(0.5), np.float32(0.7)}
    np.testing.assert_array_equal(found.rounded().values, found.values)


def test_another_box_is_filled_with_background():
    whole = GridTransform.whole(Grid((6, 5, 4), np.eye(4)))
    found = made(whole.crop((1, 1, 1), (2, 2, 2)))
    other = found.on(whole.crop((2, 0, 1), (2, 3, 4)))
    np.testing.assert_array_equal(other.values[:, :1, 1:, :2], found.values[:, 1:])
    np.testing.assert_allclose(other.values.sum(0), 1, atol=1e-6)
    assert other.values[1:].sum() == pytest.approx(found.values[1:, 1:].sum(), rel=1e-5)


def test_nothing_of_the_scans_header_but_its_geometry(tmp_path):
    scan = nib.Nifti1Image(np.zeros(SHAPE, np.int16), LPS)
    scan.header["descrip"] = b"name of a patient"
    scan.to_filename(tmp_path / "scan.nii")
    header = read_header(tmp_path / "scan.nii")
    path = tmp_path / "p.nii.gz"
    write(path, made(GridTransform.whole(header.grid)).rounded(), record(header))
    assert read_record(path).header.nifti["descrip"].item() == b""
    assert "transform" in json.loads(read_comment(path))


def test_other_files_are_refused(tmp_path):
    header = read_header(save(tmp_path / "scan.nii", np.zeros(SHAPE, np.int16)))
    with pytest.raises(UnreadableFile, match="no record of probabilities in its header; expected a file that predict"):
        read_record(tmp_path / "scan.nii")
    whole = made(GridTransform.whole(header.grid)).rounded()
    path = tmp_path / "p.nii.gz"
    write(path, whole, record(header))
    image = nib.load(path)
    comment = json.loads(read_comment(path))

    values = np.asarray(image.dataobj.get_unscaled())

    def rewritten(**changes):
        other = nib.Nifti1Image(values, image.affine)
        text = json.dumps(comment | changes).encode()
        other.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text))
        other.to_filename(path)
        return path

    with pytest.raises(UnreadableFile, match="probabilities of format 7; expected format 1"):
        read_probabilities(rewritten(brats_lightning=7))
    with pytest.raises(UnreadableFile, match=r"shape \(12, 14, 10, 4\); expected \(12, 14, 10, 5\)"):
        read_probabilities(rewritten(spread=True))
    data = rewritten().read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert read_record(path).labels == NETWORK[0]  # the beginning is there
    with pytest.raises(UnreadableFile):
        read_probabilities(path)
    path.write_bytes(b"")
    with pytest.raises(UnreadableFile):
        read_record(path)


def test_a_comment_among_other_extensions(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("afni", b"<xml/>"))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", "grüße".encode()))
    image.to_filename(tmp_path / "a.nii.gz")
    assert read_comment(tmp_path / "a.nii.gz") == "grüße"
    assert read_volume(tmp_path / "a.nii.gz").grid.shape == (2, 2, 2)
    del image.header.extensions[1]
    image.to_filename(tmp_path / "b.nii")
    assert read_comment(tmp_path / "b.nii") is None
