"""Steps that judge 26-connected components: by their most probable voxel, their size, or what they consist of."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from brats_lightning.core.components import NEIGHBOURS_26, label_components
from brats_lightning.core.geometry import nonzero_box
from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.inference.postprocessing.rules import Labelling, Number, PostprocessingError, Region, Step


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

    counting = ("low", "high", "keep_surest")

    low: Number
    high: Number
    keep_surest: bool = False
    regions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high < 1:
            raise PostprocessingError(f"hysteresis needs 0 ≤ low ≤ high < 1, got low={self.low} high={self.high}")

    def __call__(self, case: Labelling) -> None:
        """Keep the components with a peak."""
        foreground = list(range(1, case.scheme.num_classes))
        whole = [Region(foreground, foreground, [0])]
        for classes, _, (outside, *_) in whole if self.regions is None else case.regions(self.regions, ()):
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

    counting = ("threshold", "keep_surest")

    threshold: Number
    keep_surest: bool = False
    regions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise PostprocessingError(f"core needs 0 ≤ threshold < 1 (a probability), got threshold={self.threshold}")

    def __call__(self, case: Labelling) -> None:
        """Replace the components without a peak by the class that encloses their region."""
        judged: list[int] = []
        for classes, _, (outside, *_) in case.regions(self.regions, ("et", "tc")):
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
class MinVolume(Step):
    """Remove components of a region smaller than ``mm3``, by default of all regions in the order ET, TC, WT, others.

    One of ET becomes NETC if it touches NETC, else SNFH if it touches SNFH, else background; one of TC becomes SNFH or
    background, any other background.
    """

    counting = ("mm3",)

    mm3: Number
    regions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not self.mm3 >= 0:
            raise PostprocessingError(f"min_volume needs mm3 of at least 0, got mm3={self.mm3}")

    def __call__(self, case: Labelling) -> None:
        """Replace the small components."""
        least = self.mm3 / case.voxel_volume * (1 - 1e-6)  # spacings carry rounding errors
        part = case.labels[nonzero_box(case.labels)]
        for classes, _, around in case.regions(self.regions, case.scheme.regions):
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

    counting = ("", "keep_surest")

    keep_surest: bool = False

    def lacking(self, scheme: LabelScheme) -> list[str]:
        """The class without which it does nothing."""
        return [] if "snfh" in scheme.names else ["snfh"]

    def __call__(self, case: Labelling) -> None:
        """Remove oedema without a core."""
        if self.lacking(case.scheme):
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
