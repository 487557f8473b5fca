"""An ensemble as a file: which checkpoints are its members, and what part each of them has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from brats_lightning.config.allow_list import CheckpointError
from brats_lightning.inference.windows import SlidingWindow

_MEMBER = "{ckpt: PATH, weight: 1, regions: [REGION], inference: {overlap: 0.5}}"
_FORM = f"an ensemble is `members: [{{ckpt: PATH, weight: 1}}, …]`, a member {_MEMBER}, all but ckpt optional"


@dataclass(frozen=True)
class EnsembleMember:
    """A checkpoint of an ensemble.

    Attributes:
        ckpt: its file.
        weight: in the mean over the members, above 0.
        regions: it is there for these alone; empty: for all that no member names.
        inference: settings of its own for `SlidingWindow`; of those absent or None its run's are used.
    """

    ckpt: Path
    weight: float = 1.0
    regions: tuple[str, ...] = ()
    inference: Mapping[str, Any] = field(default_factory=dict)


def ensemble_members(paths: Sequence[str]) -> list[EnsembleMember]:
    """The members that ``ckpt`` names.

    Args:
        paths: of checkpoints, and of YAML files ``members: [{ckpt: PATH, weight: NUMBER, regions: [NAME, …],
            inference: {NAME: VALUE, …}}, …]``, whose relative paths start at the file.

    Raises:
        CheckpointError: a file that is no ensemble; it names all faults.
    """
    members: list[EnsembleMember] = []
    for path in map(Path, paths):
        members += _members_of(path.expanduser()) if path.suffix in (".yaml", ".yml") else [EnsembleMember(path)]
    return members


def _members_of(path: Path) -> list[EnsembleMember]:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"ckpt: {path} cannot be read: {error}; {_FORM}") from error
    listed = content.get("members") if isinstance(content, dict) else None
    if not listed or not isinstance(listed, list):
        raise CheckpointError(f"ckpt: {path} lists no members; {_FORM}")
    if more := [str(key) for key in content if key != "members"]:
        raise CheckpointError(f"ckpt: {path} has {', '.join(more)} beside members, which means nothing; {_FORM}")
    members, faults = [], []
    for number, entry in enumerate(listed, 1):
        if not isinstance(entry, dict) or not {"ckpt"} <= set(entry) <= {part.name for part in fields(EnsembleMember)}:
            faults.append(f"member {number} is {entry!r}, not {_MEMBER}")
        elif fault := _fault(entry, path.parent):
            faults.append(f"member {number}, {entry['ckpt']}: {fault}")
        else:
            own = tuple(entry.get("regions") or ()), entry.get("inference") or {}
            members.append(EnsembleMember(_file(entry, path.parent), float(entry.get("weight", 1)), *own))
    if faults:
        raise CheckpointError(f"ckpt: {path}\n  " + "\n  ".join(faults))
    return members


def _file(entry: Mapping[str, Any], folder: Path) -> Path:
    return folder / Path(entry["ckpt"]).expanduser()


def _fault(entry: Mapping[str, Any], folder: Path) -> str | None:
    """What is wrong with a member's values, if anything is."""
    weight, regions, inference = entry.get("weight", 1), entry.get("regions"), entry.get("inference")
    if not isinstance(entry["ckpt"], str) or not _file(entry, folder).is_file():
        return f"there is no checkpoint {folder / str(entry['ckpt'])}"
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
        return f"weight must be a number above 0, got {weight!r}"
    if regions is not None and not (regions and isinstance(regions, list) and all(isinstance(r, str) for r in regions)):
        return f"regions must be a list of regions such as [rc], or absent, got {regions!r}"
    known = [part.name for part in fields(SlidingWindow)]
    if inference is not None and not (isinstance(inference, dict) and set(inference) <= set(known)):
        return f"inference may hold {', '.join(known)}, got {inference!r}"
    given = {name: value for name, value in (inference or {}).items() if value is not None}
    try:
        SlidingWindow(**{"window": (1, 1, 1)} | given)
    except (ValueError, TypeError) as error:
        return f"its inference is {inference!r}: {error}"
    return None
