"""The post-processing of a checkpoint: the one its run was tested with, or the one that was tuned for it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from brats_lightning.config.allow_list import build_saved
from brats_lightning.data.probabilities import Record
from brats_lightning.inference.ensemble import TrainedModel
from brats_lightning.inference.postprocessing import Postprocessing, PostprocessingError


def own_postprocessing(model: TrainedModel, trust: Sequence[str] = ()) -> Postprocessing:
    """The rules in a run's config, or none, built as `build_saved` allows."""
    return _built(model.config["postprocessing"], trust, model.path)


def trained_postprocessing(models: Sequence[TrainedModel], trust: Sequence[str] = ()) -> Postprocessing:
    """The rules of the models' own runs, with which these were validated and tested.

    Raises:
        PostprocessingError: the members of an ensemble have different rules.
    """
    return _common(
        {model.path: own_postprocessing(model, trust) for model in models},
        "the members were trained with different rules; choose: postprocessing=none, tuned, hysteresis, …",
    )


def tuned_file(source: Path | str) -> Path:
    """The file in which `brats_lightning.tune` writes the rules for a checkpoint, or for a folder of probabilities."""
    source = Path(source).expanduser()
    if source.is_dir():
        return source / "postprocessing.yaml"
    return source.with_name(f"{source.stem}_postprocessing.yaml")


def tuned(checkpoint: str | Path | Sequence[str | Path], trust: Sequence[str] = ()) -> Postprocessing:
    """The rules that `brats_lightning.tune` chose for a checkpoint or a folder of probabilities, or for several.

    Raises:
        PostprocessingError: one that was not tuned, or several with different rules.
    """
    found = {}
    for path in [checkpoint] if isinstance(checkpoint, str | Path) else checkpoint:
        file = tuned_file(path)
        if not file.is_file():
            given = f"probabilities={path} references=DIR" if Path(path).is_dir() else f"ckpt={path}"
            raise PostprocessingError(f"there is no {file}; make it with: python -m brats_lightning.tune {given}")
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        found[file] = _built(content["chosen"], trust, file)
    return _common(found, "the members were tuned to different rules; tune them together: 'ckpt=[A,B]'")


def recorded(records: Sequence[Record], trust: Sequence[str] = ()) -> Postprocessing:
    """The rules with which `brats_lightning.predict` made masks beside the probabilities that it saved.

    Raises:
        PostprocessingError: it used different ones.
    """
    otherwise = "probabilities were saved with different rules; choose: postprocessing=none, hysteresis, …"
    return _common(all_recorded(records, trust), otherwise)


def all_recorded(records: Sequence[Record], trust: Sequence[str] = ()) -> dict[str, Postprocessing]:
    """As `recorded`, but all different rules, by a file that has them."""
    found = {json.dumps(record.postprocessing, sort_keys=True): record for record in records}
    return {
        f"{record.case}, {record.origin}": _built(record.postprocessing, trust, record.case)
        for record in found.values()
    }


def as_config(rules: Postprocessing) -> dict[str, Any]:
    """The config that builds these rules."""
    target = {part: f"{part.__module__}.{part.__qualname__}" for part in map(type, (rules, *rules.steps.values()))}
    steps = {name: {"_target_": target[type(step)], **asdict(step)} for name, step in rules.steps.items()}
    return {"_target_": target[Postprocessing], "decode": rules.decode, "steps": steps}


def _built(settings: Any, trust: Sequence[str], origin: Path | str) -> Postprocessing:
    rules = build_saved(settings, trust, str(origin))
    if not isinstance(rules, Postprocessing):
        raise PostprocessingError(f"{origin}: no post-processing that this version knows: {settings}")
    return rules


def _common(rules: Mapping[Any, Postprocessing], otherwise: str) -> Postprocessing:
    """The rules that all share, in the same order."""
    if len(set(map(str, rules.values()))) > 1:
        raise PostprocessingError("\n  ".join([otherwise, *(f"{name}: {found}" for name, found in rules.items())]))
    return next(iter(rules.values()))
