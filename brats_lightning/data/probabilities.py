"""Class probabilities of a case: on a box of original voxels, and as a file that can be decoded without a network."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from brats_lightning.core.geometry import GridTransform, read_box
from brats_lightning.core.labels import LabelScheme
from brats_lightning.data.nifti import (
    Header,
    UnreadableFile,
    header_of,
    read_comment,
    read_description,
    read_volumes,
    volumes_like,
    write_nifti,
)

ENDING = "_probabilities.nii.gz"  # after the name of the case's mask

_STEPS = 65000  # from probability 0 to 1; 0.5, 0.7 and the like, which thresholds are, stay exact
_FORMAT = 1  # of the record in the header; increase it when its content changes
_AGAIN = "predict the case again, with probabilities=true"


@dataclass(frozen=True)
class Probabilities:
    """Class probabilities, which sum to 1 in each voxel, on a box of original voxels (an exact grid transform).

    Attributes:
        values: means over the models.
        transform: of the box.
        spread: standard deviation over the models of the probability of any foreground class; None of a single model.
    """

    values: Float32[np.ndarray, "k z y x"]
    transform: GridTransform
    spread: Float32[np.ndarray, "z y x"] | None = None

    def __post_init__(self) -> None:
        if not self.transform.exact:
            raise ValueError("probabilities must lie on original voxels; restore them first")

    def rounded(self) -> "Probabilities":
        """What a file holds of them: the part of the box within the original grid, in steps of 1/65000.

        Values and spread are rounded where they are, since there may be no memory for a second copy.
        """
        low = [max(0, -int(origin)) for origin in self.transform.origin]
        ends = zip(self.transform.origin, self.transform.shape, self.transform.oriented_shape, strict=True)
        high = [min(length, whole - int(origin)) for origin, length, whole in ends]
        box = tuple(slice(first, max(first, last)) for first, last in zip(low, high, strict=True))
        transform = self.transform.crop(low, [part.stop - part.start for part in box])
        values = self.values[(slice(None), *box)]
        spread = None if self.spread is None else self.spread[box]
        for channel in values if spread is None else (*values, spread):
            channel *= _STEPS
            np.rint(channel, out=channel)
            channel /= _STEPS
        return Probabilities(values, transform, spread)

    def on(self, transform: GridTransform) -> "Probabilities":
        """The same on another box of the same grid, without the spread; what lies outside this box is background."""
        start = [int(there - here) for there, here in zip(transform.origin, self.transform.origin, strict=True)]
        values = read_box(self.values, start, transform.shape)
        values[0] += 1 - read_box(np.ones(self.transform.shape, np.float32), start, transform.shape)
        return Probabilities(values, transform)

    def whole(self) -> Float32[np.ndarray, "i j n k"]:
        """On the whole original grid, without the spread."""
        channels = [self.transform.restore(p, fill=int(k == 0)) for k, p in enumerate(self.values)]
        return np.stack(channels, axis=-1)


@dataclass(frozen=True)
class Member:
    """One of the models that probabilities come from.

    Attributes:
        model: a hash of everything that its predictions depend on.
        part: of its split that holds the case, or another case of the patient: ``train``, ``val``, ``test``; ``none``
            if none does; None if its split is not known.
    """

    model: str
    part: str | None


@dataclass(frozen=True)
class Record:
    """What a file of probabilities says about them.

    Attributes:
        case: its id.
        labels: the foreground classes.
        decode: how the models' target is decoded, ``argmax`` or ``regions``.
        header: of the case's image, whose geometry its mask gets.
        members: the models.
        postprocessing: config of the rules that `predict` made the case's mask with; None of a fusion.
        origin: the models and rules, as a mask's header has them.
    """

    case: str
    labels: tuple[str, ...]
    decode: str
    header: Header
    members: tuple[Member, ...]
    postprocessing: Mapping[str, Any] | None
    origin: str

    @property
    def scheme(self) -> LabelScheme:
        """The classes."""
        return LabelScheme(self.labels)


def write_probabilities(path: Path, probabilities: Probabilities, record: Record) -> None:
    """Write a compressed NIfTI file of four axes, whole or not at all.

    Its voxels are the box's, (x, y, z) in LPS order, on an affine of its own, so that viewers show it in its place. The
    fourth axis has the classes, the background first, then the spread if there is one, as uint16 in steps of 1/65000,
    exact to 8e-6. The record is JSON in a comment of the header.

    Args:
        path: ends with `ENDING`.
        probabilities: by `Probabilities.rounded`, so that exactly these are read again.
        record: what else is known.
    """
    values, spread = probabilities.values, probabilities.spread
    steps = np.empty((len(values) + (spread is not None), *values.shape[1:]), np.uint16)
    for stored, channel in zip(steps, values if spread is None else (*values, spread), strict=True):
        stored[...] = np.rint(channel * _STEPS)
    nifti = record.header.nifti.copy()
    nifti["descrip"] = ""  # it may name a patient
    content = {
        "brats_lightning": _FORMAT,
        "case": record.case,
        "labels": record.labels,
        "decode": record.decode,
        "spread": spread is not None,
        "transform": asdict(probabilities.transform),
        "members": [asdict(member) for member in record.members],
        "postprocessing": record.postprocessing,
        "header": base64.b64encode(nifti.binaryblock).decode(),
    }
    comment = json.dumps(content, default=np.ndarray.tolist)
    image = volumes_like(record.header, steps, probabilities.transform.affine, 1 / _STEPS, record.origin, comment)
    write_nifti(path, image, level=1)


def read_record(path: Path) -> Record:
    """The record of a file that `write_probabilities` wrote; its voxels are neither read nor checked.

    Raises:
        UnreadableFile: missing, corrupted, or another file.
    """
    content = _content(path)
    return Record(
        case=content["case"],
        labels=tuple(content["labels"]),
        decode=content["decode"],
        header=header_of(base64.b64decode(content["header"])),
        members=tuple(Member(**member) for member in content["members"]),
        postprocessing=content["postprocessing"],
        origin=read_description(path),
    )


def read_probabilities(path: Path) -> tuple[Probabilities, Record]:
    """What `write_probabilities` wrote.

    Raises:
        UnreadableFile: missing, corrupted, or another file.
    """
    content, record = _content(path), read_record(path)
    transform, classes = GridTransform.from_dict(content["transform"]), len(record.labels) + 1
    steps, expected = read_volumes(path), (classes + content["spread"], *transform.shape)
    if steps.shape != expected:
        raise UnreadableFile(f"an array of shape {steps.shape[::-1]}", f"{expected[::-1]}, as its record says", _AGAIN)
    values = steps.astype(np.float32)
    values /= _STEPS
    return Probabilities(values[:classes], transform, values[classes] if content["spread"] else None), record


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_comment(path) or "{}")
        found = content["brats_lightning"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UnreadableFile):
            raise
        raise UnreadableFile("no record of probabilities in its header", "a file that predict wrote", _AGAIN) from None
    if found != _FORMAT:
        raise UnreadableFile(f"probabilities of format {found}", f"format {_FORMAT} of this version", _AGAIN)
    return content
