"""Where a run comes from: ``provenance.yaml`` in its folder, beside its config.

It holds the seed, each start of the run (command, code, packages, hardware), and the cases with their part of the
split. A start after the first holds only what differs from the one before. Changes of the code that are in no commit
are in ``code.diff``; those of the repository around the working folder, where a user's own networks may be, are in
``working_folder.diff``.
"""

import importlib.metadata
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from brats_lightning.runtime.environment import Repository, hardware, packages, repository
from brats_lightning.runtime.files import write_bytes, write_text

if TYPE_CHECKING:
    from brats_lightning.data.datamodule import CaseData

FILE = "provenance.yaml"
_HEADER = "# How this run came about; `python -m brats_lightning.compare` says in which of it two runs differ.\n"


def record_start(run: Path, seed: int, overrides: Sequence[str]) -> None:
    """Add a start of the run to its record, and write the changes of the code that are in no commit.

    Args:
        run: its folder.
        seed: of the run.
        overrides: of the command line, as Hydra was given them.
    """
    record = read_provenance(run) or {"seed": seed, "starts": []}
    before = latest(record)
    state = {"code": _code(run), "packages": packages(), "hardware": hardware()}
    start: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "overrides": list(overrides),
        "folder": str(Path.cwd()),
    }
    start |= {name: values for name, values in state.items() if values != before.get(name)}
    _write(run, record | {"starts": [*record["starts"], start]})


def record_data(run: Path, description: str, data: "CaseData") -> None:
    """Add the cases of a run to its record."""
    from brats_lightning.data.cache.entry import FORMAT

    record = read_provenance(run) or {}
    cases = {"description": description, "cache_format": FORMAT, "cases": data.identities()}
    _write(run, record | {"data": cases})


def read_provenance(run: Path) -> dict[str, Any] | None:
    """The record of a run; None if there is none."""
    file = run / FILE
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None


def latest(record: dict[str, Any]) -> dict[str, Any]:
    """The state at the last start of a run."""
    state: dict[str, Any] = {}
    for start in record["starts"]:
        state |= start
    return state


def _code(run: Path) -> dict[str, Any]:
    """The program, and the repository around the working folder if it is another one; None if there is none."""
    home = Path(__file__).resolve().parents[2]
    program, around = repository(home), repository(Path.cwd())
    if program is not None and program.folder.resolve() != home:
        program = None  # installed into an environment that lies in somebody's repository
    if program is not None and around is not None and around.folder == program.folder:
        around = None
    try:
        version = importlib.metadata.version("brats-lightning")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return {
        "program": {"version": version, **_described(program, run, "code")},
        "working_folder": _described(around, run, "working_folder") or None,
    }


def _described(found: Repository | None, run: Path, name: str) -> dict[str, Any]:
    if found is None:
        return {}
    changes = {"changed": list(found.changed), "diff": _kept(found.diff.encode(), run, name)}
    return {"folder": str(found.folder), "commit": found.commit, **changes}


def _kept(diff: bytes, run: Path, name: str) -> str | None:
    """The name of the run's file with these changes, which an earlier start may have written; None without changes."""
    if not diff:
        return None
    files = sorted(run.glob(f"{name}*.diff"))
    if (same := next((file for file in files if file.read_bytes() == diff), None)) is not None:
        return same.name
    file = run / (f"{name}_{len(files) + 1}.diff" if files else f"{name}.diff")
    write_bytes(file, diff)
    return file.name


def _write(run: Path, record: dict[str, Any]) -> None:
    head = {name: value for name, value in record.items() if name != "data"}
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 120}
    text = yaml.safe_dump(head, default_flow_style=False, **options)
    if "data" in record:  # a line for each case
        text += yaml.safe_dump({"data": record["data"]}, default_flow_style=None, **options)
    write_text(run / FILE, _HEADER + text)
