"""In which of their records the folders of runs differ."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brats_lightning.config.values import leaves, path_below, read_yaml, within

SECTIONS = ("settings", "seed", "split", "data", "code", "packages", "hardware", "scores")
UNKNOWN = "?"  # of a run without this record
# Settings that say where something lies or is shown, or what it is called, and the seed, which has its own section.
_ELSEWHERE = ("paths", "logger", "name", "data.description", "resume", "seed")
_SPLIT = ("split_file", "split_from", "split_seed", "folds", "fold", "val_share", "test_share")  # of `data`
_VOXELS = ("data.preprocessing", "data.labels", "data.label_map", "data.ignore_label")  # what cached cases depend on

Flat = Mapping[str, Any]  # name → plain value


class NoRun(ValueError):
    """A folder that is not the folder of a run."""


def differences(runs: Sequence[Path]) -> dict[str, dict[str, list[Any]]]:
    """What differs between runs: section (of `SECTIONS`) → name → the value of each run.

    None is the value of what a run does not have, `UNKNOWN` that of a run without such a record, which is compared with
    none. Differing cases are named by what differs: ``there``, ``bytes`` of the raw files, or the checksum of ``image``
    or ``mask`` in the cache, which is left out where the runs preprocess or label differently.

    Raises:
        NoRun: fewer than two folders, or one without config or split; it names all of them.
    """
    needed = ("config.yaml", "split.json")
    if faulty := [str(run) for run in runs if not all((run / name).is_file() for name in needed)]:
        raise NoRun(f"runs: not the folder of a run (with {' and '.join(needed)}): {', '.join(faulty)}")
    if len(runs) < 2:
        raise NoRun(f"runs: two or more are compared, '[A,B]', got {len(runs)}")
    records = [_records(run) for run in runs]
    found = {name: _differing([record.get(name) for record in records]) for name in SECTIONS}
    if not found["split"]:  # then how it was made has no effect
        for name in _SPLIT:
            found["settings"].pop(f"data.{name}", None)
    formats = {record.get("cache_format") for record in records} - {None}
    if len(formats) > 1 or any(within(name, _VOXELS) for name in found["settings"]):
        found["data"] = {name: row for name, row in found["data"].items() if not name.endswith((" image", " mask"))}
    return found


def missing(run: Path) -> list[str]:
    """The sections that a run has no record of."""
    records = _records(run)
    return [name for name in SECTIONS if records.get(name) is None]


def _differing(records: Sequence[Flat | None]) -> dict[str, list[Any]]:
    """The names whose values differ between the records that are there."""
    known = [record for record in records if record is not None]
    rows = {
        name: [UNKNOWN if record is None else record.get(name) for record in records]
        for name in dict.fromkeys(name for record in known for name in record)
    }
    return {
        name: row for name, row in rows.items() if any(record.get(name) != known[0].get(name) for record in known[1:])
    }


def _records(run: Path) -> dict[str, Any]:
    """Section → its record as names and values, of those that the run has."""
    from brats_lightning.training.provenance import latest, read_provenance

    config = read_yaml(run / "config.yaml")
    own = config["paths"]["run_dir"]
    settings = dict(leaves(config))
    records: dict[str, Any] = {"seed": {"seed": settings.get("seed")}}
    records["settings"] = {key: _local(value, own) for key, value in settings.items() if not within(key, _ELSEWHERE)}
    split = _json(run / "split.json")
    records["split"] = {name: part for part, names in split.items() for name in names}
    if (scores := _json(run / "metrics.json")) is not None:
        records["scores"] = scores
    if (origin := read_provenance(run)) is not None:
        state = latest(origin)
        records |= {"packages": state["packages"], "hardware": state["hardware"], "code": _code(run, state["code"])}
        if "data" in origin:
            records |= {"data": _cases(origin["data"]["cases"]), "cache_format": origin["data"]["cache_format"]}
    return records


def _local(value: Any, own: str) -> Any:
    """A path into the run's own folder as ``RUN/…``, any other value as it is."""
    rest = path_below(value, own)
    return value if rest is None else f"RUN{rest}"


def _code(run: Path, code: Mapping[str, Any]) -> Flat:
    """Version and commit of the program, the commit around the working folder, and a hash of what is in no commit."""
    flat = {"program version": code["program"]["version"]}
    for name, repository in code.items():
        repository, words = repository or {}, name.replace("_", " ")
        flat[f"{words} commit"] = repository.get("commit")
        if file := repository.get("diff"):
            text = (run / file).read_bytes() if (run / file).is_file() else b"lost"
            digest = hashlib.blake2b(text, digest_size=4).hexdigest()
            flat[f"{words} changes"] = f"{digest}: {', '.join(repository['changed'])}"
    return flat


def _cases(cases: Mapping[str, Mapping[str, Any]]) -> Flat:
    """What the cases of the split are recognised by; others have no effect."""
    used = {name: values for name, values in cases.items() if values["part"] is not None}
    kinds = ("bytes", "image", "mask")
    return {f"{name} there": True for name in used} | {
        f"{name} {kind}": values[kind] for name, values in used.items() for kind in kinds
    }


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
