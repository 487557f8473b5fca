"""Cases whose files look as if something were wrong with them: swapped sequences, moved or flipped masks, copies.

Each detector compares a case with the rest of the data set, and none of them is certain: they say where to look.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from brats_lightning.core.geometry import nonzero_box
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.inspection import Contrasts, Inspection

OUTSIDE = 0.1  # fraction of a mask beyond the brain that is suspicious
LOST = -0.3  # see `brightness_lost`
OPPOSED = -0.3  # correlation of two scans' asymmetries
FEWEST = 5  # cases from which on there is something typical about the sequences of a data set
BETTER = 0.8  # of its deviation from the typical contrast, if the sequences are exchanged
_SMALLEST, _FURTHEST = 0.05, 10  # spread of a contrast over cases, and a deviation in spreads, which bound the others


@dataclass(frozen=True)
class Suspicion:
    """Something about a case that a person should look at."""

    case: str
    file: str  # modality, ``seg``, or several of them joined by ", "
    found: str


def find_suspicions(inspections: Sequence[Inspection]) -> list[Suspicion]:
    """Of all detectors, sorted by case."""
    detectors = (masks_outside, flipped_masks, flipped_siblings, duplicates, swapped_sequences)
    return sorted(itertools.chain(*(find(inspections) for find in detectors)), key=lambda each: (each.case, each.file))


def masks_outside(inspections: Sequence[Inspection]) -> Iterator[Suspicion]:
    """Masks of which a good part lies where every image is 0."""
    for each in inspections:
        if each.outside > OUTSIDE:
            yield Suspicion(each.case.id, "seg", f"{each.outside:.0%} of the mask lies outside the brain")


def flipped_masks(inspections: Sequence[Inspection]) -> Iterator[Suspicion]:
    """Masks whose mirror images are brighter than they are."""
    for each in inspections:
        worst = min(each.mirrored, key=lambda name: each.mirrored[name], default=None)
        if worst is not None and each.mirrored[worst] < LOST:
            yield Suspicion(each.case.id, "seg", f"fits the images better when flipped {worst}")


def flipped_siblings(inspections: Sequence[Inspection]) -> Iterator[Suspicion]:
    """Cases whose left–right asymmetry is opposed to that of the same patient's other scans."""
    patients: dict[str, list[Inspection]] = {}
    for each in inspections:
        patients.setdefault(each.case.patient, []).append(each)
    for siblings in patients.values():
        for each in siblings if len(siblings) > 1 else ():
            others = [other for other in siblings if other is not each]
            if np.mean([asymmetry_correlation(each, other) for other in others]) < OPPOSED:
                names = ", ".join(other.case.id for other in others)
                yield Suspicion(
                    each.case.id, ", ".join(each.case.modalities), f"looks flipped left to right against {names}"
                )


def asymmetry_correlation(one: Inspection, other: Inspection) -> float:
    """Mean over sequences of the correlation of what is not symmetric in two brains; 0 if nothing can be compared.

    The asymmetry is the coarse image minus its mirror image, without the gradient from left to right that coils add.
    """
    found = []
    for name in set(one.case.modalities) & set(other.case.modalities):
        a, b = (asymmetry(each.coarse[each.case.modalities.index(name)]) for each in (one, other))
        if a.shape != b.shape:
            continue
        both = ~np.isnan(a + b)
        if both.sum() > 50 and a[both].any() and b[both].any():
            found.append(float((a[both] @ b[both]) / np.linalg.norm(a[both]) / np.linalg.norm(b[both])))
    return float(np.mean(found)) if found else 0.0


def asymmetry(coarse: Float[np.ndarray, "z y x"]) -> Float[np.ndarray, "z y half"]:
    """Of one half of the brain, minus its linear part; NaN where either side is outside."""
    half = coarse.shape[2] // 2
    difference = (coarse - coarse[:, :, ::-1])[:, :, :half].astype(np.float64)
    x = np.broadcast_to(np.arange(half) - (coarse.shape[2] - 1) / 2, difference.shape)
    known = ~np.isnan(difference)
    slope = (x[known] @ difference[known]) / max(x[known] @ x[known], 1e-9)
    return difference - slope * x


def duplicates(inspections: Sequence[Inspection]) -> Iterator[Suspicion]:
    """Images with the very voxels of another image, of the same case or another.

    Only images with equal statistics, of which the cache has a hundred, are read and compared.
    """
    alike: dict[object, list[tuple[CachedCase, str]]] = {}
    for each in inspections:
        for name, statistics in each.case.intensities.items():
            if statistics.std:
                alike.setdefault(statistics, []).append((each.case, name))
    for group in alike.values():
        for (case, name), (first, its) in itertools.islice(zip(group, itertools.repeat(group[0])), 1, None):
            if np.array_equal(_brain(case, name), _brain(first, its)):
                place = its if case is first else f"{its} of {first.id}"
                yield Suspicion(case.id, name, f"has the voxels of {place}")


def _brain(case: CachedCase, name: str) -> np.ndarray:
    channel = case.image()[case.modalities.index(name)]
    return channel[nonzero_box(channel)]


def swapped_sequences(inspections: Sequence[Inspection]) -> Iterator[Suspicion]:
    """Cases whose sequences look more like those of the data set if some of them are given each other's names."""
    tables = [each.contrasts for each in inspections if each.contrasts]
    if len(tables) < FEWEST:
        return
    names = sorted({name for table in tables for name, _ in table})
    typical, spread = {}, {}
    for key in itertools.product(names, names):
        values = [table[key] for table in tables if key in table]
        if values:
            typical[key] = np.median(values, axis=0)
            spread[key] = 1.5 * np.median(np.abs(values - typical[key]), axis=0) + _SMALLEST

    def deviation(table: Contrasts, own: Sequence[str], assumed: Sequence[str]) -> float:
        """How far the contrasts are from typical, root mean square, if the sequences were those assumed."""
        called = dict(zip(own, assumed, strict=True))
        pairs = [(value, (called[one], called[other])) for (one, other), value in table.items()]
        far = [np.abs(value - typical[key]) / spread[key] for value, key in pairs if key in typical]
        return float(np.sqrt(np.mean(np.square(np.minimum(np.concatenate(far), _FURTHEST)))))

    for each in inspections if len(names) > 1 else ():
        if not (own := sorted({name for name, _ in each.contrasts})):
            continue
        found = {
            assumed: deviation(each.contrasts, own, assumed) for assumed in itertools.permutations(names, len(own))
        }
        best = min(found, key=lambda assumed: found[assumed])
        wrong = [(name, other) for name, other in zip(own, best, strict=True) if name != other]
        if wrong and found[best] < BETTER * found[tuple(own)]:
            looks = ", ".join(f"{name} looks like {other}" for name, other in wrong)
            yield Suspicion(each.case.id, ", ".join(name for name, _ in wrong), looks)
