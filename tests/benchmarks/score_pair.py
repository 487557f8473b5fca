"""A seeded reference and prediction of a whole brain with metastases, to time the scores on."""

import math
from dataclasses import dataclass, replace

import numpy as np

NETC, SNFH, ET = 1, 2, 3
BRAIN = np.array([66.0, 84.0, 60.0])  # semi-axes in mm, in the SRI24 grid of 240 × 240 × 155 at 1 mm


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid: centre and semi-axes in voxels, with oedema so many voxels around it."""

    centre: np.ndarray
    axes: np.ndarray
    oedema: float

    def inside(self, shape: tuple[int, ...], margin: float = 0.0) -> tuple[tuple[slice, ...], np.ndarray]:
        """Box, and which of its voxels are in the lesion grown by ``margin`` voxels."""
        axes = np.maximum(self.axes + margin, 0.5)
        low = np.maximum(np.floor(self.centre - axes), 0).astype(int)
        high = np.minimum(np.ceil(self.centre + axes).astype(int) + 1, shape)
        grid = np.ogrid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        parts = zip(grid, self.centre, axes, strict=True)
        distance = sum(((position - centre) / axis) ** 2 for position, centre, axis in parts)
        return tuple(slice(a, b) for a, b in zip(low, high, strict=True)), distance <= 1


def score_pair(
    seed: int = 0, lesions: int = 30, shape: tuple[int, int, int] = (240, 240, 155)
) -> tuple[np.ndarray, np.ndarray]:
    """Reference and prediction, uint8 ``(x, y, z)``.

    Enhancing volumes are log-normal with the median of 40 mm³ and mean of 569 mm³ of BraTS-METS 2025. Larger lesions
    have a necrotic core and oedema. The prediction shifts, shrinks or grows every lesion, misses one in seven and
    invents one for every five.
    """
    rng = np.random.default_rng(seed)
    brain = BRAIN * np.array(shape) / (240, 240, 155)
    reference: list[Lesion] = []
    while len(reference) < lesions:
        volume = float(np.clip(rng.lognormal(math.log(39.7), 2.31), 1, 15_000))
        lesion = _draw(rng, volume, brain, shape)
        gaps = [
            np.linalg.norm(lesion.centre - other.centre) - lesion.axes.max() - other.axes.max() for other in reference
        ]
        if min(gaps, default=np.inf) > 4:
            reference.append(lesion)
    found = [lesion for lesion in reference if rng.random() > 1 / 7]
    prediction = [
        replace(
            lesion,
            centre=lesion.centre + rng.integers(-1, 2, 3),
            axes=np.maximum(lesion.axes + rng.uniform(-0.8, 0.8), 0.7),
            oedema=lesion.oedema * rng.uniform(0.6, 1.3),
        )
        for lesion in found
    ]
    prediction += [_draw(rng, float(rng.lognormal(math.log(30), 1)), brain, shape) for _ in range(lesions // 5)]
    return _paint(reference, shape), _paint(prediction, shape)


def _draw(rng: np.random.Generator, volume: float, brain: np.ndarray, shape: tuple[int, ...]) -> Lesion:
    direction = rng.normal(size=3)
    centre = np.array(shape) / 2 + brain * 0.8 * rng.random() ** (1 / 3) * direction / np.linalg.norm(direction)
    stretch = rng.uniform(0.8, 1.25, 3)
    axes = (3 * volume / (4 * math.pi)) ** (1 / 3) * stretch / stretch.prod() ** (1 / 3)
    return Lesion(np.round(centre), axes, float(rng.uniform(3, 9)) if volume > 60 else 0.0)


def _paint(lesions: list[Lesion], shape: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    for lesion in lesions:
        if lesion.oedema:
            box, inside = lesion.inside(shape, lesion.oedema)
            mask[box][inside] = SNFH
    for lesion in lesions:
        box, inside = lesion.inside(shape)
        mask[box][inside] = ET
        if lesion.axes.min() > 3:
            box, inside = lesion.inside(shape, -0.45 * lesion.axes.min())
            mask[box][inside] = NETC
    return mask
