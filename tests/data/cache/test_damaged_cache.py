"""Entries of the cache that were written well and are not what is wanted any more."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from brats_lightning.core.labels import MODALITIES
from brats_lightning.data.cache import entry
from brats_lightning.data.cache.entry import DamagedEntry
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.preprocessing import Preprocessing
from tests.data.tiny_cases import LPS, brain, save, write_case


def flip(path, at):
    """Change one byte and nothing else, not even the time."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has opened no entry yet."""
    monkeypatch.setattr(entry, "_SOUND", set())


ARRAYS = [".tif", "_seg.tif", "_positions.npy", "_reference.tif"]


@pytest.mark.parametrize("at", [3, "offset", -1])
@pytest.mark.parametrize("suffix", ARRAYS)
def test_a_flipped_byte_is_noticed_and_the_entry_built_again(raw, tmp_path, fresh, caplog, suffix, at):
    cache = Cache(tmp_path / "cache", preprocessing=Preprocessing(fit="crop_or_pad", size=(6, 6, 6)))
    cases = find_cases(raw)[:2]
    before = cache.fill(cases)
    array = next(array for array in before.cases[1].arrays.values() if array.file.endswith(f"000{suffix}"))
    path = cache.directory / array.file
    written = path.read_bytes()
    flip(path, array.offset + 3 if at == "offset" else at)
    entry._SOUND.clear()
    with pytest.raises(DamagedEntry, match=rf"entry of {cases[1].id} is damaged: {path}: .*brats_lightning.preprocess"):
        cache.read(cases[1]).check()
    filled = cache.fill(cases, workers=2)
    assert filled.built == [cases[1].id]
    assert f"{path}: its bytes are not those that were written; it is built again" in caplog.text
    assert path.read_bytes() == written
    assert filled.cases == before.cases
    assert cache.fill(cases).built == []


@pytest.mark.parametrize("key", ["offset", "distance", "std", "voxels"])
def test_a_sidecar_with_another_number_is_built_again(raw, cache, key):
    case = find_cases(raw)[0]
    cache.fill([case])
    sidecar = cache.directory / f"{case.id}.json"
    text = sidecar.read_text()
    values = json.loads(text)
    if key == "offset":  # of the mask, whose neighbours look as good
        values["arrays"]["mask"]["offset"] += 1
    elif key == "distance":
        values["distance"] += 0.01
    elif key == "std":
        values["intensities"]["t1c"]["std"] *= 1.1
    else:
        values["class_voxels"][1] += 1
    sidecar.write_text(json.dumps(values))
    assert cache.read(case) is None
    assert cache.fill([case]).built == [case.id]
    assert sidecar.read_text() == text


def test_a_file_is_compared_once_in_a_process(raw, cache, fresh, monkeypatch):
    (case,) = cache.fill(find_cases(raw)[:1]).cases
    summed = []
    checksum = entry._checksum
    monkeypatch.setattr(entry, "_checksum", lambda path: summed.append(path.name) or checksum(path))
    for _ in range(3):
        case.image(), case.mask(), case.positions()
        again = cache.read(find_cases(raw)[0])
        again.check()
    assert sorted(summed) == [f"{case.id}{end}" for end in (".tif", "_positions.npy", "_seg.tif")]
    os.utime(case.directory / f"{case.id}.tif", ns=(1, 1))  # somebody may have written to it
    case.image()
    assert summed[3:] == [f"{case.id}.tif"]


@pytest.mark.parametrize("change", ["written to", "cut", "gone"])
def test_an_entry_that_goes_bad_in_use_names_its_file(raw, cache, change):
    (case,) = cache.fill(find_cases(raw)[:1]).cases
    case.mask()
    path = case.directory / f"{case.id}_seg.tif"
    whole, offset = path.read_bytes(), case.arrays["mask"].offset
    if change == "written to":
        path.write_bytes(whole[: offset + 5] + b"\7" + whole[offset + 6 :])
    elif change == "cut":
        path.write_bytes(whole[: offset + 5])
    else:
        path.unlink()
    with pytest.raises(DamagedEntry, match=rf"{path}: .*python -m brats_lightning.preprocess"):
        case.mask()


def test_a_case_is_judged_by_the_tolerance_of_today(tmp_path):
    folder = write_case(tmp_path / "raw")
    moved = LPS.copy()
    moved[0, 3] += 40
    save(folder / f"{folder.name}-t2f.nii.gz", brain(), moved)
    cases = find_cases(tmp_path / "raw")
    lenient, strict = (Cache(tmp_path / "cache", tolerance=tolerance) for tolerance in (50.0, 0.1))
    assert lenient.key == strict.key
    assert lenient.fill(cases).cases[0].distance == 40
    assert lenient.read(cases[0]) is not None
    assert strict.read(cases[0]) is None
    (problem,) = strict.fill(cases).problems
    assert (problem.file, problem.expected) == ("t2f", "≤ 0.1 mm")
    # without the one that is off it is a sound case, then not enough for who tolerates it
    assert strict.fill(cases, MODALITIES[:3]).cases[0].distance == 0
    assert lenient.read(cases[0], MODALITIES) is None
    assert Cache(tmp_path / "cache", tolerance=40.0).fill(cases).built == [folder.name]
    assert Cache(tmp_path / "cache", tolerance=39.9).read(cases[0]) is None


def test_another_patient_is_another_entry(raw, cache):
    # who is in which part of a split hangs on it
    case = find_cases(raw)[0]
    cache.fill([case])
    assert cache.read(replace(case, patient="other")) is None


def test_remarks_are_kept(tmp_path):
    float_brain = brain(dtype=np.float32)
    float_brain[float_brain == 0] = -0.5
    write_case(tmp_path, t2f=float_brain)
    (case,) = Cache(tmp_path / "cache").fill(find_cases(tmp_path)).cases
    assert case.remarks == ("t2f: all corners are -0.5, not 0 as outside the brain: the whole volume counts as brain",)
