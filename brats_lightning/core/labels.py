"""Modalities, classes, regions and label maps: the one source of channel counts, class counts and metric names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Integer, UInt8

# In the order the challenge lists them; the older names are BraTS ≤ 2022's.
MODALITIES = ("t1n", "t1c", "t2w", "t2f")
OLDER_NAMES = {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}

# In a mask of class indices, a voxel whose class is unknown: losses, scores and samplers leave it out.
IGNORE = 255

# A region is a union of classes; regions, not classes, are what the challenge scores.
_REGION_CLASSES = {"et": ("et",), "tc": ("netc", "et"), "wt": ("netc", "snfh", "et"), "rc": ("rc",)}
REGIONS = tuple(_REGION_CLASSES)


@dataclass(frozen=True)
class LabelScheme:
    """The foreground classes of a task; class ``names[i]`` has index ``i + 1``, 0 is background.

    NETC is the non-enhancing tumour core, SNFH the surrounding non-enhancing FLAIR hyperintensity, ET the enhancing
    tumour and RC the resection cavity (BraTS-METS 2025 on).
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if not self.names or len(set(self.names)) < len(self.names) or "background" in self.names:
            raise ValueError(
                f"data.labels must be distinct foreground class names without 'background', got {list(self.names)}; "
                "the default is [netc,snfh,et]"
            )

    @property
    def num_classes(self) -> int:
        """Classes with the background: the channels of a softmax."""
        return len(self.names) + 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class index, the background first."""
        return ("background", *self.names)

    @cached_property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """Class indices of each region whose classes all exist: ``{"et": (3,), "tc": (1, 3), "wt": (1, 2, 3)}``.

        Any other class is a region by itself.
        """
        known = {name for classes in _REGION_CLASSES.values() for name in classes}
        members = {r: c for r, c in _REGION_CLASSES.items() if set(c) <= set(self.names)}
        members |= {name: (name,) for name in self.names if name not in known}
        return {region: tuple(self.index(name) for name in classes) for region, classes in members.items()}

    @property
    def headline_regions(self) -> tuple[str, ...]:
        """The regions that mean scores average: ET, TC and WT; all regions of a scheme without them."""
        return tuple(name for name in ("et", "tc", "wt") if name in self.regions) or tuple(self.regions)

    def index(self, name: str) -> int:
        """Class index of a class name."""
        return self.class_names.index(name)


BRATS_METS = LabelScheme(("netc", "snfh", "et"))


def as_label_map(setting: str, label_map: Mapping[int, int] | None) -> dict[int, int]:
    """Old label → new label, e.g. ``{4: 3}`` for BraTS ≤ 2022's convention; a ValueError names the setting.

    A label that becomes `IGNORE` marks voxels of unknown class.
    """
    label_map = {int(old): int(new) for old, new in (label_map or {}).items()}
    if not all(0 < old <= 255 and 0 <= new <= 255 for old, new in label_map.items()):
        raise ValueError(f"{setting} must map labels 1 … 255 to 0 … 255 (the background stays 0), got {label_map}")
    return label_map


def with_ignored(label_map: Mapping[int, int] | None, label: int | None, scheme: LabelScheme) -> dict[int, int]:
    """A label map by which also ``label``, in a mask or made by the map, becomes `IGNORE`; None adds nothing.

    Raises:
        ValueError: a bad label map, or a label that is a class's, or that the map replaces.
    """
    label_map = as_label_map("data.label_map", label_map)
    if label is None:
        return label_map
    if not isinstance(label, int) or not scheme.num_classes <= label <= IGNORE or label in label_map:
        raise ValueError(
            f"data.ignore_label must be one label of {scheme.num_classes} … {IGNORE}, which are no classes of "
            f"data.labels, and none that data.label_map replaces; got {label!r} with the label map {label_map}"
        )
    return {old: IGNORE if new == label else new for old, new in label_map.items()} | {label: IGNORE}


def apply_label_map(
    mask: Integer[np.ndarray, "*shape"], label_map: Mapping[int, int] | None
) -> UInt8[np.ndarray, "*shape"]:
    """Copy of a multi-label mask with each label replaced by ``label_map``'s; labels it does not name stay.

    Args:
        mask: labels in 0 … 255.
        label_map: old label → new label, as `as_label_map` gives it.

    Raises:
        ValueError: a label outside 0 … 255.
    """
    if mask.size and (mask.min() < 0 or mask.max() > 255):
        raise ValueError(f"labels must lie in 0 … 255, found {mask.min()} … {mask.max()}")
    table = np.arange(256, dtype=np.uint8)
    for old, new in (label_map or {}).items():
        table[old] = new
    return table[mask]


def in_classes(mask: Integer[np.ndarray, "*shape"], classes: Iterable[int]) -> np.ndarray:
    """Boolean mask of the voxels whose class is one of ``classes``."""
    found = np.zeros(mask.shape, dtype=bool)
    for index in classes:  # comparisons of bytes are several times faster than a look-up
        found |= mask == index
    return found


def known_classes(mask: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Copy of a mask of class indices with the background where the class is unknown."""
    return mask * (mask != IGNORE)


def known_part(
    reference: Integer[np.ndarray, "*shape"], prediction: Integer[np.ndarray, "*shape"]
) -> tuple[Integer[np.ndarray, "*shape"], Integer[np.ndarray, "*shape"]]:
    """Both masks with the background where the reference's class is unknown; they themselves if it is known everywhere.

    What is compared of them is then the same as of masks that are cut to the known part.
    """
    if reference.max(initial=0) < IGNORE:
        return reference, prediction
    known = reference != IGNORE
    return reference * known, prediction * known


PRESENCE = "presence"  # what `parse_channel` returns beside the modality of a channel has-…


def parse_channel(channel: str) -> tuple[str, str | None]:
    """``"t1c"`` → ``("t1c", None)``; a difference ``"t1c-t1n"`` → ``("t1c", "t1n")``; ``"has-t2w"`` → with `PRESENCE`.

    Raises:
        ValueError: a name that is not a modality.
    """
    if channel.removeprefix("has-") in MODALITIES and channel not in MODALITIES:
        return channel.removeprefix("has-"), PRESENCE
    minuend, _, subtrahend = channel.partition("-")
    for name in (minuend, subtrahend) if subtrahend else (minuend,):
        if name not in MODALITIES:
            same = name.lower() if name.lower() in MODALITIES else OLDER_NAMES.get(name.lower())
            raise ValueError(
                f"data.modalities: {channel!r} is not a channel; "
                + (f"{name} is called {same} here" if same else f"choose from {', '.join(MODALITIES)}")
                + ", differences like t1c-t1n, and has-t2w for whether a case has that modality" * (not same)
            )
    return minuend, subtrahend or None


def source_modalities(channels: Sequence[str]) -> tuple[str, ...]:
    """The modalities that must be read to make ``channels``, in canonical order."""
    needed = {name for channel in channels for name in parse_channel(channel)}
    return tuple(name for name in MODALITIES if name in needed)
