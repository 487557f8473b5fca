"""The folder of a run: made anew, and removed if the start fails before there is anything of value in it."""

import itertools
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from brats_lightning.config.command_line import unquoted
from brats_lightning.runtime.files import UnwritableFile, make_folder
from brats_lightning.runtime.locks import InUse, claimed

# What every start writes: the settings, which the command line has, and lines that the terminal has shown.
_RECORDS = (
    *("*.log", ".hydra", ".lock", ".submitit", "config.yaml", "multirun.yaml", "split.json"),
    *("provenance.yaml", "*.diff"),
)

_made: set[Path] = set()  # by this process


@cache
def new_folder(path: str) -> str:
    """Make a new folder ``path``, with a number appended if it exists; the same one whenever this process asks again.

    So two runs that start within the same second each get their own.
    """
    for number in itertools.count(1):
        folder = Path(path if number == 1 else f"{path}-{number}").expanduser()
        try:
            make_folder(folder.parent)
            with suppress(FileExistsError):
                folder.mkdir()
                break
        except OSError as error:  # Hydra would wrap it
            print(f"error: the run folder: {error}; or set paths.outputs=DIR", file=sys.stderr)
            raise SystemExit(1) from None
    _made.add(folder)
    return str(folder)


def named_folder(arguments: Sequence[str]) -> Path | None:
    """The folder that the command line gives a run, ``hydra.run.dir``; it counts as made here if it does not exist."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("hydra.run.dir=")]
    if not given:
        return None
    folder = Path(unquoted(given[-1])).expanduser()
    if not folder.exists():
        _made.add(folder)
    return folder


def remove_unused() -> None:
    """Remove the folders that this process made for a run, where there is nothing in them but `_RECORDS`.

    One that another process of the same run works in, or of the same command started at the same time, is left alone.
    """
    for folder in _made:
        if folder.is_dir() and all(any(map(entry.match, _RECORDS)) for entry in folder.iterdir()):
            with suppress(InUse, UnwritableFile), claimed(folder / ".lock", f"the run folder {folder}"):
                shutil.rmtree(folder, ignore_errors=True)
    _made.clear()
