"""The brain of a phantom: tissues, fluid, vessels and the look-alikes of lesions, and how four MR sequences show them.

Arrays are ``(z, y, x)`` in LPS: x grows to the patient's left, y to posterior, z to superior. Lengths are millimetres.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

FloatVolume = Float32[np.ndarray, "z y x"]

ADULT_MM = 130.0  # mean extent of the brain the millimetre sizes below are meant for; smaller brains shrink them


@dataclass(frozen=True)
class Frame:
    """The voxel grid and the ellipsoid that the brain fills; shape and spacing in (z, y, x) order."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]

    @cached_property
    def semi_axes(self) -> tuple[float, ...]:
        """Semi-axes of the brain in mm, a margin of background left around it."""
        return tuple(0.47 * n * step for n, step in zip(self.shape, self.spacing, strict=True))

    @cached_property
    def scale(self) -> float:
        """Size of this brain as a fraction of an adult's."""
        return 2 * float(np.mean(self.semi_axes)) / ADULT_MM

    @property
    def fine_scale(self) -> float:
        """The same for thin structures, which would vanish between the voxels of a small brain."""
        return max(self.scale, 0.5)

    @property
    def voxel_mm(self) -> float:
        """Edge of the cube with a voxel's volume: the width of partial-volume ramps."""
        return float(np.prod(self.spacing)) ** (1 / 3)

    def axes(self, box: tuple[slice, ...] | None = None) -> list[Float32[np.ndarray, "..."]]:
        """Broadcastable z, y, x positions in mm from the volume's centre, inside ``box``."""
        grids = []
        for axis, (n, step) in enumerate(zip(self.shape, self.spacing, strict=True)):
            positions = ((np.arange(n) - (n - 1) / 2) * step).astype(np.float32)
            dims = [1, 1, 1]
            dims[axis] = -1
            grids.append(positions[box[axis] if box else slice(None)].reshape(dims))
        return grids

    def box(self, low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"]) -> tuple[slice, ...]:
        """The voxels between two (z, y, x) points in mm."""
        bounds = zip(low, high, self.shape, self.spacing, strict=True)
        return tuple(
            slice(
                max(0, int(np.floor(a / step + (n - 1) / 2))), max(0, min(n, int(np.ceil(b / step + (n - 1) / 2)) + 1))
            )
            for a, b, n, step in bounds
        )

    def place(self, points: Sequence[float] | np.ndarray) -> Float[np.ndarray, "... 3"]:
        """(x, y, z) as fractions of the semi-axes, the way anatomy is written below, to (z, y, x) in mm."""
        return np.asarray(points, dtype=float)[..., ::-1] * self.semi_axes


def ramp(distance: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Fraction of a voxel inside a boundary, from the depth of its centre in voxels: 0 … 1 over one voxel."""
    return np.clip(distance + 0.5, 0, 1)


def smooth_field(
    rng: np.random.Generator, frame: Frame, wavelength: float, shape: tuple[int, ...] | None = None
) -> FloatVolume:
    """Random field of unit variance, smooth over about ``wavelength`` mm: cubic B-splines with normal coefficients."""
    sizes = shape or frame.shape
    position = [np.arange(n) * min(1.0, 2 * step / wavelength) for n, step in zip(sizes, frame.spacing, strict=True)]
    field = rng.standard_normal([int(knots[-1]) + 4 for knots in position], dtype=np.float32)
    for axis in (2, 1, 0):  # the cheapest order: the whole volume is touched along contiguous slabs only
        knot, t = np.divmod(position[axis], 1)
        weights = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
        wide = [-1 if i == axis else 1 for i in range(3)]
        parts = (
            np.float32(w / 6).reshape(wide) * field.take(knot.astype(int) + i, axis) for i, w in enumerate(weights)
        )
        field = np.add(np.add(next(parts), next(parts)), np.add(next(parts), next(parts)))
    return field / np.float32((151 / 315) ** 1.5)  # 151/315 is the integral of the squared spline


def stamp(
    volume: FloatVolume,
    frame: Frame,
    points: Float[np.ndarray, "n 3"],
    radii: Float[np.ndarray, " n"],
    height: float | Float[np.ndarray, " n"] = 1.0,
) -> None:
    """Raises ``volume`` to the coverage (times ``height``) of small balls at (z, y, x) points in mm."""
    if not len(points):
        return
    reach = [int(np.ceil(radii.max() / step + 0.5)) for step in frame.spacing]
    offsets = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), -1).reshape(-1, 3)
    spacing = np.asarray(frame.spacing)
    index = points / spacing + (np.asarray(frame.shape) - 1) / 2
    voxels = np.rint(index).astype(int)[:, None] + offsets
    distance = np.sqrt((((voxels - index[:, None]) * spacing) ** 2).sum(-1))
    coverage = np.reshape(height, (-1, 1)) * ramp((radii[:, None] - distance) / frame.voxel_mm)
    inside = (coverage > 0) & ((voxels >= 0) & (voxels < frame.shape)).all(-1)
    flat = np.ravel_multi_index(tuple(voxels[inside].T), frame.shape)
    np.maximum.at(volume.reshape(-1), flat, coverage[inside].astype(np.float32))


def capsules(
    volume: FloatVolume, frame: Frame, path: Sequence[tuple[float, ...]], side: float, size: float = 1.0
) -> None:
    """Raises ``volume`` to the coverage of a tube along ``path`` of (x, y, z, radius): as for `Frame.place`, mm."""
    nodes = np.asarray(path)
    points = frame.place(nodes[:, :3] * (side, 1, 1))
    radii = nodes[:, 3] * size * frame.scale
    for a, b, r0, r1 in zip(points, points[1:], radii, radii[1:], strict=False):
        reach = max(r0, r1) + 2 * max(frame.spacing)
        box = frame.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
        offset = [grid - np.float32(start) for grid, start in zip(frame.axes(box), a, strict=True)]
        along = sum(d * np.float32(v) for d, v in zip(offset, b - a, strict=True)) / np.float32(((b - a) ** 2).sum())
        along = np.clip(along, 0, 1)
        distance = np.sqrt(sum((d - along * np.float32(v)) ** 2 for d, v in zip(offset, b - a, strict=True)))
        np.maximum(volume[box], ramp((r0 + (r1 - r0) * along - distance) / frame.voxel_mm), out=volume[box])


# (x, y, z, radius): x for the patient's left side, mirrored for the right. Lateral ventricle from the frontal horn
# over the body to the atrium, then its two other horns.
LATERAL_VENTRICLE = [
    (0.17, -0.42, 0.10, 2.0),
    (0.12, -0.25, 0.20, 4.5),
    (0.12, 0.05, 0.27, 4.0),
    (0.26, 0.33, 0.12, 5.5),
]
OCCIPITAL_HORN = [(0.26, 0.33, 0.12, 5.5), (0.24, 0.58, 0.06, 2.0)]
TEMPORAL_HORN = [(0.26, 0.33, 0.12, 5.5), (0.46, 0.18, -0.20, 2.0), (0.50, -0.12, -0.33, 1.5)]
THIRD_AND_FOURTH = [
    [(0.0, -0.12, -0.08, 1.5), (0.0, 0.12, 0.0, 1.5)],
    [(0.0, 0.38, -0.42, 3.0), (0.0, 0.36, -0.68, 2.0)],
]
THALAMUS = [(0.14, 0.0, 0.02, 8.0), (0.20, 0.16, 0.03, 6.5)]
PUTAMEN = [(0.30, -0.24, 0.0, 4.5), (0.36, 0.02, 0.0, 4.5)]
CAUDATE = [(0.24, -0.36, 0.1, 3.5), (0.22, -0.1, 0.26, 2.5)]
# Veins of the dura, along the crown and from its end behind to either side; the arteries of the base.
SAGITTAL_SINUS = [
    (0.0, -0.75, 0.42),
    (0.0, -0.5, 0.8),
    (0.0, 0.0, 0.98),
    (0.0, 0.5, 0.84),
    (0.0, 0.8, 0.55),
    (0.0, 0.97, 0.1),
]
TRANSVERSE_SINUS = [(0.0, 0.97, 0.1), (0.4, 0.85, -0.2), (0.72, 0.5, -0.32), (0.8, 0.25, -0.4)]
BASAL_ARTERY = [(0.0, 0.1, -0.9), (0.0, 0.0, -0.45), (0.15, -0.15, -0.4), (0.45, -0.2, -0.35), (0.7, -0.1, -0.15)]
CEREBELLUM = ((0.0, 0.52, -0.62), (0.62, 0.40, 0.34))  # centre and semi-axes


@dataclass(frozen=True)
class Brain:
    """Coverages (0 … 1) of what a brain is made of, and where lesions may grow."""

    frame: Frame
    inside: Bool[np.ndarray, "z y x"]  # the brain, skull and all else stripped
    room: Bool[np.ndarray, "z y x"]  # where a lesion may lie: off the surface, the mid-line and the ventricles
    pia: FloatVolume  # mm to the nearest fold or surface of the cortex; grey matter ends and white begins at GREY_MM
    layers: dict[str, FloatVolume]  # painted over the white matter in this order


GREY_MM = 3.0
# What each is worth in T1n, T1c, T2w and T2-FLAIR, white matter's T1n = 1.
SIGNAL = {
    "white": (1.00, 0.82, 0.62, 0.80),
    "grey": (0.80, 0.72, 0.86, 0.95),
    "deep": (0.88, 0.77, 0.72, 0.88),
    "wmh": (0.86, 0.74, 1.05, 1.45),  # ageing's white-matter spots and caps on the ventricles' horns
    "csf": (0.32, 0.30, 2.10, 0.24),
    "plexus": (0.50, 1.60, 1.60, 0.80),
    "dura": (0.60, 1.50, 0.70, 0.70),
    "vessel": (0.82, 1.80, 0.62, 0.75),  # finer than a voxel, most blend their flow void with the fluid around
    "t1spot": (1.75, 1.55, 0.75, 0.85),  # blood, melanin, fat: bright before contrast too
}


def make_brain(rng: np.random.Generator, frame: Frame, look_alikes: bool = True) -> Brain:
    """A random brain that fills the frame, with the look-alikes of lesions or, where only masks are wanted, without."""
    scale, fine, voxel = frame.scale, frame.fine_scale, frame.voxel_mm
    z, y, x = frame.axes()
    zn, yn, xn = (grid / np.float32(a) for grid, a in zip((z, y, x), frame.semi_axes, strict=True))
    # The forehead is narrower than the back of the head, the base flatter than the crown.
    radius = np.sqrt((xn * (1 - 0.12 * yn)) ** 2 + yn**2 + (zn * np.where(zn < 0, 1.06, 1.0).astype(np.float32)) ** 2)
    radius += np.float32(0.02) * smooth_field(rng, frame, 45 * scale)
    depth = (1 - radius) * np.float32(np.mean(frame.semi_axes))
    inside = depth > 0

    # Sulci are the sheets on which a smooth field vanishes; they end 12 … 20 mm under the surface.
    fold = np.abs(smooth_field(rng, frame, 15 * fine))
    fold *= np.float32(4.2)
    fold += np.clip(depth - np.float32(rng.uniform(12, 17) * scale), 0, None) * np.float32(0.35)
    middle = np.float32(2 * scale) * smooth_field(rng, frame, 90 * scale)[:, :, :1]
    fissure = np.abs(x - middle)
    bridge = np.clip(0.52 - np.hypot(yn, zn), 0, None) + np.clip(-0.25 - zn, 0, None)  # corpus callosum and brain stem
    fissure = fissure + bridge * np.float32(40 * scale)
    pia = np.minimum(np.minimum(depth, fold), fissure)

    centre, axes = (frame.place(v) for v in CEREBELLUM)
    box = frame.box(centre - axes - 3, centre + axes + 3)
    bz, by, bx = (grid - np.float32(c) for grid, c in zip(frame.axes(box), centre, strict=True))
    lobe = (1 - np.sqrt((bz / axes[0]) ** 2 + (by / axes[1]) ** 2 + (bx / axes[2]) ** 2)).astype(np.float32)
    lobe *= np.float32(np.mean(axes))
    folia = np.abs((bz * 0.8 + by * 0.5 + np.abs(bx) * 0.2) / np.float32(5 * fine) % 1 - 0.5)
    folia = folia * np.float32(7) + np.float32(0.3) + np.clip(lobe - 9 * scale, 0, None) * np.float32(0.5)
    pia[box] = np.where(lobe > 0, np.minimum(np.minimum(lobe, folia), depth[box]), np.minimum(pia[box], -lobe))

    atrophy, size = rng.uniform(0.4, 1.0), rng.uniform(0.75, 1.35)
    layers = {name: np.zeros(frame.shape, np.float32) for name in SIGNAL if name != "white"}
    ventricle = np.zeros(frame.shape, np.float32)
    for side in (1.0, -1.0):
        own = size * rng.uniform(0.85, 1.15)  # the two sides are never alike
        for path in (LATERAL_VENTRICLE, OCCIPITAL_HORN, TEMPORAL_HORN):
            capsules(ventricle, frame, path, side, own)
        for path in (THALAMUS, PUTAMEN, CAUDATE):
            capsules(layers["deep"], frame, path, side)
        caps = [LATERAL_VENTRICLE[:2], OCCIPITAL_HORN]
        for path in caps:
            capsules(layers["wmh"], frame, [(*node[:3], node[3] + 2.5) for node in path], side, own)
    layers["wmh"] *= np.float32(rng.uniform(0, 1))
    for path in THIRD_AND_FOURTH:
        capsules(ventricle, frame, path, 1.0, size)

    layers["grey"][...] = ramp((GREY_MM * fine - pia) / voxel)
    layers["csf"][...] = np.maximum(ramp((atrophy * fine - pia) / voxel), ventricle)
    room = (depth > 1.5 * scale) & (fissure > 1.5 * scale) & (ventricle < 0.1)

    if look_alikes:
        _paint_look_alikes(rng, frame, depth, ventricle, np.flatnonzero(room & (pia > GREY_MM * fine)), layers)
    return Brain(frame, inside, room, pia, layers)


def _paint_look_alikes(
    rng: np.random.Generator,
    frame: Frame,
    depth: FloatVolume,
    ventricle: FloatVolume,
    white: Int[np.ndarray, " n"],
    layers: dict[str, FloatVolume],
) -> None:
    """What enhances, or shines in FLAIR, and is no lesion; ``white`` are the flat indices of deep white matter."""
    _paint_vessels(rng, frame, layers["vessel"])
    patches = smooth_field(rng, frame, 40 * frame.scale) - np.float32(rng.uniform(0.7, 1.5))
    layers["dura"][...] = ramp((1.5 - depth) / frame.voxel_mm) * np.clip(patches * 3, 0, 1)
    atrium = np.asarray([LATERAL_VENTRICLE[-1][:3]] * 24) * np.where(np.arange(24) % 2, 1, -1)[:, None] ** [1, 0, 0]
    tufts = frame.place(atrium) + rng.normal(0, 2.5 * frame.scale, (24, 3))
    stamp(layers["plexus"], frame, tufts, rng.uniform(0.8, 1.8, 24))
    layers["plexus"] *= ventricle
    if len(white):
        for name, count, largest in (("wmh", int(rng.integers(0, 25)), 2.2), ("t1spot", int(rng.integers(1, 8)), 2.5)):
            voxels = np.stack(np.unravel_index(rng.choice(white, count), frame.shape), -1)
            points = (voxels - (np.asarray(frame.shape) - 1) / 2) * frame.spacing
            stamp(layers[name], frame, points, rng.uniform(0.8, largest, count), rng.uniform(0.6, 1.0))


def _paint_vessels(rng: np.random.Generator, frame: Frame, vessel: FloatVolume) -> None:
    """Branching curved tubes of 1 … 2.5 mm calibre, and the larger sinus along the crown.

    Each starts somewhere and walks on; near the surface it bends to follow it, as the vessels of the pia do.
    """
    for path, side, calibre in (
        (SAGITTAL_SINUS, 1, 2.4),
        (TRANSVERSE_SINUS, 1, 2.4),
        (TRANSVERSE_SINUS, -1, 2.0),
        (BASAL_ARTERY, 1, 1.6),
        (BASAL_ARTERY, -1, 1.6),
    ):
        nodes = np.asarray(path) * (side * 0.97, 0.97, 0.97)
        steps = np.linspace(0, len(nodes) - 1, int(300 * frame.scale) + 2)
        tube = np.stack([np.interp(steps, np.arange(len(nodes)), nodes[:, i]) for i in range(3)], -1)
        stamp(vessel, frame, frame.place(tube), np.full(len(tube), calibre * rng.uniform(0.7, 1.1) * frame.scale))

    def directions(n: int) -> np.ndarray:
        vectors = rng.standard_normal((n, 3))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    semi = np.asarray(frame.semi_axes)
    n = int(rng.integers(28, 48))
    start = directions(n) * semi * rng.uniform(0.35, 0.95, (n, 1))
    radii = rng.uniform(0.7, 1.25, n)
    for _ in range(3):  # trunks, branches, twigs
        position, heading, turn = start, directions(len(start)), directions(len(start))
        walked = []
        for _ in range(int(45 * frame.scale) + 4):
            normal = position / semi**2
            normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
            r = np.linalg.norm(position / semi, axis=1, keepdims=True)
            outward = (heading * normal).sum(1, keepdims=True)
            pull = np.clip((r - 0.85) / 0.1, 0, 1) * outward + np.clip(r - 0.93, 0, None) * 8
            turn = 0.9 * turn + 0.45 * directions(len(start))
            heading = heading + 0.12 * turn - pull * normal
            heading /= np.linalg.norm(heading, axis=1, keepdims=True)
            position = position + heading
            walked.append(position)
        paths = np.stack(walked, 1)  # vessel, step, zyx
        fade = np.linspace(1, 0.75, paths.shape[1])
        filling = np.repeat(rng.uniform(0.35, 1.0, n), paths.shape[1])  # with contrast medium: arteries less than veins
        stamp(vessel, frame, paths.reshape(-1, 3), (radii[:, None] * fade).reshape(-1), filling)
        cut = rng.integers(0, paths.shape[1] - 3, n)[:, None] + np.arange(3)  # where one dives: a dot in most slices
        bulge = paths[np.arange(n)[:, None], cut][: n // 3]
        stamp(vessel, frame, bulge.reshape(-1, 3), np.repeat(rng.uniform(1.0, 1.8, n // 3), 3), 0.8)
        picks = rng.integers(0, len(paths), n)
        start = paths[picks, rng.integers(0, paths.shape[1], n)]
        radii = np.maximum(radii[picks] * rng.uniform(0.6, 0.9, n), 0.5)
