import errno
import fcntl
import logging
import subprocess
import sys
import threading

import pytest

from brats_lightning.runtime.files import UnwritableFile
from brats_lightning.runtime.locks import InUse, alone, claimed

HOLD = """
import sys
from pathlib import Path
from brats_lightning.runtime.locks import alone
with alone(Path(sys.argv[1]), "sleeps"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_waits_for_the_other_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "lock"
    order = []
    inside, told = threading.Event(), threading.Event()

    class Told(logging.Handler):
        def emit(self, record):
            told.set()

    handler = Told()
    logging.getLogger("brats_lightning").addHandler(handler)

    def second():
        inside.wait()
        with alone(path, "fills this cache", patience=0):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with alone(path, "fills this cache"):
        inside.set()
        assert told.wait(60)
        order.append("first")
    thread.join()
    logging.getLogger("brats_lightning").removeHandler(handler)
    assert order == ["first", "second"]
    assert caplog.messages == [f"waiting for another process that fills this cache (it holds {path})"]


def test_a_killed_holder_lets_go(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout.readline() == "held\n"
        with (tmp_path / "lock").open("w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        holder.kill()
        with alone(tmp_path / "lock", "sleeps"):
            pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with alone(tmp_path / "lock", "works"), alone(tmp_path / "lock", "works"):
        pass


def test_an_error_within_is_not_taken_for_one_of_the_lock(tmp_path):
    with pytest.raises(OSError, match="mine"), alone(tmp_path / "lock", "works"):
        raise OSError("mine")


def test_a_lock_that_cannot_be_made(tmp_path):
    with pytest.raises(UnwritableFile, match=r"cannot write .*nowhere"), alone(tmp_path / "nowhere/lock", "works"):
        pass


def test_a_lock_file_of_another_user(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.touch()
    monkeypatch.setattr(type(path), "open", _only_reading(type(path).open))
    with alone(path, "works"), pytest.raises(BlockingIOError), path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(UnwritableFile, match="cannot write"), claimed(path, "the run folder"):
        pass


def _only_reading(opened):
    def only_reading(self, mode="r"):
        if mode != "r":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, mode)

    return only_reading


CLAIM = """
import os, sys, time
from pathlib import Path
from brats_lightning.runtime.locks import claimed
with claimed(Path(sys.argv[1]), "the run folder"):
    if not os.fork():  # as a reader of batches is, for seconds after its parent was killed
        os.closerange(0, 2)
        time.sleep(5)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_is_claimed_is_refused_to_others_until_its_process_has_ended(tmp_path):
    lock = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", CLAIM, lock], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InUse, match="the run folder is in use"), claimed(lock, "the run folder"):
            pass
        other.kill()
        other.wait()
        with claimed(lock, "the run folder"):  # what it has forked lives on
            assert lock.exists()
