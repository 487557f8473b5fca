"""Locks: one process at a time, where several of a job would do the same work."""

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from brats_lightning.runtime.files import UnwritableFile, unwritable

log = logging.getLogger(__name__)


class InUse(ValueError):
    """Another process holds a lock that nobody should wait for."""


@contextmanager
def claimed(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path`` for the block, or refuse; where the file system has no locks nobody is refused.

    Args:
        path: of the file, which stays; its folder must exist.
        what: is claimed; for the message.

    Raises:
        InUse: another process holds it.
        UnwritableFile: the file cannot be made.
    """
    with _opened(path) as file:
        try:
            # Not flock: forked workers would inherit that lock and hold it for the moments they outlive this process.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise InUse(f"{what} is in use by another process, which holds {path}") from None
        except OSError:
            pass
        yield


@contextmanager
def alone(path: Path, work: str, patience: int | float = 2) -> Iterator[None]:
    """Hold the lock file ``path`` for the block; other processes wait, and then see what is left to do.

    The system frees the lock of a process that ends, however it ends. Where the file system has no locks all proceed
    at once, which must cost nothing but time.

    Args:
        path: of the file, which stays; its folder must exist.
        work: what the holder does, as in "fills the cache".
        patience: seconds after which a waiting process says so.

    Raises:
        UnwritableFile: the file cannot be made.
    """
    try:
        file = _opened(path)
    except UnwritableFile:
        if not path.exists():
            raise
        file = path.open()  # another user's: such a lock can be held by who may only read
    with file:
        # Another error than that of a held lock: there are none on this file system.
        with suppress(OSError):
            _wait(file.fileno(), path, work, patience)
        yield


def _opened(path: Path) -> TextIO:
    try:
        return path.open("a")
    except OSError as error:
        raise unwritable(path, error) from error


def _wait(file: int, path: Path, work: str, patience: int | float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                break
            time.sleep(0.05)
    log.info("waiting for another process that %s (it holds %s)", work, path)
    fcntl.flock(file, fcntl.LOCK_EX)
