"""What made a mask: each file of `predict` says so in its header, so that none is taken for another model's."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from brats_lightning.data.nifti import UnreadableFile, read_description
from brats_lightning.inference.ensemble import Ensemble, TrainedModel
from brats_lightning.inference.postprocessing import Postprocessing

_FORMAT = "brats_lightning model={} rules={}"  # at most 80 bytes, which is what a NIfTI header has for it


class ForeignMasks(ValueError):
    """Files in the output folder that the chosen models and rules have not made."""


@dataclass(frozen=True)
class Origin:
    """The models and the rules behind a file, each as a hash of all that its voxels depend on.

    The device and the precision are not among it: they change a voxel here and there, and the jobs of one folder may
    run on different machines.
    """

    model: str
    rules: str

    def __str__(self) -> str:
        return _FORMAT.format(self.model, self.rules)


def origin(ensemble: Ensemble, rules: Postprocessing) -> Origin:
    """Of the masks that these models, in whatever order, and rules make."""
    return Origin(_digest(*sorted(map(_identity, ensemble.models))), _digest(str(rules)))


def check_existing(files: Sequence[Path], wanted: Origin) -> None:
    """Refuse files that were not made by the wanted models and rules.

    Args:
        files: those that exist are looked at.
        wanted: what would make them now.

    Raises:
        ForeignMasks: names all that are of another origin.
    """
    foreign = {file: reason for file in files if file.exists() and (reason := _difference(file, wanted))}
    if foreign:
        listed = "; ".join(f"{file.name} {reason}" for file, reason in list(foreign.items())[:10])
        more = f" and {len(foreign) - 10} more" if len(foreign) > 10 else ""
        raise ForeignMasks(
            f"output: {next(iter(foreign)).parent} holds files of another origin, which would be mixed with the new "
            f"ones: {listed}{more}. Choose another output, move them elsewhere, or replace them with overwrite=true"
        )


def _difference(file: Path, wanted: Origin) -> str | None:
    try:
        found = read_description(file)
    except UnreadableFile:
        return "cannot be read"
    if found == str(wanted):
        return None
    if not found.startswith(_FORMAT.split("=")[0]):
        return "was not written by predict, or by an earlier version"
    return "was made with other post-processing" if f"model={wanted.model}" in found else "was made by another model"


def _identity(model: TrainedModel) -> str:
    data = model.config["data"]
    settings = {name: data[name] for name in ("modalities", "normalisation", "preprocessing", "labels")}
    window = asdict(model.inference)
    del window["batch_size"]  # which changes the memory alone
    settings |= {"model": model.config["model"], "inference": window, "target": model.target.decode}
    weights = (
        part
        for name, tensor in sorted(model.network.state_dict().items())
        for part in (name.encode(), tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    )
    return _digest(_json(settings), *weights)


def _json(settings: Any) -> str:
    return json.dumps(settings, sort_keys=True, default=dict)


def _digest(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()
