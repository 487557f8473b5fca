"""Steps that fill what a tumour encloses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brats_lightning.core.geometry import nonzero_box
from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.inference.postprocessing.rules import Labelling, Step


@dataclass(frozen=True)
class SolidCore(Step):
    """Oedema (SNFH) becomes NETC where tumour core encloses it in slices of at least two of the three orientations.

    In such a slice no path of 4-connected voxels outside the core leads to the slice's border. Oedema surrounds a core
    and is never inside it, but in a patch smaller than the tumour the inside looks like oedema. A cavity (RC) is not
    core. Does nothing if NETC, SNFH or ET is not among the classes.
    """

    def lacking(self, scheme: LabelScheme) -> list[str]:
        """Classes without which it does nothing."""
        return [name for name in ("netc", "snfh", "et") if name not in scheme.names]

    def __call__(self, case: Labelling) -> None:
        """Fill the core."""
        scheme = case.scheme
        if self.lacking(scheme):
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

    Enclosed is 6-connected background that doesn't reach the volume's border. Other ``regions``, given from the inside
    out, are filled with the class that is in no region inside: RC with RC.
    """

    regions: Sequence[str] | None = None

    def lacking(self, scheme: LabelScheme) -> list[str]:
        """Regions that cannot be filled."""
        return (
            super().lacking(scheme) if self.regions else [name for name in ("tc", "wt") if name not in scheme.regions]
        )

    def __call__(self, case: Labelling) -> None:
        """Fill the holes."""
        part = case.labels[nonzero_box(case.labels)]
        for region in case.regions(self.regions, ("tc", "wt")):
            enclosed = ndimage.binary_fill_holes(in_classes(part, region.classes)) & (part == 0)
            part[enclosed] = region.own[0]
