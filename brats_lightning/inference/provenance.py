"""Which models and post-processing made a mask: its header says so, and no other model's mask is taken for it."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from brats_lightning.data.nifti import UnreadableFile, read_description
from brats_lightning.inference.ensemble import Ensemble, TrainedModel
from brats_lightning.inference.postprocessing import Postprocessing

log = logging.getLogger(__name__)

_FORMAT = "brats_lightning model={} rules={}"  # at most 80 bytes, the length of a NIfTI header's description


class ForeignMasks(ValueError):
    """Files in the output folder that other models or post-processing rules made."""


def origin(models: Sequence[str], rules: Postprocessing, fusion: Sequence[str] = ()) -> str:
    """The models, in any order, and the rules, each as a hash of everything that their masks depend on.

    Args:
        models: by `identity`.
        rules: of post-processing.
        fusion: how several predictions became one mask, and the models of each; empty for one prediction.
    """
    return _FORMAT.format(_digest(*sorted(models), *fusion), _digest(str(rules)))


def check_existing(wanted: Mapping[Path, str]) -> None:
    """Refuse files that exist and were not made by the wanted models and rules.

    Args:
        wanted: file → its `origin`.

    Raises:
        ForeignMasks: it names all files of another origin.
    """
    foreign = {file: reason for file, by in wanted.items() if file.exists() and (reason := _difference(file, by))}
    if foreign:
        listed = "; ".join(f"{file.name} {reason}" for file, reason in list(foreign.items())[:10])
        more = f" and {len(foreign) - 10} more" if len(foreign) > 10 else ""
        raise ForeignMasks(
            f"output: {next(iter(foreign)).parent} holds files of another origin, which would be mixed with the new "
            f"ones: {listed}{more}. Choose another output, move them elsewhere, or replace them with overwrite=true"
        )


def tell_outdated(kept: Mapping[Path, Iterable[Path]]) -> None:
    """Warn of masks that are kept though what they were made from has changed since.

    Args:
        kept: mask → the files that it was made from.
    """
    changed = {mask: max(map(_time, sources), default=0) for mask, sources in kept.items()}
    if old := [mask.name for mask, time in changed.items() if time > _time(mask)]:
        log.warning(
            "%s: masks are kept that are older than what they were made from: %s%s; remove them, or set "
            "overwrite=true, to make them again",
            *(next(iter(kept)).parent, ", ".join(old[:10]), ", …" * (len(old) > 10)),
        )


def _time(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # a link to a file that is not there any more
        return 0


def _difference(file: Path, wanted: str) -> str | None:
    try:
        found = read_description(file)
    except UnreadableFile:
        return "cannot be read"
    if found == wanted:
        return None
    if not found.startswith(_FORMAT.split("=")[0]):
        return "was not written by predict, or by an earlier version"
    same_model = found.split(" rules=")[0] == wanted.split(" rules=")[0]
    return "was made with other post-processing" if same_model else "was made by another model"


def identities(ensemble: Ensemble) -> list[str]:
    """The `identity` of each member, with its weight where the weights differ, and its regions if it has some."""
    equal = len(set(ensemble.weights)) == 1  # which says nothing
    weights = ["" if equal else f" × {weight:.9g}" for weight in ensemble.weights]
    roles = [f" for {' '.join(sorted(names))}" if names else "" for names in ensemble.regions]
    return [identity(model) + w + r for model, w, r in zip(ensemble.models, weights, roles, strict=True)]


def identity(model: TrainedModel) -> str:
    """A hash of everything that a model's predictions depend on.

    The device and the precision are left out: they change single voxels, and the jobs that fill one folder may run on
    different machines.
    """
    data = model.config["data"]
    settings = {name: data[name] for name in ("modalities", "normalisation", "preprocessing", "labels")}
    window = asdict(model.inference)
    del window["batch_size"]  # changes only how much memory is needed
    settings |= {"model": model.config["model"], "inference": window, "target": model.target.decode}
    weights = (
        part
        for name, tensor in sorted(model.network.state_dict().items())
        for part in (name.encode(), tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    )
    return _digest(json.dumps(settings, sort_keys=True, default=dict), *weights)


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()
