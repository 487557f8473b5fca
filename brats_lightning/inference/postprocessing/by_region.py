"""Decoding of each region by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import nonzero_box
from brats_lightning.core.labels import in_classes
from brats_lightning.inference.postprocessing.rules import Labelling, Number, PostprocessingError, Step


@dataclass(frozen=True)
class ByRegion(Step):
    """Decode regions anew, each from its own probability, and write them one over the other, from the outside in.

    A region is made of the 26-connected components of the voxels above ``low``; with ``high``, only of those in which
    some voxel reaches it, kept whole; with ``largest``, only of the largest of these, of equals the most probable one.
    The probability of a region is the sum over its classes, so that TC lies within WT if both have the same thresholds.

    What is written gets the class that is in no region inside: SNFH for WT, NETC for TC. A voxel of the labels that is
    not in its region any more becomes the class around it: ET becomes NETC. For regions with other thresholds use the
    step again, under another name.

    Args:
        low: probability that voxels exceed.
        high: probability that some voxel of a component reaches; None: no matter.
        largest: whether only the largest component is kept.
        regions: in the order of writing; those that the labels lack are left out.
    """

    counting = ("low", "high", "largest")

    low: Number = 0.5
    high: Number | None = None
    largest: bool = False
    regions: Sequence[str] = ("wt", "tc", "et", "rc")

    def __post_init__(self) -> None:
        object.__setattr__(self, "regions", list(self.regions))  # as a config has them
        if not 0 <= self.low < 1 or not self.low <= (self.low if self.high is None else self.high) <= 1:
            raise PostprocessingError(
                f"by_region needs 0 ≤ low < 1 and low ≤ high ≤ 1, got low={self.low} high={self.high}"
            )

    def __call__(self, case: Labelling) -> None:
        """Write the regions."""
        for region in case.regions(self.regions, ()):
            p = reduce(np.add, (case.probabilities[index] for index in region.classes))
            found = self._components(p)
            before = in_classes(case.labels, region.classes)
            case.labels[before & ~found] = region.around[0]
            gained = found & ~before
            best = np.stack([case.probabilities[index][gained] for index in region.own]).argmax(0)
            case.labels[gained] = np.array(region.own, np.uint8)[best]

    def _components(self, p: Float[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
        found = p > self.low
        if self.high is None and not self.largest:
            return found
        box = nonzero_box(found)
        components, n = label_components(found[box])
        if not n:
            return found
        peaks = np.asarray(ndimage.maximum(p[box], components, np.arange(n + 1)))
        kept = peaks >= (0 if self.high is None else self.high)
        kept[0] = False
        if self.largest and kept.any():
            sizes = np.bincount(components.reshape(-1), minlength=n + 1)
            one = max(np.flatnonzero(kept), key=lambda number: (sizes[number], peaks[number]))
            kept = np.arange(n + 1) == one
        found[box] = kept[components]
        return found
