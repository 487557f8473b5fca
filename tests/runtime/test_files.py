import errno
import json
import math
import os
import pickle
import time

import pytest

from brats_lightning.runtime.files import (
    UnwritableFile,
    check_writable,
    remove_leftovers,
    replace_file,
    write_bytes,
    write_json,
    write_text,
)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    assert write_text(path, "früh\r\n") == 7
    assert path.read_bytes() == "früh\r\n".encode()
    assert write_bytes(path, b"late") == 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_has_null_for_nan(tmp_path):
    value = {"a": [1.5, math.nan, {"b": math.nan}], "c": "NaN"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.5, None, {"b": None}], "c": "NaN"}
    assert math.isnan(value["a"][1])


@pytest.mark.parametrize("durable", [True, False])
def test_what_stood_there_stays_when_writing_fails(tmp_path, durable):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def fails(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UnwritableFile, match=r"a\.txt: No space left on device; free some space") as caught:
        replace_file(path, fails, durable)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    seen = []

    def write(temporary):
        temporary.write_text("after")
        seen.append(path.read_text())
        assert temporary.parent == path.parent  # a rename is atomic within a file system only

    replace_file(path, write, durable=True)
    assert seen == ["before"]
    assert path.read_text() == "after"


def test_an_interruption_leaves_nothing_behind(tmp_path):
    def interrupted(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "a.txt", interrupted)
    assert not list(tmp_path.iterdir())


def test_an_error_without_number_still_names_the_file_and_survives_a_process_border(tmp_path):
    def fails(temporary):
        raise OSError("6 requested and 2 written")  # numpy's, on a full disk

    with pytest.raises(UnwritableFile) as caught:
        replace_file(tmp_path / "a.tif", fails)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert "a.tif: 6 requested and 2 written; the disk may be full" in str(copy)


def test_leftovers_of_the_killed_go_and_those_at_work_stay(tmp_path):
    old, young, other = (tmp_path / name for name in (".a.1.tmp", ".a.2.tmp", "a.txt"))
    for file in (old, young, other):
        file.touch()
    os.utime(old, (0, time.time() - 4000))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == [young, other]


def test_a_read_only_file_system_is_named_as_such(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)  # Linux says so even of a file that is not there
    with pytest.raises(UnwritableFile, match=r"a\.txt: Read-only file system; choose a folder"):
        replace_file(tmp_path / "a.txt", refuse)


def test_whether_a_folder_can_be_written_to(tmp_path, monkeypatch):
    check_writable(tmp_path)
    assert not list(tmp_path.iterdir())

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(UnwritableFile, match=f"cannot write {tmp_path}: Read-only file system; choose a folder"):
        check_writable(tmp_path)
