"""Masks that no patient has: a sign of scans unlike those of the training, or of a network that has learned nothing."""

from collections.abc import Mapping
from typing import Any

# Components of one region. Patients of BraTS-METS have up to about 60 metastases; what has hundreds is noise.
MAX_LESIONS = 200
# Labelled fraction of the box around the brain. The brain fills about half of the box, so this is half of the brain.
MAX_SHARE = 0.25
_NAMED = 3  # cases that a message names

ADVICE = (
    "check that the scans are prepared like those of the training (skull removed, sequences registered and not "
    "swapped), and that the network is better than test/t1c_threshold_dice_mean of its run"
)


def implausible(regions: Mapping[str, Mapping[str, Any]], shares: Mapping[str, float]) -> list[str]:
    """What is implausible about a set of masks, a sentence each; none if nothing is.

    Args:
        regions: case → region → its ``lesions`` and ``volume_ml``, as `region_summary` gives them.
        shares: case → labelled fraction of the box around its brain.
    """
    if regions and not any(region["lesions"] for sizes in regions.values() for region in sizes.values()):
        return [f"no lesion in any of {len(regions)} cases"]
    most = {case: max((size["lesions"], name) for name, size in sizes.items()) for case, sizes in regions.items()}
    noisy = [f"{case} has {n:,} components of {name.upper()}" for case, (n, name) in most.items() if n > MAX_LESIONS]
    full = [f"{share:.0%} of the box around the brain of {case}" for case, share in shares.items() if share > MAX_SHARE]
    return [
        *([f"{_some(noisy)}; patients rarely have more than 60 metastases"] if noisy else []),
        *([f"{_some(full)} is labelled; a brain fills about half of it"] if full else []),
    ]


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more
