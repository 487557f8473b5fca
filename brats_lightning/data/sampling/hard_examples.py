"""Patches where an earlier network failed: lesions it missed, and tissue it took for a lesion."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int16, UInt8

from brats_lightning.core.checks import as_probability
from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import nonzero_box
from brats_lightning.core.labels import BRATS_METS, LabelScheme, known_part
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.cases import read_mask
from brats_lightning.data.nifti import UnreadableFile
from brats_lightning.data.sampling.patches import LesionBalanced, LesionCase, lesion_voxel
from brats_lightning.runtime.workers import cpu_count

VOXELS_PER_COMPONENT = 20  # kept of each false positive


class PredictionError(ValueError):
    """Predictions that cannot serve as hard examples; lists every fault."""


@dataclass(frozen=True)
class Difficulty:
    """What a prediction got wrong in one case."""

    missed: list[bool]  # of each lesion of the reference
    negatives: list[Int16[np.ndarray, "_ 3"]]  # some voxels (z, y, x) of each false positive, on the working grid


class HardExamples(LesionBalanced):
    """`LesionBalanced`, steered by the masks an earlier network predicted for the training cases.

    A lesion is *missed* if none of its voxels was given a class it has; missed ones are drawn more often than found
    ones. A *false positive* is a 26-connected component of the predicted foreground without a voxel of the reference's;
    a fraction of the patches holds one, each of the case equally likely. In cases without, those patches are uniform.
    What was predicted where the class is unknown does not count.

    Args:
        size: (z, y, x) of the patch in voxels.
        predictions: folder with a mask ``<case>.nii.gz`` in the original grid of every training case.
        ratio: probability of a patch around a lesion.
        missed_weight: how many times as often as a found lesion a missed one is drawn.
        negative_ratio: probability of a patch around a false positive.
        margin: see `LesionBalanced`.
        across_cases: make each lesion of the *data set* equally likely but for ``missed_weight``: cases with many or
            missed lesions are drawn more often.
        tolerance: mm by which a voxel's position in a mask may differ from that in the case's images.
        labels: foreground classes in index order.
    """

    def __init__(
        self,
        size: Sequence[int],
        predictions: str | Path,
        ratio: float | int = 0.6,
        missed_weight: float | int = 3,
        negative_ratio: float | int = 0.15,
        margin: int = 8,
        across_cases: bool = False,
        tolerance: float | int = 0.1,
        labels: Sequence[str] = BRATS_METS.names,
    ) -> None:
        super().__init__(size, ratio, margin, across_cases)
        self.predictions = Path(predictions)
        self.negative_ratio = as_probability("sampling.negative_ratio", negative_ratio)
        if self.ratio + self.negative_ratio > 1:
            raise ValueError(f"sampling.ratio + negative_ratio is {self.ratio + self.negative_ratio:g}, more than 1")
        if missed_weight <= 0:
            raise ValueError(f"sampling.missed_weight must be above 0, got {missed_weight}")
        self.missed_weight, self.tolerance = float(missed_weight), tolerance
        self.scheme = LabelScheme(tuple(labels))
        self._difficulties: dict[str, Difficulty] = {}

    def prepare(self, cases: Sequence[CachedCase]) -> None:
        """Compare all predictions with their references.

        Raises:
            PredictionError: predictions are missing, unreadable or on another grid than their case.
        """

        def compare(case: CachedCase) -> Difficulty | str:
            try:
                return _difficulty(case, self.predictions / f"{case.id}.nii.gz", self.scheme, self.tolerance)
            except (UnreadableFile, PredictionError) as error:
                return f"{case.id}: {error}"

        with ThreadPoolExecutor(cpu_count()) as pool:  # decompression and labelling release the GIL
            compared = dict(zip((case.id for case in cases), pool.map(compare, cases), strict=True))
        self._difficulties = {name: found for name, found in compared.items() if isinstance(found, Difficulty)}
        if faults := [found for found in compared.values() if isinstance(found, str)]:
            raise PredictionError(
                f"sampling.predictions={self.predictions} has no usable mask for {len(faults)} of the {len(cases)} "
                "training cases; predict them all with the earlier network:\n  " + "\n  ".join(faults)
            )

    def draw_voxel(self, case: LesionCase, rng: np.random.Generator) -> Int16[np.ndarray, "3"] | None:
        """A voxel of a lesion or of a false positive; the case was among those prepared."""
        negatives = self._difficulties[case.id].negatives
        u = rng.random()
        if u < self.ratio and case.lesions:
            cumulative = np.cumsum(self.lesion_weights(case))
            index = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
            return lesion_voxel(case, index, rng)
        if u >= 1 - self.negative_ratio and negatives:
            component = negatives[int(rng.integers(len(negatives)))]
            return component[int(rng.integers(len(component)))]
        return None

    def lesion_weights(self, case: LesionCase) -> Float64[np.ndarray, " lesions"]:
        """``missed_weight`` for what was missed, 1 for what was found."""
        return np.where(self._difficulties[case.id].missed, self.missed_weight, 1.0)


def _difficulty(case: CachedCase, path: Path, scheme: LabelScheme, tolerance: float) -> Difficulty:
    if not path.is_file():
        raise PredictionError(f"there is no {path.name}")
    volume = read_mask(path, scheme, None)
    if difference := volume.grid.mismatch(case.transform.original, tolerance, "the case's images"):
        raise PredictionError(f"{path.name}: {'; expected '.join(difference)}")
    volume = volume.on(case.transform.original)
    predicted = case.transform.sample_labels(volume.values, volume.start)
    mask, predicted = known_part(np.asarray(case.mask()), predicted)
    rows = case.positions()
    found = predicted[tuple(rows[:, 2:].T)]
    parts = (slice(lesion.start, lesion.stop) for lesion in case.lesions)
    missed = [not np.isin(found[part], rows[part, 1]).any() for part in parts]
    return Difficulty(missed, _false_positives(predicted, mask, zlib.crc32(case.id.encode())))


def _false_positives(
    predicted: UInt8[np.ndarray, "z y x"], mask: UInt8[np.ndarray, "z y x"], seed: int
) -> list[Int16[np.ndarray, "_ 3"]]:
    box = nonzero_box(predicted)
    labels, n = label_components(predicted[box] > 0)
    false = np.ones(n + 1, dtype=bool)
    false[labels[mask[box] > 0]] = False
    false[0] = False
    rng = np.random.default_rng(seed)
    voxels = rng.permutation(np.argwhere(false[labels]))
    component = labels[tuple(voxels.T)]
    first = [part.start for part in box]
    kept = (voxels[component == number][:VOXELS_PER_COMPONENT] for number in np.flatnonzero(false))
    return [(part + first).astype(np.int16) for part in kept]
