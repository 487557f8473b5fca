"""Writing files: whole or not at all, whatever ends the program meanwhile."""

import csv
import errno
import io
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

_SUFFIX = ".tmp"
_HINTS = {
    errno.ENOSPC: "; free some space, or choose another folder",
    errno.EDQUOT: "; the quota is used up: free some space, or choose another folder",
    errno.EROFS: "; choose a folder that can be written to",
    errno.EACCES: "; choose a folder that can be written to",
    errno.EEXIST: "; a file of this name is in the way: choose another folder",
    errno.ENOTDIR: "; a file is in the way: choose another folder",
}


class UnwritableFile(OSError):
    """A file that cannot be written: which one, why, and what to do. What stood there before is unchanged."""

    def __str__(self) -> str:
        return str(self.args[1])


def unwritable(path: Path | str, error: BaseException) -> UnwritableFile:
    """The `UnwritableFile` for an error of the operating system, numpy or torch."""
    number = getattr(error, "errno", None)
    # Neither numpy nor torch says in its error that a disk is full: each reports bytes that were not written.
    reason = os.strerror(number) if number else f"{error}; the disk may be full"
    return UnwritableFile(number, f"cannot write {path}: {reason}{_HINTS.get(number or 0, '')}")


def replace_file(path: Path | str, write: Callable[[Path], Any], durable: bool = False) -> int:
    """Let ``write`` make a file beside ``path``, then rename it: a reader finds the old one or the new one, never half.

    Args:
        path: of the file to make or to replace; its folder must exist.
        write: called with the temporary path, whose name starts with a dot and ends with ``.tmp``.
        durable: wait until the content is on the disk before it gets its name, so that a power cut, too, leaves one of
            the two; for files that cannot be made again.

    Returns:
        The file's size in bytes.

    Raises:
        UnwritableFile: for want of space or permission; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_SUFFIX}")
    try:
        write(temporary)
        if durable:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        size = temporary.stat().st_size
        os.replace(temporary, path)  # noqa: PTH105
    except UnwritableFile:
        raise
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # on a read-only file system even of a file that is not there
            temporary.unlink()
    return size


def make_folder(path: Path | str) -> Path:
    """The folder ``path``, made with those above it if need be.

    Raises:
        UnwritableFile: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    return Path(path)


def check_writable(folder: Path) -> None:
    """Find out whether files can be written into a folder, before long work whose result belongs there.

    Raises:
        UnwritableFile: they cannot.
    """
    probe = folder / f".{uuid.uuid4().hex[:12]}{_SUFFIX}"
    try:
        probe.write_bytes(b"content, which a full disk has no place for")
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        with suppress(OSError):
            probe.unlink()


def write_text(path: Path | str, text: str) -> int:
    """`replace_file` with UTF-8 text, its lines ended as they stand."""
    return replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))


def write_json(path: Path | str, value: Any) -> int:
    """`replace_file` with `json_text`."""
    return write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The value as JSON, a line for each entry, with null for NaN."""
    return json.dumps(without_nan(value), indent=1) + "\n"


def without_nan(value: Any) -> Any:
    """A copy with None for each NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV, NaN and None as empty cells."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(without_nan, map(list, rows)))
    return text.getvalue()


def write_bytes(path: Path | str, content: bytes) -> int:
    """`replace_file` with bytes."""
    return replace_file(path, lambda temporary: temporary.write_bytes(content))


def remove_leftovers(folder: Path, older_than: float | int = 3600) -> None:
    """Remove what killed processes left in a folder; younger files (in seconds) may belong to a running one."""
    for leftover in folder.glob(f"*{_SUFFIX}"):
        try:
            if time.time() - leftover.stat().st_mtime > older_than:
                leftover.unlink()
        except OSError:  # another process has removed it, or owns it
            pass
