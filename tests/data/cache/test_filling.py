"""Filling the cache: several processes, and a disk that refuses."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from brats_lightning.core.labels import MODALITIES
from brats_lightning.data.cache import entry
from brats_lightning.data.cache import store as module
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.runtime import locks
from brats_lightning.runtime.files import UnwritableFile, unwritable
from brats_lightning.runtime.workers import DeadWorker
from tests.data.tiny_cases import SHAPE, write_case


def test_the_same_in_parallel(raw, cache, tmp_path):
    cases = find_cases(raw)
    alone = cache.fill(cases)
    cut = write_case(raw, "BraTS-MET-00004-000", seg=np.full(SHAPE, 9, np.uint8))
    cases = find_cases(raw)
    parallel = Cache(tmp_path / "other").fill(cases, workers=2)
    assert [case.id for case in parallel.cases] == [case.id for case in alone.cases]
    assert [p.case for p in parallel.problems] == [cut.name]
    for a, b in zip(alone.cases, parallel.cases, strict=True):
        np.testing.assert_array_equal(a.image(), b.image())
        np.testing.assert_array_equal(a.positions(), b.positions())
        assert a.lesions == b.lesions


FILL = """
import sys
from pathlib import Path
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.layouts.brats import find_cases
assert "torch" not in sys.modules
filled = Cache(Path(sys.argv[2])).fill(find_cases(sys.argv[1]))
assert not filled.problems, filled.problems
for case in filled.cases:
    assert (case.image()[0] > 0).any()
    assert (case.reference() > 0).sum() == 21
print(len(filled.cases))
"""


def test_processes_filling_one_cache_at_once(raw, cache):
    for i in range(4, 9):
        write_case(raw, f"BraTS-MET-0000{i}-000")
    command = [sys.executable, "-c", FILL, str(raw), str(cache.root)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": Path(__file__).parents[3]}
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.split() == ["8"]
    assert not list(cache.directory.glob("*.tmp"))
    assert cache.fill(find_cases(raw)).built == []


def test_an_entry_another_process_has_built_is_kept(raw, cache, monkeypatch):
    case = find_cases(raw)[0]
    assert cache.fill([case]).built == [case.id]
    monkeypatch.setattr(module, "examine", None)  # would fail
    assert cache.build(case, MODALITIES, True) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, None], ids=["space", "as numpy says it"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_names_the_file_and_leaves_nothing_half(raw, cache, monkeypatch, number, workers):
    cases = find_cases(raw)
    sound = cache.fill(cases[:1])
    error = OSError(number, "No space left on device") if number else OSError("6 requested and 2 written")

    def full(path, *_, **__):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(entry.tifffile, "imwrite", full)
    broken_off = unwritable(cache.directory / f"{cases[1].id}.tif", error)
    monkeypatch.setattr(module, "process_pool", lambda n: OtherTask(n, _raise, broken_off))
    reason = "No space left on device; free some space" if number else "6 requested and 2 written; the disk may be full"
    with pytest.raises(UnwritableFile, match=rf"cannot write .*BraTS-MET-0000[23]-000\.tif: {reason}") as caught:
        cache.fill(cases, workers=workers)
    assert "brats_lightning" in str(caught.traceback[-1].path)  # raised by us: the commands show one line
    monkeypatch.undo()
    assert {path.name[:15] for path in cache.directory.iterdir()} == {"BraTS-MET-00001"}
    assert cache.fill(cases).cases[0] == sound.cases[0]


class OtherTask(ProcessPoolExecutor):
    """A pool that does something else than it is asked to."""

    def __init__(self, workers, *task):
        super().__init__(workers, get_context("spawn"))
        self.task = task

    def submit(self, *_):
        return super().submit(*self.task)


def _raise(error):
    raise error


def test_a_directory_that_cannot_be_made(raw, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableFile, match=r"cannot write .*file/native.*: Not a directory; .*choose another"):
        Cache(tmp_path / "file").fill(find_cases(raw))


def test_leftovers_of_a_killed_process_go(raw, cache):
    cache.directory.mkdir(parents=True)
    old, new = cache.directory / "a.tif.1.tmp", cache.directory / "b.tif.2.tmp"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    cache.fill(find_cases(raw))
    assert not old.exists()
    assert new.exists()


def test_a_worker_that_dies_is_explained(raw, cache, monkeypatch):
    monkeypatch.setattr(module, "process_pool", lambda n: OtherTask(n, os._exit, 1))
    cases = find_cases(raw)
    with pytest.raises(DeadWorker, match=rf"died, of those at {cases[0].id}, {cases[1].id}: .*data.cache_workers=1"):
        cache.fill(cases, workers=2)


def test_who_waited_for_the_lock_builds_only_what_is_left(raw, cache, monkeypatch, caplog):
    caplog.set_level("INFO")
    cases = find_cases(raw)
    lock = locks.alone

    @contextmanager
    def waiting(path, work):
        with lock(path, work):  # as if another process had held it until now
            monkeypatch.setattr(module, "alone", lock)
            cache.build(cases[0], MODALITIES, True)
            cache.build(cases[1], MODALITIES, True)
            yield

    monkeypatch.setattr(module, "alone", waiting)
    monkeypatch.setattr(module, "process_pool", None)  # one case needs no pool
    filled = cache.fill(cases, workers=2)
    assert filled.built == [cases[2].id]
    assert [case.id for case in filled.cases] == [case.id for case in cases]
