"""Lesion copy-paste: metastases of other training cases grown into a training patch, the small ones preferred."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8, UInt16
from scipy import ndimage

from brats_lightning.core.checks import as_probability
from brats_lightning.core.components import components_at
from brats_lightning.core.geometry import Ints, nonzero_box, read_box
from brats_lightning.core.labels import in_classes, known_classes
from brats_lightning.data.cache.entry import CachedCase, Lesion
from brats_lightning.data.normalisation import normalisation_parameters

FEATHER = 2  # voxels around a lesion over which it fades into the recipient's tissue
SURROUNDINGS = 4  # voxels around a lesion whose tissue is its local background; the first one is partial volume
GRAFTS_KEPT = 256  # by each process, the latest cut out: cutting takes longer than pasting
HIGHEST = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Graft:
    """A lesion cut out of its case, in a box that holds its surroundings too."""

    contrast: Float32[np.ndarray, "m z y x"]  # z-scores of each modality above the lesion's local background
    background: Float32[np.ndarray, " m"]  # z-scores of that background, the median of the surroundings
    labels: UInt8[np.ndarray, "z y x"]  # classes the graft brings, 0 where it brings none
    alpha: Float32[np.ndarray, "z y x"]  # weight of the graft in the mixture: 1 in the lesion, falling to 0 around it
    footprint: Bool[np.ndarray, "z y x"]  # must be known to be free of lesions in the recipient, so that none touches
    surroundings: Bool[np.ndarray, "z y x"]  # healthy tissue near the lesion

    def turned(self, rng: np.random.Generator, isotropic: bool) -> "Graft":
        """Views, mirrored along random axes and, if ``isotropic``, with the axes in random order."""
        axes = rng.permutation(3) if isotropic else np.arange(3)
        mirror = tuple(slice(None, None, -1) if flip else slice(None) for flip in rng.random(3) < 0.5)

        contrast = self.contrast.transpose(0, *(axes + 1))[:, *mirror]
        parts = (self.labels, self.alpha, self.footprint, self.surroundings)
        return Graft(contrast, self.background, *(part.transpose(*axes)[mirror] for part in parts))


@dataclass(frozen=True)
class Donors:
    """The lesions of all training cases of one voxel size, to be drawn with unequal weights."""

    lesions: list[tuple[CachedCase, Lesion]]
    cumulative: Float64[np.ndarray, " bounds"]
    of_case: dict[str, tuple[int, int]]  # first and last + 1 lesion of a case

    @classmethod
    def of(cls, cases: Sequence[CachedCase], max_volume: float, exponent: float) -> "Donors":
        """Lesions up to ``max_volume`` mm³ with a weight of volume^-exponent."""
        lesions: list[tuple[CachedCase, Lesion]] = []
        of_case = {}
        for case in cases:
            first = len(lesions)
            lesions += [(case, lesion) for lesion in case.lesions if lesion.volume_mm3 <= max_volume]
            of_case[case.id] = first, len(lesions)
        weights = [lesion.volume_mm3**-exponent for _, lesion in lesions]
        return cls(lesions, np.cumsum([0.0, *weights]), of_case)

    def draw(self, recipient: str, rng: np.random.Generator) -> tuple[CachedCase, Lesion] | None:
        """A lesion of another case than ``recipient``; one of its own if no other case has any."""
        below = self.cumulative
        first, last = self.of_case.get(recipient, (0, 0))
        if first == 0 and last == len(self.lesions):
            last = 0
        skipped = below[last] - below[first]
        if not below[-1] > skipped:
            return None
        at = rng.random() * (below[-1] - skipped)
        at += skipped if at >= below[first] else 0
        index = int(np.searchsorted(below, at, side="right")) - 1
        return self.lesions[min(index, len(self.lesions) - 1)]


class CopyPaste:
    """Pastes lesions of other training cases into patches: more lesions, of more cases, in more places.

    A lesion brings its classes and its oedema, but no tissue: its z-scores relative to the healthy tissue around it are
    added to the median of the recipient's tissue around the new place, ``new = (1 - α)·old + α·(local median + σ·Δz)``
    for each modality, σ the recipient's standard deviation. Of several random places inside the brain and
    clear of the recipient's own lesions it takes the one whose tissue is most like what surrounded the lesion. Voxels
    of unknown class may be tumour: nothing is pasted over them, and they bring no tissue.

    After Ghiasi et al., Simple Copy-Paste, CVPR 2021; for lesions of a volume, CarveMix (Zhang et al., MICCAI 2021).

    Args:
        probability: of a patch to be pasted into.
        count: (least, most) lesions pasted into such a patch; one for which there is no place, or whose case lacks a
            modality of the patch, is left out.
        max_volume: of a pasted lesion without its oedema, in mm³.
        exponent: a lesion is drawn with a weight of volume^-exponent; 0 takes all equally often.
        reach: voxels around a lesion up to which its oedema comes along; it fades over the outer half.
        attempts: random places that are compared.
    """

    def __init__(
        self,
        probability: float | int = 0.5,
        count: Sequence[int] = (1, 3),
        max_volume: float | int = 1000,
        exponent: float | int = 0.5,
        reach: int = 8,
        attempts: int = 16,
    ) -> None:
        if len(count) != 2 or not 1 <= count[0] <= count[1]:
            raise ValueError(f"copy_paste.count is [least, most] with 1 <= least <= most, got {list(count)}")
        if max_volume <= 0 or exponent < 0 or reach < 1 or attempts < 1:
            raise ValueError(
                "copy_paste.max_volume must be above 0, exponent at least 0, reach and attempts at least 1, got "
                f"{max_volume}, {exponent}, {reach}, {attempts}"
            )
        self.probability = as_probability("copy_paste.probability", probability)
        self.count = int(count[0]), int(count[1])
        self.max_volume, self.exponent = float(max_volume), float(exponent)
        self.reach, self.attempts = int(reach), int(attempts)
        self.donors: dict[Ints, Donors] = {}
        self._grafts: dict[tuple[str, int, tuple[str, ...]], Graft | None] = {}

    def prepare(self, cases: Sequence[CachedCase]) -> None:
        """Make the training cases the donors. A lesion is pasted only where voxels have its own size."""
        by_size = groupby(sorted(cases, key=_size_key), key=_size_key)
        self._grafts.clear()
        self.donors = {size: Donors.of(list(group), self.max_volume, self.exponent) for size, group in by_size}

    def __call__(
        self,
        image: UInt16[np.ndarray, "m z y x"],
        mask: UInt8[np.ndarray, "z y x"],
        case: CachedCase,
        modalities: Sequence[str],
        rng: np.random.Generator,
    ) -> None:
        """Paste into a patch of ``case``, **in place**, or leave it as it is.

        Args:
            image: quantised intensities of ``modalities``, 0 outside the brain, which stays 0.
            mask: class indices.
            case: the patch is from, which tells how its intensities read.
            modalities: of the image's channels.
            rng: the only source of randomness.
        """
        if rng.random() >= self.probability or _size_key(case) not in self.donors:
            return
        scales, offsets = _zscore(case, modalities)
        for _ in range(int(rng.integers(self.count[0], self.count[1] + 1))):
            drawn = self.donors[_size_key(case)].draw(case.id, rng)
            graft = self._graft(*drawn, modalities) if drawn and set(modalities) <= set(drawn[0].modalities) else None
            if graft is None:
                continue
            graft = graft.turned(rng, isotropic=len(set(_size_key(case))) == 1)
            place = find_place(graft, image, mask, scales, offsets, self.attempts, rng)
            if place is not None:
                paste(graft, image[:, *place], mask[place], scales)

    def _graft(self, case: CachedCase, lesion: Lesion, modalities: Sequence[str]) -> Graft | None:
        key = case.id, lesion.start, tuple(modalities)
        if key not in self._grafts:
            if len(self._grafts) == GRAFTS_KEPT:
                self._grafts.pop(next(iter(self._grafts)))
            self._grafts[key] = cut_out(case, lesion, modalities, self.reach)
        return self._grafts[key]


def cut_out(case: CachedCase, lesion: Lesion, modalities: Sequence[str], reach: int) -> Graft | None:
    """One of a donor's lesions and its oedema up to ``reach`` voxels around, or None if no healthy tissue is near."""
    rows = case.positions()
    known = rows[lesion.start : lesion.stop, 2:].astype(np.int64)
    low = known.min(axis=0) - (reach + SURROUNDINGS)
    size = known.max(axis=0) + (reach + SURROUNDINGS + 1) - low
    classes = read_box(case.mask(), low.tolist(), size.tolist())
    here = tuple((known - low).T)

    # No other lesion's voxels of these classes touch the lesion: that is what a component is.
    own_classes = np.unique(rows[lesion.start : lesion.stop, 1]).tolist()
    core = components_at(in_classes(classes, own_classes), here)
    tumour, fade = core, np.ones(core.shape)
    oedema = classes == rows[0, 1] if rows[0, 0] == 0 else np.zeros(core.shape, bool)  # around lesions comes first
    if oedema.any():
        tumour = core | (components_at(known_classes(classes) > 0, here) & oedema)
        fade = np.clip(2 - 2 * ndimage.distance_transform_edt(~core) / reach, 0, 1)

    inner = nonzero_box(tumour & (fade > 0))
    # There is room: the array was read with as much around the lesion and all its oedema.
    box = tuple(slice(part.start - SURROUNDINGS, part.stop + SURROUNDINGS) for part in inner)
    low = low + [part.start for part in box]
    classes, core, tumour, fade = classes[box], core[box], tumour[box], fade[box]
    region = tumour & (fade > 0)
    image = read_box(case.image(), low.tolist(), classes.shape, channels=case.channels(modalities))
    inside = (image > 0).all(axis=0)
    distance = ndimage.distance_transform_edt(~region)
    surroundings = inside & (classes == 0) & (distance > 1) & (distance <= SURROUNDINGS)
    if surroundings.sum() < 10:
        return None

    alpha = np.clip(1 - distance / (FEATHER + 1), 0, 1) * fade
    others = (classes > 0) & ~tumour
    if others.any():
        alpha *= np.clip((ndimage.distance_transform_edt(~others) - 1) / FEATHER, 0, 1)
    alpha[core] = 1
    alpha[~inside] = 0
    scales, offsets = _zscore(case, modalities)
    background = np.median(image[:, surroundings], axis=1).astype(np.float32)
    return Graft(
        contrast=(image - background[:, None, None, None]) * scales[:, None, None, None],
        background=background * scales + offsets,
        labels=np.where(region & (alpha >= 0.5), classes, 0).astype(np.uint8),
        alpha=alpha.astype(np.float32),
        footprint=distance <= FEATHER + 1,
        surroundings=surroundings,
    )


def find_place(
    graft: Graft,
    image: UInt16[np.ndarray, "m z y x"],
    mask: UInt8[np.ndarray, "z y x"],
    scales: Float32[np.ndarray, " m"],
    offsets: Float32[np.ndarray, " m"],
    attempts: int,
    rng: np.random.Generator,
) -> tuple[slice, ...] | None:
    """The best of some random boxes of a patch for a graft, or None if none fits.

    The graft's labels must lie inside the brain and its footprint off the patch's lesions. The best box is the one
    whose tissue, where the graft's surroundings would lie, is most like them and most even: the sum over
    the modalities of the distance of its median from the graft's background, and of its mean deviation, is least.
    A z-score is ``quantised · scale + offset`` of its modality; ``attempts`` boxes are looked at.
    """
    room = np.subtract(mask.shape, graft.labels.shape)
    if (room < 0).any():
        return None
    starts = rng.integers(room + 1, size=(attempts, 3))
    # A sample of the surroundings is enough to judge a place, and is gathered for all places at once.
    around = np.argwhere(graft.surroundings)
    around = around[rng.integers(len(around), size=64)]
    at = tuple((starts[:, None] + around).transpose(2, 0, 1))
    sample = image[:, *at]
    values = sample * scales[:, None, None] + offsets[:, None, None]
    median = np.median(values, axis=2, keepdims=True)
    difference = np.abs(median[..., 0] - graft.background[:, None]) + np.abs(values - median).mean(axis=2)
    cost = difference.sum(axis=0)
    in_brain = ((sample > 0).all(axis=0) & (mask[at] == 0)).mean(axis=1) > 0.5
    for index in np.argsort(cost, kind="stable"):
        place = tuple(slice(a, a + n) for a, n in zip(starts[index].tolist(), graft.labels.shape, strict=True))
        if in_brain[index] and not mask[place][graft.footprint].any() and image[:, *place][:, graft.labels > 0].all():
            return place
    return None


def paste(
    graft: Graft,
    image: UInt16[np.ndarray, "m z y x"],
    mask: UInt8[np.ndarray, "z y x"],
    scales: Float32[np.ndarray, " m"],
) -> None:
    """Write a graft over a box of its shape, in place; 0 stays 0 in the image and nothing else becomes 0.

    ``scales`` are the z-scores of a quantised step of each modality.
    """
    for old, contrast, scale in zip(image, graft.contrast, scales, strict=True):
        tissue = old[graft.surroundings & (old > 0)]
        per_z = 1 / scale if scale > 0 else 0.0  # a constant modality stays constant
        new = np.median(tissue) + per_z * contrast
        mixed = np.rint(old + graft.alpha * (new - old))
        np.copyto(old, np.clip(mixed, 1, HIGHEST).astype(np.uint16), where=(old > 0) & (graft.alpha > 0))
    np.copyto(mask, graft.labels, where=graft.labels > 0)


def _zscore(case: CachedCase, modalities: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(scales, offsets) by which each modality becomes z-scores, whatever the network's normalisation."""
    parameters = np.stack([normalisation_parameters(case.intensities[name]) for name in modalities])
    return parameters[:, 0], parameters[:, 1]


def _size_key(case: CachedCase) -> Ints:
    """Voxel size (z, y, x) in hundredths of a millimetre."""
    z, y, x = (round(100 * length) for length in case.spacing)
    return z, y, x
