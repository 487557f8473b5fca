"""From class probabilities to labels: decoding, then named steps of one rule each.

Labels are classes, so ET ⊂ TC ⊂ WT holds whatever a step does. Components are 26-connected.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from brats_lightning.core.components import NEIGHBOURS_26, label_components
from brats_lightning.core.geometry import nonzero_box
from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.core.targets import decode_regions

Number = int | float

# The classes around a region, from the inside out: voxels that the region loses become one of these.
_ENCLOSING = {"et": ("netc", "snfh"), "tc": ("snfh",)}


class PostprocessingError(ValueError):
    """Settings that cannot be applied."""


@dataclass(frozen=True)
class Labelling:
    """One case during post-processing: its labels, which the steps change, and what the steps need to know."""

    labels: UInt8[np.ndarray, "z y x"]
    probabilities: Float[np.ndarray, "k z y x"]
    voxel_volume: float  # mm³
    scheme: LabelScheme

    def regions(self, names: Sequence[str] | None, default: Iterable[str]) -> Iterator[tuple[list[int], list[int]]]:
        """The classes of each region, and those around it from the inside out; by default of ``default``'s regions."""
        known = self.scheme.regions
        if unknown := set(names or ()) - set(known):
            raise PostprocessingError(
                f"postprocessing: regions has {min(unknown)}, the regions of data.labels are {', '.join(known)}"
            )
        for name in [name for name in default if name in known] if names is None else names:
            around = [self.scheme.index(other) for other in _ENCLOSING.get(name, ()) if other in self.scheme.names]
            yield sorted(known[name]), [*around, 0]


@dataclass(frozen=True)
class Step(ABC):
    """One rule, with its settings."""

    @abstractmethod
    def __call__(self, case: Labelling) -> None:
        """Change the labels; a `PostprocessingError` if the scheme lacks a class or region that the step needs."""


@dataclass(frozen=True)
class Postprocessing:
    """Labels from class probabilities: decoded, then changed by the steps in order.

    Args:
        steps: name → `Step`; None leaves a step out.
        decode: ``argmax``: the most probable class; ``regions``: by `brats_lightning.core.targets.decode_regions`; None
            leaves the choice to the network's target (see `decoding`), without one to ``argmax``.

    Raises:
        PostprocessingError: impossible settings.
    """

    steps: Mapping[str, Any] = field(default_factory=dict)
    decode: str | None = None

    def __post_init__(self) -> None:
        steps = {name: step for name, step in (self.steps or {}).items() if step is not None}
        object.__setattr__(self, "steps", steps)
        for name, step in steps.items():
            if not isinstance(step, Step):
                raise PostprocessingError(
                    f"postprocessing.steps.{name} has the settings {step} and no _target_: this step was not chosen; "
                    f"choose it, e.g. by postprocessing=hysteresis or 'postprocessing/step=[{name}]', or leave it out, "
                    f"postprocessing.steps.{name}=null"
                )
        if self.decode not in ("argmax", "regions", None):
            raise PostprocessingError(f"postprocessing.decode must be argmax, regions or null, got {self.decode!r}")

    def decoding(self, decode: str) -> "Postprocessing":
        """The same steps, with this ``decode`` if it is None."""
        return replace(self, decode=self.decode or decode)

    def __call__(
        self, probabilities: Float[np.ndarray, "k z y x"], spacing: Sequence[Number], scheme: LabelScheme
    ) -> UInt8[np.ndarray, "z y x"]:
        """Class index of each voxel.

        Args:
            probabilities: of the classes, the background first; they sum to 1 in each voxel.
            spacing: (z, y, x) in mm.
            scheme: the classes.

        Raises:
            ValueError: a step, or decoding by regions, does not fit the classes.
        """
        labels = np.zeros(probabilities.shape[1:], np.uint8)
        inside = probabilities[0] < 0.6  # anything else is decoded only up to ½; the rest allows for rounding
        voxels = probabilities[:, inside]
        if self.decode == "regions":
            labels[inside] = decode_regions(torch.from_numpy(voxels[:, None, None]), scheme).numpy()[0, 0]
        else:
            labels[inside] = voxels.argmax(0)  # the first of equals
        for step in self.steps.values():
            step(Labelling(labels, probabilities, math.prod(spacing), scheme))
        return labels


@dataclass(frozen=True)
class Hysteresis(Step):
    """Keep the components of the voxels above ``low`` in which some voxel is above ``high``; all else is background.

    The probability is ``1 - p(background)``. In a component, voxels decoded as background get their most probable
    foreground class. This keeps a small lesion with one clear peak, which a filter by size or mean confidence loses.

    With ``regions``, given from the outside in, the same is done for each region within the one that encloses it (TC in
    WT, ET in TC): voxels that a region loses become the enclosing class, those it gains its own most probable class.

    ``keep_surest`` always keeps the component with the highest probability. On scans unlike its training data a network
    is confident nowhere and would lose the whole tumour, while almost every case has a lesion.
    """

    low: Number
    high: Number
    keep_surest: bool = False
    regions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high < 1:
            raise PostprocessingError(f"hysteresis needs 0 ≤ low ≤ high < 1, got low={self.low} high={self.high}")

    def __call__(self, case: Labelling) -> None:
        """Keep the components with a peak."""
        foreground = [(list(range(1, case.scheme.num_classes)), [0])]
        for classes, (outside, *_) in foreground if self.regions is None else case.regions(self.regions, ()):
            p = 1 - case.probabilities[0] if self.regions is None else case.probabilities[classes].sum(0)
            box = nonzero_box(p > self.low)
            p, labels, lost = p[box], case.labels[box], in_classes(case.labels, classes)
            before = lost[box].copy()
            kept = _with_peak(p, (p > self.low) & (before | (labels == outside)), self.high, self.keep_surest)
            lost[box] &= ~kept
            case.labels[lost] = outside
            gained = kept & ~before
            best = np.stack([case.probabilities[index][box][gained] for index in classes]).argmax(0)
            labels[gained] = np.array(classes, np.uint8)[best]


@dataclass(frozen=True)
class ConfidentCore(Step):
    """A component of ET without a voxel above the threshold becomes NETC; then such a component of TC becomes SNFH.

    The probability is the region's. Lesion-wise scores count each speck of core in an oedema as a separate lesion, even
    if the tumour around it is certain. Other ``regions`` are given from the inside out.

    ``keep_surest`` always keeps the component of each region with the highest probability; of TC also the one that
    holds such a component of ET.
    """

    threshold: Number
    keep_surest: bool = False
    regions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise PostprocessingError(f"core needs 0 ≤ threshold < 1 (a probability), got threshold={self.threshold}")

    def __call__(self, case: Labelling) -> None:
        """Replace the components without a peak by the class that encloses their region."""
        judged: list[int] = []
        for classes, (outside, *_) in case.regions(self.regions, ("et", "tc")):
            mask = in_classes(case.labels, classes)
            box = nonzero_box(mask)
            p, labels, mask = case.probabilities[(classes, *box)].sum(0), case.labels[box], mask[box]
            stayed = in_classes(labels, judged)  # in a region further inside
            labels[mask & ~_with_peak(p, mask, self.threshold, self.keep_surest, stayed)] = outside
            judged += classes


def _with_peak(
    p: Float[np.ndarray, "z y x"],
    mask: Bool[np.ndarray, "z y x"],
    least: Number,
    keep_surest: bool,
    stayed: Bool[np.ndarray, "z y x"] | None = None,
) -> Bool[np.ndarray, "z y x"]:
    """Components with a voxel above ``least`` or in ``stayed``; by ``keep_surest`` also the most probable one."""
    components, n = label_components(mask)
    if not n:
        return mask
    peaks = np.asarray(ndimage.maximum(p, components, np.arange(n + 1)))
    kept = peaks > least
    if keep_surest:
        kept[1:] |= peaks[1:] == peaks[1:].max()
    if stayed is not None:
        kept[components[stayed]] = True
    kept[0] = False
    return kept[components]


@dataclass(frozen=True)
class SolidCore(Step):
    """Oedema (SNFH) becomes NETC where tumour core encloses it in slices of at least two of the three orientations.

    In such a slice no path of 4-connected voxels outside the core leads to the slice's border. Oedema surrounds a core
    and is never inside it, but in a patch smaller than the tumour the inside looks like oedema. A cavity (RC) is not
    core. Does nothing if NETC, SNFH or ET is not among the classes.
    """

    def __call__(self, case: Labelling) -> None:
        """Fill the core."""
        scheme = case.scheme
        if not {"netc", "snfh", "et"} <= set(scheme.names):
            return
        core = in_classes(case.labels, scheme.regions["tc"])
        box = nonzero_box(core)  # nothing outside is enclosed
        part, core = case.labels[box], core[box]
        oedema = part == scheme.index("snfh")
        if not oedema.any():
            return
        planes = [np.expand_dims(ndimage.generate_binary_structure(2, 1), axis) for axis in range(3)]
        enclosed = [ndimage.binary_fill_holes(core, plane) for plane in planes]
        part[(np.sum(enclosed, axis=0, dtype=np.uint8) >= 2) & oedema] = scheme.index("netc")


@dataclass(frozen=True)
class FillHoles(Step):
    """Background enclosed by tumour core becomes NETC, other background enclosed by the whole tumour SNFH.

    Enclosed is 6-connected background that doesn't reach the volume's border. Needs the classes netc and snfh.
    """

    def __call__(self, case: Labelling) -> None:
        """Fill the holes."""
        scheme = case.scheme
        if not {"netc", "snfh"} <= set(scheme.names):
            raise PostprocessingError("postprocessing: fill_holes needs the classes netc and snfh among data.labels")
        part = case.labels[nonzero_box(case.labels)]
        for region, name in (("tc", "netc"), ("wt", "snfh")):
            if region in scheme.regions:
                mask = in_classes(part, scheme.regions[region])
                part[ndimage.binary_fill_holes(mask) & (part == 0)] = scheme.index(name)


@dataclass(frozen=True)
class MinVolume(Step):
    """Remove components of a region smaller than ``mm3``, by default of all regions in the order ET, TC, WT, others.

    One of ET becomes NETC if it touches NETC, else SNFH if it touches SNFH, else background; one of TC becomes SNFH or
    background, any other background.
    """

    mm3: Number
    regions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.mm3 >= 0:
            raise PostprocessingError(f"min_volume needs mm3 of at least 0, got mm3={self.mm3}")

    def __call__(self, case: Labelling) -> None:
        """Replace the small components."""
        least = self.mm3 / case.voxel_volume * (1 - 1e-6)  # spacings carry rounding errors
        part = case.labels[nonzero_box(case.labels)]
        for classes, around in case.regions(self.regions, case.scheme.regions):
            components, n = label_components(in_classes(part, classes))
            for number, box in enumerate(ndimage.find_objects(components) if n else [], 1):
                wider = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
                labels, component = part[wider], components[wider] == number
                if np.count_nonzero(component) < least:
                    touched = {0, *np.unique(labels[ndimage.binary_dilation(component, NEIGHBOURS_26)]).tolist()}
                    labels[component] = next(index for index in around if index in touched)


@dataclass(frozen=True)
class RequireCore(Step):
    """Remove components of the whole foreground that consist of oedema (SNFH) only.

    Oedema surrounds a metastasis or a cavity and does not occur alone. Does nothing if SNFH is not among the classes.
    If all components are removed, ``keep_surest`` keeps the one with the highest foreground probability, of equals the
    largest.
    """

    keep_surest: bool = False

    def __call__(self, case: Labelling) -> None:
        """Remove oedema without a core."""
        if "snfh" not in case.scheme.names:
            return
        box = nonzero_box(case.labels)
        part = case.labels[box]
        components, n = label_components(part > 0)
        kept = np.zeros(n + 1, bool)
        kept[components[(part > 0) & (part != case.scheme.index("snfh"))]] = True
        if n and self.keep_surest and not kept.any():
            peaks = ndimage.maximum(1 - case.probabilities[(0, *box)], components, np.arange(n + 1))
            sizes = np.bincount(components.reshape(-1))
            kept[max(range(1, n + 1), key=lambda number: (peaks[number], sizes[number]))] = True
        part[~kept[components]] = 0
