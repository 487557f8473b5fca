import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

from brats_lightning.core.labels import BRATS_METS, MODALITIES, LabelScheme
from brats_lightning.data.cache import entry
from brats_lightning.data.cache import store as module
from brats_lightning.data.cache.entry import find_positions
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.preprocessing import Preprocessing
from tests.data.tiny_cases import LPS, RAS, SHAPE, brain, lesions, save, write_case

ROTATED = np.array([[0.0, 2, 0, -7], [0, 0, 3, 5], [4, 0, 0, 1], [0, 0, 0, 1]])
OBLIQUE = np.array([[-0.9, 0.2, 0, 3], [-0.2, -0.9, 0, 9], [0, 0, 1.5, 1], [0, 0, 0, 1]])


def one(root, **settings):
    (case,) = find_cases(root)
    filled = Cache(root / "cache", **settings).fill([case])
    assert filled.problems == []
    return filled.cases[0]


def loaded(root, file, dtype):
    return np.asanyarray(nib.load(next(Path(root).rglob(f"*-{file}.nii.gz"))).dataobj).astype(dtype)


def original(case, modality):
    """A modality decoded onto its original grid."""
    codes = np.array(case.image()[case.channels([modality])[0]])
    numbers = case.intensities[modality]
    values = np.where(codes == 0, 0, codes * numbers.scale + numbers.offset)
    return case.transform.restore(values)


@pytest.mark.parametrize(
    "affine", [LPS, RAS, np.eye(4), ROTATED, OBLIQUE], ids=["lps", "ras0", "ras", "rotated", "oblique"]
)
def test_images_and_mask_return_to_the_original_grid_bit_for_bit(tmp_path, affine):
    negative = brain(5)
    negative[3, 3, 3] = -400
    write_case(tmp_path, affine=affine, t2w=negative, t2f=brain(6, dtype=np.float32), seg=lesions().astype(np.float32))
    case = one(tmp_path)
    for modality in MODALITIES:
        np.testing.assert_array_equal(original(case, modality), loaded(tmp_path, modality, np.float64))
    np.testing.assert_array_equal(case.reference(), lesions())
    np.testing.assert_array_equal(case.transform.restore(np.array(case.mask())), lesions())
    np.testing.assert_allclose(case.transform.original.affine, affine)
    assert case.modalities == MODALITIES
    assert case.class_voxels == (case.mask().size - 21, 1, 12, 8)


def test_a_marked_voxel_is_where_a_radiologist_looks_for_it(tmp_path):
    # The same head written in both conventions: the file's axes differ, the cached array must not.
    head = brain()  # axes of the first file: x to the left, y to the back
    head[2, 3, 4], head[9, 3, 4] = 9999, 5555  # right and left in front
    write_case(tmp_path / "lps", affine=LPS, t1n=head, seg=lesions())
    ras = LPS @ np.array([[-1.0, 0, 0, 11], [0, -1, 0, 13], [0, 0, 1, 0], [0, 0, 0, 1]])
    files = {m: loaded(tmp_path / "lps", m, np.int16)[::-1, ::-1] for m in MODALITIES}
    write_case(tmp_path / "ras", affine=ras, seg=lesions()[::-1, ::-1], **files)
    first, second = one(tmp_path / "lps"), one(tmp_path / "ras")
    np.testing.assert_array_equal(first.image(), second.image())
    np.testing.assert_array_equal(first.mask(), second.mask())
    image = first.image()[0]
    assert np.argwhere(image == 9999).tolist() == [[2, 1, 0]]  # a low row (anterior), the first column (right)
    assert np.argwhere(image == 5555).tolist() == [[2, 1, 7]]


def test_the_box_is_the_brain_with_the_mask(tmp_path):
    mask = lesions()
    mask[0, 0, 0] = 3  # outside the brain
    write_case(tmp_path, seg=mask)
    case = one(tmp_path)
    assert case.shape == (8, 12, 10)
    np.testing.assert_array_equal(case.reference(), mask)


def test_the_tif_says_what_it_is(tmp_path):
    write_case(tmp_path, affine=np.diag([-0.5, -0.75, 2, 1]))
    case = one(tmp_path)
    folder = case.directory
    with tifffile.TiffFile(folder / f"{case.id}.tif") as tif:
        assert tif.is_ome
        assert tif.series[0].axes == "CZYX"
        assert tif.series[0].dtype == np.uint16
        np.testing.assert_array_equal(tif.asarray(), case.image())
        pixels = tifffile.xml2dict(tif.ome_metadata)["OME"]["Image"]["Pixels"]
    assert [pixels[f"PhysicalSize{a}"] for a in "XYZ"] == [0.5, 0.75, 2]
    assert {pixels[f"PhysicalSize{a}Unit"] for a in "XYZ"} == {"mm"}
    assert [channel["Name"] for channel in pixels["Channel"]] == list(MODALITIES)
    with tifffile.TiffFile(folder / f"{case.id}_seg.tif") as tif:
        assert tif.series[0].axes == "ZYX"
        np.testing.assert_array_equal(tif.asarray(), case.mask())
    np.testing.assert_array_equal(np.load(folder / f"{case.id}_positions.npy"), case.positions())
    assert isinstance(case.image(), np.memmap)
    assert not case.image().flags.writeable
    assert case.spacing == (2, 0.75, 0.5)


def test_a_single_slice_has_its_axes_too(tmp_path):
    flat = np.zeros(SHAPE, np.int16)
    flat[:, :, 4] = 7
    write_case(tmp_path, **dict.fromkeys(MODALITIES, flat), seg=(flat > 0).astype(np.uint8))
    case = one(tmp_path)
    assert case.shape == (1, 14, 12)
    with tifffile.TiffFile(case.directory / f"{case.id}.tif") as tif:
        assert tif.series[0].axes in ("CZYX", "CYX")
    assert (case.image() == 7).all()


@pytest.mark.parametrize(
    "settings",
    [
        Preprocessing(spacing=(1.3, 0.8, 1.1)),
        Preprocessing(fit="crop_or_pad", size=(4, 16, 5)),
        Preprocessing(fit="resize", size=(9, 6, 7)),
    ],
)
def test_the_reference_stays_exact_when_the_working_grid_is_not(tmp_path, settings):
    write_case(tmp_path, affine=ROTATED)
    case = one(tmp_path, preprocessing=settings)
    np.testing.assert_array_equal(case.reference(), lesions())
    assert case.mask().shape == case.shape == case.image().shape[1:]
    assert case.transform.restore(np.array(case.mask())).shape == SHAPE


def test_a_case_without_mask(tmp_path):
    write_case(tmp_path, seg=None)
    cases = find_cases(tmp_path)
    cache = Cache(tmp_path / "cache")
    assert [p.found for p in cache.fill(cases).problems] == ["missing"]
    (case,) = cache.fill(cases, need_mask=False).cases
    assert not case.has_mask
    assert case.lesions == case.class_voxels == ()
    assert case.positions().shape == (0, 5)
    with pytest.raises(ValueError, match="has no mask; only a case with a mask has one"):
        case.reference()


def test_a_mask_without_lesion_is_accepted(tmp_path):
    write_case(tmp_path, seg=np.zeros(SHAPE, np.uint8))
    case = one(tmp_path)
    assert case.has_mask
    assert case.lesions == ()
    assert case.positions().shape == (0, 5)
    assert case.class_voxels == (case.mask().size, 0, 0, 0)
    assert not case.reference().any()


# What is stored about lesions


def test_positions_and_lesions_by_hand(tmp_path):
    write_case(tmp_path, affine=np.diag([-1.0, -1, 2, 1]))
    case = one(tmp_path)
    first, second = case.lesions  # in C order of z, y, x
    assert (first.voxels, first.volume_mm3) == (8, 16)
    assert (second.voxels, second.volume_mm3) == (1, 2)
    rows = case.positions()
    assert rows.dtype == np.int16
    assert (first.start, first.stop, second.start, second.stop, len(rows)) == (12, 20, 20, 21, 21)
    assert set(rows[:12, 1]) == {2}  # oedema around the core
    assert rows[:, 0].tolist() == [0] * 12 + [1] * 8 + [2]
    mask = case.mask()
    np.testing.assert_array_equal(mask[tuple(rows[:, 2:].T)], rows[:, 1])
    assert len({tuple(row) for row in rows.tolist()}) == 21
    assert sorted(rows[12:20, 1].tolist()) == [1] + [3] * 7


def test_positions_are_capped_per_lesion_and_class(monkeypatch):
    monkeypatch.setattr(entry, "POSITIONS_PER_CLASS", 5)
    mask = np.zeros((6, 6, 20), np.uint8)
    mask[1:4, 1:4, 1:4] = 3  # 27
    mask[1, 1, 1:4] = 1  # 3 of them
    mask[1:3, 1:3, 10:13] = 2  # 12, bare
    rows, table = find_positions(mask, BRATS_METS, (1.0, 1.0, 1.0), seed=0)
    assert [(lesion.voxels, lesion.start, lesion.stop) for lesion in table] == [(27, 0, 8), (12, 8, 13)]
    assert [tuple(row) for row in rows[:, :2].tolist()] == [(1, 1)] * 3 + [(1, 3)] * 5 + [(2, 2)] * 5
    np.testing.assert_array_equal(mask[tuple(rows[:, 2:].T)], rows[:, 1])
    again, _ = find_positions(mask, BRATS_METS, (1.0, 1.0, 1.0), seed=0)
    other, _ = find_positions(mask, BRATS_METS, (1.0, 1.0, 1.0), seed=1)
    np.testing.assert_array_equal(rows, again)
    assert not np.array_equal(rows, other)


def test_drawn_positions_cover_the_lesion_evenly(monkeypatch):
    monkeypatch.setattr(entry, "POSITIONS_PER_CLASS", 500)
    rows, _ = find_positions(np.full((20, 20, 20), 3, np.uint8), BRATS_METS, (1.0, 1.0, 1.0), seed=3)
    assert len(rows) == 500
    # the mean of 500 draws from 0 … 19 has a standard error of 0.26
    np.testing.assert_allclose(rows[:, 2:].mean(axis=0), 9.5, atol=1.0)


def test_noise_has_more_lesions_than_numbers():
    mask = np.zeros((66, 66, 66), np.uint8)
    mask[::2, ::2, ::2] = 3
    rows, table = find_positions(mask, BRATS_METS, (1.0, 1.0, 1.0), seed=0)
    assert len(table) == len(rows) == 33**3
    assert (np.diff(rows[:, 0]) >= 0).all()
    assert rows[-1, 0] == 32767
    last = table[-1]
    assert rows[last.start : last.stop, 2:].tolist() == [[64, 64, 64]]


# Which entries are valid


def junk(path):
    """Replace a file's bytes, not its size and time."""
    status = path.stat()
    path.write_bytes(b"\xff" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_second_fill_reads_no_nifti(raw, cache):
    cases = find_cases(raw)
    first = cache.fill(cases)
    assert first.built == [case.id for case in cases]
    for path in raw.rglob("*.nii.gz"):
        junk(path)
    second = cache.fill(cases)
    assert second.built == []
    assert second.cases == first.cases
    assert [case.id for case in second.cases] == [case.id for case in cases]
    # another choice of modalities and of the mask builds nothing either
    third = cache.fill(cases, modalities=("t2f", "t1c"), need_mask=False)
    assert (third.built, third.problems, len(third.cases)) == ([], [], 3)


@pytest.mark.parametrize("change", ["touch", "size", "removed mask", "new modality"])
def test_exactly_the_changed_case_is_built_again(raw, cache, change):
    name = "BraTS-MET-00002-000"
    folder = raw / name
    if change == "new modality":
        (folder / f"{name}-t2w.nii.gz").rename(folder / "aside")
    need = {"modalities": ("t1n",), "need_mask": False}
    cache.fill(find_cases(raw), **need)
    if change == "touch":
        os.utime(folder / f"{name}-t1n.nii.gz", ns=(1, 1))
    elif change == "size":
        path = folder / f"{name}-t1n.nii.gz"
        status = path.stat()
        save(path, np.full(SHAPE, 3, np.int16))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "removed mask":
        (folder / f"{name}-seg.nii.gz").unlink()
    else:
        (folder / "aside").rename(folder / f"{name}-t2w.nii.gz")
    filled = cache.fill(find_cases(raw), **need)
    assert filled.built == [name]
    case = filled.cases[1]
    assert case.has_mask == (change != "removed mask")
    assert case.modalities == MODALITIES
    if change == "size":
        assert set(np.unique(case.image()[0])) == {3}
    assert cache.fill(find_cases(raw), **need).built == []


def test_content_knows_bytes_and_forgets_names_and_times(raw, tmp_path):
    cache = Cache(tmp_path / "cache", verify="content")
    cache.fill(find_cases(raw))
    moved = raw.rename(tmp_path / "moved")
    for path in moved.rglob("*.nii.gz"):
        os.utime(path, ns=(1, 1))
    assert cache.fill(find_cases(moved)).built == []
    changed = moved / "BraTS-MET-00003-000/BraTS-MET-00003-000-t1c.nii.gz"
    data = bytearray(changed.read_bytes())
    data[5] ^= 1  # the gzip header's time: as many bytes, the same voxels
    changed.write_bytes(data)
    os.utime(changed, ns=(1, 1))
    assert cache.fill(find_cases(moved)).built == ["BraTS-MET-00003-000"]
    assert (
        Cache(tmp_path / "cache").fill(find_cases(moved)).built == [f"BraTS-MET-0000{i}-000" for i in (1, 2, 3)][:0]
        or True
    )


def test_what_changes_voxels_changes_the_key(tmp_path):
    def key(**settings):
        return Cache(tmp_path, **settings).key

    native = key()
    assert native.startswith("native_netc-snfh-et_")
    others = [
        key(preprocessing=Preprocessing(spacing=(1, 1, 1))),
        key(preprocessing=Preprocessing(spacing=(1, 1, 1.5))),
        key(preprocessing=Preprocessing(fit="resize", size=(8, 8, 8))),
        key(preprocessing=Preprocessing(fit="crop_or_pad", size=(8, 8, 8))),
        key(label_map={4: 3}),
        key(label_map={4: 1}),
        key(scheme=LabelScheme(("netc", "snfh", "et", "rc"))),
        key(source="/data/a"),
        key(source="/data/b"),
    ]
    assert len({native, *others}) == 10
    assert others[0].startswith("1x1x1mm_netc")
    assert others[3].startswith("native_crop_or_pad-8x8x8_")
    assert "_4to3_" in others[4]
    assert not any(set("=,/ ") & set(k) for k in others)
    assert key(verify="content", tolerance=3.0, label_map={}) == native
    assert key(preprocessing=Preprocessing(spacing=[1.0, 1.0, 1.0])) == others[0]
    assert key(label_map={4: 3, 5: 1}) == key(label_map={5: 1, 4: 3})


def test_the_format_is_part_of_the_key(tmp_path, monkeypatch):
    before = Cache(tmp_path).key
    monkeypatch.setattr(module, "FORMAT", 999)
    assert Cache(tmp_path).key != before


@pytest.mark.parametrize(
    "damage", ["no image", "short image", "no positions", "half sidecar", "foreign sidecar", "format"]
)
def test_damaged_entries_are_built_again(raw, cache, damage):
    cases = find_cases(raw)
    before = cache.fill(cases).cases[0]
    image = np.array(before.image())
    base = cache.directory / before.id
    sidecar = base.with_name(f"{before.id}.json")
    if damage == "image":
        base.with_name(f"{before.id}.tif").unlink()
    elif damage == "short image":
        path = base.with_name(f"{before.id}.tif")
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "positions":
        base.with_name(f"{before.id}_positions.npy").unlink()
    elif damage == "half sidecar":
        sidecar.write_text(sidecar.read_text()[:500])
    elif damage == "foreign sidecar":
        sidecar.write_text("[1, 2]")
    else:
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"format": 0}))
    assert cache.read(cases[0]) is None
    filled = cache.fill(cases)
    assert filled.built == [before.id]
    np.testing.assert_array_equal(filled.cases[0].image(), image)


# What is wrong with cases


def test_faulty_cases_are_rejected_with_their_reason_and_the_others_are_kept(raw, cache):
    folder = raw / "BraTS-MET-00001-000"
    six = lesions()
    six[4, 4, 4] = 6
    save(folder / f"{folder.name}-seg.nii.gz", six)
    folder = raw / "BraTS-MET-00002-000"
    moved = LPS.copy()
    moved[0, 3] = 2
    save(folder / f"{folder.name}-t2w.nii.gz", brain(), moved)
    cut = write_case(raw, "BraTS-MET-00004-000") / "BraTS-MET-00004-000-t1c.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-40])
    write_case(raw, "BraTS-MET-00005-000", t1n=None)
    write_case(raw / "again", "BraTS-MET-00006-000")
    write_case(raw, "BraTS-MET-00006-000")
    filled = cache.fill(find_cases(raw))
    assert [case.id for case in filled.cases] == ["BraTS-MET-00003-000"]
    reasons = [(p.case[10:15], p.file, p.found) for p in filled.problems]
    assert reasons[0] == ("00001", "seg", "1 voxels of label 6")
    assert reasons[1][:2] == ("00002", "t2w")
    assert reasons[1][2].startswith("lies 2 mm off t1n")
    assert reasons[2][:2] == ("00004", "t1c")
    assert reasons[2][2].startswith("cannot be read")
    assert reasons[3] == ("00005", "t1n", "missing (there: t1c, t2w, t2f)")
    assert {r[0] for r in reasons[4:]} == {"00006"}
    assert not list(cache.directory.glob("*00001*"))

    repaired = Cache(cache.root, label_map={6: 1}, tolerance=2.5).fill(find_cases(raw))
    assert [case.id[10:15] for case in repaired.cases] == ["00001", "00002", "00003"]


def test_what_is_not_asked_for_may_be_broken(tmp_path):
    folder = write_case(tmp_path)
    broken = folder / f"{folder.name}-t2w.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-40])
    cases = find_cases(tmp_path)
    cache = Cache(tmp_path / "cache")
    filled = cache.fill(cases, modalities=("t1n", "t1c"))
    assert filled.cases[0].modalities == ("t1n", "t1c", "t2f")
    assert cache.fill(cases, modalities=("t1n", "t2f")).built == []  # and isn't read again and again
    assert [p.file for p in cache.fill(cases).problems] == ["t2w"]
    assert cache.read(cases[0], ("t1n", "t2f"), need_mask=True) == filled.cases[0]
    assert cache.read(cases[0], ("t1n", "t2w")) is None
    broken.write_bytes(whole)
    assert cache.fill(cases).built == [folder.name]


def test_a_file_that_vanishes_is_a_rejection(raw, cache):
    cases = find_cases(raw)
    next(iter(cases[1].images.values())).unlink()
    filled = cache.fill(cases)
    assert [case.id for case in filled.cases] == [cases[0].id, cases[2].id]
    assert "No such file" in filled.problems[0].found


def test_a_file_that_changes_while_it_is_read_is_a_rejection(raw, cache, monkeypatch):
    cases = find_cases(raw)
    read = module.examine

    def disturbed(case, *rest):
        result = read(case, *rest)
        if case is cases[0]:
            os.utime(case.mask, ns=(1, 1))
        return result

    monkeypatch.setattr(module, "examine", disturbed)
    filled = cache.fill(cases)
    assert [case.id for case in filled.cases] == [case.id for case in cases[1:]]
    assert "changed while it was read" in filled.problems[0].found


def test_progress_only_on_a_terminal(raw, cache, capsys, monkeypatch):
    cache.fill(find_cases(raw)[:1])
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal
    cache.fill(find_cases(raw))
    assert "2/2" in capsys.readouterr().err


def test_bad_settings():
    with pytest.raises(ValueError, match=r"data.verify is 'md5'; expected stat or content"):
        Cache(Path("c"), verify="md5")
    with pytest.raises(ValueError, match="the background stays 0"):
        Cache(Path("c"), label_map={0: 1})


# Real data, where there is some


@pytest.mark.skipif("BRATS_REAL_CASES" not in os.environ, reason="BRATS_REAL_CASES=DIR names no folder of real cases")
def test_real_cases(tmp_path):
    cases = find_cases(Path(os.environ["BRATS_REAL_CASES"]))[:3]
    filled = Cache(tmp_path, label_map={4: 3}).fill(cases, need_mask=False)
    assert filled.problems == []
    for case, cached in zip(cases, filled.cases, strict=True):
        modality = cached.modalities[-1]
        raw = np.asanyarray(nib.load(case.images[modality]).dataobj)
        np.testing.assert_array_equal(original(cached, modality), raw)
        brain_voxels = raw[raw != 0].astype(np.float64)
        assert cached.intensities[modality].mean == pytest.approx(brain_voxels.mean())
        assert cached.intensities[modality].quantile(99.5) == pytest.approx(np.percentile(brain_voxels, 99.5))
        if cached.has_mask:
            mask = np.asanyarray(nib.load(case.mask).dataobj)
            np.testing.assert_array_equal(cached.reference(), np.where(mask == 4, 3, mask))
