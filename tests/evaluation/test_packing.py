import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from brats_lightning.core.geometry import GridTransform
from brats_lightning.core.labels import IGNORE
from brats_lightning.data.nifti import read_volume
from brats_lightning.evaluation.pairing import Pair
from brats_lightning.evaluation.report import packing
from brats_lightning.evaluation.report.packing import as_bytes, pack_case, pack_sequence
from brats_lightning.evaluation.scoring import Scoring
from tests.data.tiny_cases import LPS, RAS, lesions, save, write_case
from tests.evaluation.evaluating import run

# Axes y, z, x of which the first runs to the front: permuted and reversed.
TURNED = np.array([[0, 0, -1.5, 0], [3.0, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1]])


def packed(tmp_path, reference, prediction, affine=LPS, scoring=None, images=("t1c", "t2f")):
    """A pair as the viewer gets it, with images of 100 everywhere but in a margin of one voxel."""
    for name in images:
        save(
            tmp_path / f"ref/00001-000-{name}.nii",
            np.pad(np.full(np.subtract(reference.shape, 2), 100, np.int16), 1),
            affine,
        )
    paths = save(tmp_path / "ref/00001-000-seg.nii", reference, affine), save(tmp_path / "p.nii", prediction, affine)
    pair, scoring = Pair("00001-000", *paths), scoring or Scoring()
    return pack_case(pair, scoring.score(pair), scoring, 60)


def masks_of(pack):
    """Reference and prediction in (z, y, x)."""
    content = zlib.decompress(base64.b64decode(pack["masks"]))
    return np.frombuffer(content, np.uint8).reshape(2, *pack["shape"])


def grey_of(sequence, shape):
    """The volume that the strips hold."""
    strips = [Image.open(io.BytesIO(base64.b64decode(strip))) for strip in sequence["strips"]]
    return np.concatenate([np.asarray(strip.convert("L")) for strip in strips]).reshape(shape)


@pytest.mark.parametrize("affine", [LPS, RAS, TURNED])
def test_masks_come_back_exactly_in_the_patients_axes(tmp_path, affine):
    reference, prediction = lesions(), np.roll(lesions(), 2, axis=1)
    pack = packed(tmp_path, reference, prediction, affine)
    whole = GridTransform.whole(read_volume(tmp_path / "p.nii").grid)
    inner = (slice(1, -1),) * 3  # the images' margin of zeros is left out
    assert tuple(pack["shape"]) == whole.orient(reference)[inner].shape
    for found, mask in zip(masks_of(pack), (reference, prediction), strict=True):
        assert np.array_equal(found, whole.orient(mask)[inner])
    assert pack["spacing"] == pytest.approx([0.5, 3.0, 1.5] if affine is TURNED else [1, 1, 1])


@pytest.mark.parametrize("affine", [LPS, RAS, TURNED])
def test_each_lesion_is_where_the_masks_have_it(tmp_path, affine):
    reference, prediction = np.zeros((2, 12, 14, 10), np.uint8)
    reference[8, 10, 6] = prediction[2, 3, 2] = 3
    reference[3:6, 8:11, 3:6] = prediction[3:6, 8:11, 3:6] = 3
    pack = packed(tmp_path, reference, prediction, affine)
    in_reference, in_prediction = masks_of(pack)
    rows = pack["lesions"]["et"]
    assert [(row["id"], row["kind"]) for row in rows] == [("2", "missed"), ("f1", "false positive"), ("1", "found")]
    for row, (there, predicted, voxels) in zip(rows, [(3, 0, 1), (0, 3, 1), (3, 3, 27)], strict=True):
        z, y, x = row["at"]
        assert (in_reference[z, y, x], in_prediction[z, y, x]) == (there, predicted)
        assert row["volume"] == pytest.approx(voxels * np.prod(pack["spacing"]))


def test_what_is_not_labelled_is_neither_missed_nor_invented(tmp_path):
    reference, prediction = lesions(), lesions()
    reference[:, 8:], prediction[2:5, 9:12, 2:5] = 9, 3
    scoring = Scoring(label_map={9: IGNORE})
    pack = packed(tmp_path, reference, prediction, scoring=scoring)
    in_reference, in_prediction = masks_of(pack)
    assert set(np.unique(in_reference)) == {0, 1, 2, 3, IGNORE}
    assert not in_prediction[in_reference == IGNORE].any()
    assert [row["kind"] for row in pack["lesions"]["et"]] == ["found"]


def test_without_images_the_whole_volume_is_shown(tmp_path):
    pack = packed(tmp_path, lesions(), lesions(), images=())
    assert pack["sequences"] == []
    assert tuple(pack["shape"]) == lesions().T.shape


def test_images_on_another_grid_or_unreadable_are_left_out(tmp_path):
    moved = LPS.copy()
    moved[0, 3] = 50
    save(tmp_path / "ref/00001-000-t1n.nii", np.ones_like(lesions()), moved)
    (tmp_path / "ref/00001-000-t2w.nii").write_text("no NIfTI")
    pack = packed(tmp_path, lesions(), lesions())
    assert [sequence["name"] for sequence in pack["sequences"]] == ["T1c", "FLAIR"]


def test_masks_that_changed_after_scoring(tmp_path):
    pair = Pair("a", save(tmp_path / "r.nii", lesions()), save(tmp_path / "p.nii", lesions()))
    case = Scoring().score(pair)
    (tmp_path / "p.nii").write_text("")
    with pytest.raises(ValueError, match="a: its masks have changed"):
        pack_case(pair, case, Scoring(), 60)


def test_bytes_keep_the_background_and_the_order():
    values = np.zeros((2, 5, 1000), np.float32)
    values[1] = np.arange(1, 5001).reshape(5, 1000) - 2500  # an intensity may be negative
    grey, window = as_bytes(values)
    assert not grey[0].any()
    assert grey[1, 2, 499] == 0  # the one that is exactly 0
    inside = np.delete(grey[1].reshape(-1), 2499).astype(int)
    assert (inside[0], inside[-1]) == (1, 255)
    assert (np.diff(inside) >= 0).all()
    # Percentiles 0.1 and 99.9 span 254 steps: the 1st lies 0.9 / 99.8 of them above the lowest, the 99.5th 99.4 / 99.8.
    assert window == (1 + round(254 * 0.9 / 99.8), 1 + round(254 * 99.4 / 99.8))


def test_bytes_of_a_flat_or_empty_or_broken_image():
    for value in (0, 7, -7):
        grey, (low, high) = as_bytes(np.full((2, 3, 4), value))
        assert (grey > 0).all() == (value != 0)
        assert 0 < low < high <= 256
    assert as_bytes(np.array([[[np.nan, 1.0, 2.0]]]))[0].tolist() == [[[0, 1, 255]]]


def test_strips_hold_the_volume_slice_by_slice(monkeypatch):
    z, y, x = np.meshgrid(np.arange(7), np.arange(32), np.arange(24), indexing="ij")
    values = (10 + 3 * z + 2 * y + x).astype(np.int16)
    monkeypatch.setattr(packing, "_ROWS", 100)  # three slices of 32 rows
    sequence = pack_sequence(values, 80)
    assert len(sequence["strips"]) == 3
    found = grey_of(sequence, values.shape).astype(int)
    assert np.abs(found - as_bytes(values)[0]).max() <= 12
    assert np.abs(found - as_bytes(values)[0]).mean() < 2


def test_a_folder_of_scripts(tmp_path):
    for case in ("BraTS-MET-00001-000", "BraTS-MET-00002-000"):
        write_case(tmp_path / "ref", case)
        save(tmp_path / f"pred/{case}.nii.gz", np.roll(lesions(), 3, axis=0))
    folders = tmp_path / "pred", tmp_path / "ref", tmp_path / "out"
    run(*folders, "report=folder", "pictures=null")
    scripts = sorted((tmp_path / "out/report_cases").iterdir())
    assert [script.name for script in scripts] == ["0.js", "1.js"]
    assert 'id="volumes-0"' not in (tmp_path / "out/report.html").read_text()
    begin = "(window.packed ??= {})[1] = "
    text = scripts[1].read_text()
    assert text.startswith(begin)
    pack = json.loads(text.removeprefix(begin).rstrip(";\n"))
    assert pack["case"] == "00002-000"
    assert [sequence["name"] for sequence in pack["sequences"]] == ["T1c", "FLAIR", "T1", "T2w"]
    run(*folders, "report=folder", "pictures=1")
    assert [script.name for script in (tmp_path / "out/report_cases").iterdir()] == ["0.js"]
    run(*folders)
    assert not (tmp_path / "out/report_cases").exists()
    assert 'id="volumes-0"' in (tmp_path / "out/report.html").read_text()
