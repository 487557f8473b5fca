"""Connected components of masks: what a lesion is."""

import numpy as np
from jaxtyping import Bool, Int32, UInt8
from scipy import ndimage

from brats_lightning.labels import LabelScheme, in_classes

NEIGHBOURS_26 = np.ones((3, 3, 3), dtype=bool)


def label_components(mask: Bool[np.ndarray, "a b c"]) -> tuple[Int32[np.ndarray, "a b c"], int]:
    """26-connected components, numbered 1 … n in the array's C order, and n."""
    labels, n = ndimage.label(mask, structure=NEIGHBOURS_26)
    return labels.astype(np.int32, copy=False), n


def lesion_components(mask: UInt8[np.ndarray, "z y x"], scheme: LabelScheme) -> tuple[Int32[np.ndarray, "z y x"], int]:
    """The lesions of a mask as a researcher counts them, and their number.

    A lesion is a 26-connected component of everything but oedema (SNFH), since one oedema often joins several
    metastases. A component of oedema without any such core is a lesion of its own. Oedema around a core belongs to no
    lesion.
    """
    oedema = {scheme.index("snfh")} if "snfh" in scheme.names else set()
    core = in_classes(mask, set(range(1, scheme.num_classes)) - oedema)
    lesions, n = label_components(core)
    if oedema:
        whole, n_whole = label_components(mask > 0)
        has_core = np.zeros(n_whole + 1, dtype=bool)
        has_core[whole[core]] = True
        has_core[0] = True
        bare = ~has_core[whole]
        numbers = np.cumsum(~has_core, dtype=np.int32) + n
        lesions[bare] = numbers[whole[bare]]
        n += int((~has_core).sum())
    return lesions, n
