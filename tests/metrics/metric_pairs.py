"""Random pairs of small masks that are hard to score: for the property tests and for the live oracle."""

import numpy as np

SPACINGS = ((1.0, 1.0, 1.0), (0.859, 0.859, 1.5), (0.5, 0.75, 5.0), (1.5, 1.0, 0.6), (3.0, 0.4, 2.0), (0.5, 0.5, 1.0))


def random_pair(
    rng: np.random.Generator, classes: int = 3, longest: int = 26
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Reference and prediction, uint8 ``(x, y, z)``, and a spacing as a float32 header holds it."""
    shape = tuple(int(n) for n in rng.integers(5, longest + 1, 3))
    reference = np.zeros(shape, np.uint8)
    kind = rng.choice(["blobs", "blobs", "blobs", "ties", "noise", "empty"])
    if kind == "blobs":
        for _ in range(rng.integers(1, 7)):
            _blob(reference, rng, classes)
    elif kind == "ties":
        _ties(reference, rng, classes)
    elif kind == "noise":
        reference[rng.random(shape) < rng.uniform(0.005, 0.15)] = 1
        reference *= rng.integers(1, classes + 1, shape, dtype=np.uint8)
    prediction = _perturbed(reference, rng, classes)
    spacing = tuple(float(np.float32(value)) for value in SPACINGS[rng.integers(len(SPACINGS))])
    return reference, prediction, spacing


def _blob(mask: np.ndarray, rng: np.random.Generator, classes: int) -> None:
    """Nested ellipsoids or boxes of one or several classes, often across the border."""
    centre = rng.integers(0, mask.shape)
    axes = rng.uniform(0.4, 5, 3)
    grid = np.ogrid[tuple(slice(n) for n in mask.shape)]
    for value in rng.permutation(np.arange(1, classes + 1))[: rng.integers(1, classes + 1)]:
        x, y, z = (np.abs(position - c) / axis for position, c, axis in zip(grid, centre, axes, strict=True))
        mask[x**2 + y**2 + z**2 <= 1 if rng.random() < 0.7 else np.maximum(np.maximum(x, y), z) <= 1] = value
        axes = axes * rng.uniform(0.4, 0.9)


def _ties(mask: np.ndarray, rng: np.random.Generator, classes: int) -> None:
    """Equal bars at equal gaps of one to three voxels along one axis: many matchings are equally good."""
    axis, value = rng.integers(3), rng.integers(1, classes + 1)
    bars, gap = np.moveaxis(mask, axis, 0), rng.integers(1, 4)
    width = int(rng.integers(1, 4))
    thickness = slice(1, 1 + int(rng.integers(1, 5)))
    for start in range(int(rng.integers(0, 2)), mask.shape[axis], width + gap):
        bars[start : start + width, thickness, thickness] = value


def _perturbed(mask: np.ndarray, rng: np.random.Generator, classes: int) -> np.ndarray:
    match rng.choice(["same", "shift", "shift", "drop", "extra", "swap", "empty", "bridge"]):
        case "empty":
            return np.zeros_like(mask)
        case "shift":
            moved = np.roll(mask, tuple(rng.integers(-2, 3, 3)), axis=(0, 1, 2))
            _blob(moved, rng, classes)
            return moved
        case "drop":
            return mask * (rng.random(mask.shape) < rng.uniform(0.3, 0.98))
        case "extra":
            more = mask.copy()
            more[rng.random(mask.shape) < 0.01] = rng.integers(1, classes + 1)
            return more
        case "swap":
            return np.where(mask > 0, mask % classes + 1, 0).astype(np.uint8)
        case "bridge":
            joined = mask.copy()
            joined[:, rng.integers(mask.shape[1]), rng.integers(mask.shape[2])] = rng.integers(1, classes + 1)
            return joined
    return mask.copy()
