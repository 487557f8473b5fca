"""Grids: how a working array (z, y, x in LPS) lies in an image's own voxel grid, and the exact way back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

Triple = tuple[float, float, float]
Ints = tuple[int, int, int]
Slices = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel grid as nibabel describes it."""

    shape: Ints  # voxels along the array's own three axes
    affine: np.ndarray  # 4×4, voxel index → RAS millimetres
    zooms: Triple = (0.0, 0.0, 0.0)  # voxel size in mm by the header, which scores use; not positive: the affine's

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError(f"an affine must be a finite, invertible 4×4 matrix, got {affine.tolist()}")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        sound = all(0 < size < math.inf for size in self.zooms)
        object.__setattr__(self, "zooms", self.zooms if sound else self.spacing)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def spacing(self) -> Triple:
        """Voxel size in mm along the array's own axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def mismatch(self, other: "Grid", tolerance: float | int, name: str) -> tuple[str, str] | None:
        """What is found here and what ``other``, called ``name``, would have; None if alike within ``tolerance`` mm."""
        if self.shape != other.shape:
            return f"shape {self.shape}", f"{other.shape}, as {name}"
        if (distance := self.distance(other)) > tolerance:
            here, there = (", ".join(f"{v:g}" for v in grid.affine[:3, 3]) for grid in (self, other))
            found = f"lies {distance:.3g} mm off {name} (origin ({here}), there ({there}))"
            own, its = ("".join(nib.aff2axcodes(grid.affine)) for grid in (self, other))
            return found + f"; voxels are in the order {own}, there {its}" * (own != its), f"≤ {tolerance:g} mm"
        return None

    @cached_property
    def in_lps(self) -> "Grid":
        """The same voxels in the order of a working array with its axes reversed: (x, y, z) in LPS."""
        whole = GridTransform.whole(self)
        z, y, x = whole.shape
        return Grid((x, y, z), whole.affine)

    def coincides(self, other: "Grid") -> bool:
        """Whether each voxel lies within half a voxel of one of ``other``, be they stored in another order."""
        own, its = self.in_lps, other.in_lps
        return own.shape == its.shape and own.distance(its) < min(self.spacing) / 2

    def distance(self, other: "Grid") -> float:
        """Largest distance in mm between the places two affines give to the same corner voxel of this grid."""
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
        corners[:, :3] *= np.array(self.shape) - 1
        return float(np.linalg.norm((corners @ (self.affine - other.affine).T)[:, :3], axis=1).max())


@dataclass(frozen=True)
class GridTransform:
    """Where a working array (z, y, x), axis-aligned with LPS, lies in the grid it was made from.

    The original array is first *oriented*: its axes permuted to (z, y, x) and reversed where they run against LPS (an
    oblique affine goes to the closest axes). Then, along each axis, the centre of working voxel ``w`` lies at oriented
    index ``origin + (w + 0.5) · step − 0.5``: one formula for cropping, padding, resampling and resizing. With step 1
    everywhere (and so a whole origin) both ways only copy voxels.
    """

    original: Grid  # that the array comes from
    axes: Ints  # the original axis that becomes working axis z, y, x
    flips: tuple[bool, bool, bool]  # whether that axis is reversed
    origin: Triple  # first working voxel's leading edge, in oriented voxels
    step: Triple  # working voxel size in oriented voxels
    shape: Ints  # of the working array

    @classmethod
    def whole(cls, original: Grid) -> "GridTransform":
        """The whole grid, oriented to LPS, voxel for voxel."""
        to_lps = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(original.affine), nib.orientations.axcodes2ornt("LPS")
        )
        source = {int(target): (axis, bool(sign < 0)) for axis, (target, sign) in enumerate(to_lps)}
        (z, flip_z), (y, flip_y), (x, flip_x) = source[2], source[1], source[0]
        shape = original.shape[z], original.shape[y], original.shape[x]
        return cls(original, (z, y, x), (flip_z, flip_y, flip_x), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), shape)

    @property
    def oriented_shape(self) -> Ints:
        """Shape (z, y, x) of the whole original grid after orientation."""
        return _ints(self.original.shape[axis] for axis in self.axes)

    @property
    def spacing(self) -> Triple:
        """Working voxel size (z, y, x) in mm."""
        original = self.original.spacing
        return _floats(original[axis] * step for axis, step in zip(self.axes, self.step, strict=True))

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Index (x, y, z) of a working voxel → RAS millimetres, of the working array with its axes reversed."""
        to_original = np.eye(4)
        to_original[:3, :3] = 0
        for working, (axis, flip, origin, step) in enumerate(
            zip(self.axes, self.flips, self.origin, self.step, strict=True)
        ):
            oriented = origin + 0.5 * step - 0.5  # index of the first voxel's centre
            sign = -1 if flip else 1
            to_original[axis, 2 - working] = sign * step
            to_original[axis, 3] = self.original.shape[axis] - 1 - oriented if flip else oriented
        return self.original.affine @ to_original

    @property
    def exact(self) -> bool:
        """Whether working voxels are original voxels, so that nothing is interpolated."""
        return self.step == (1.0, 1.0, 1.0) and all(float(o).is_integer() for o in self.origin)

    def crop(self, start: Sequence[int], shape: Sequence[int]) -> "GridTransform":
        """The box of ``shape`` voxels from working voxel ``start`` on; it may reach beyond the array."""
        origin = _floats(o + s * step for o, s, step in zip(self.origin, start, self.step, strict=True))
        return replace(self, origin=origin, shape=_ints(shape))

    def centred(self, shape: Sequence[int]) -> "GridTransform":
        """Cropped or padded to ``shape``, evenly on both sides (an odd voxel goes to the end)."""
        return self.crop([(have - want) // 2 for have, want in zip(self.shape, shape, strict=True)], shape)

    def resample(self, spacing: Sequence[int | float]) -> "GridTransform":
        """The same box at voxel size ``spacing`` (z, y, x) in mm, centred on it; the shape is rounded."""
        shape = _ints(max(1, round(n * a / b)) for n, a, b in zip(self.shape, self.spacing, spacing, strict=True))
        # An axis that has the wanted spacing already (affines carry rounding errors) keeps its voxels.
        scale = [1.0 if abs(b / a - 1) < 1e-4 else b / a for a, b in zip(self.spacing, spacing, strict=True)]
        step = _floats(s * f for s, f in zip(self.step, scale, strict=True))
        return self._stretched(step, shape)

    def resize(self, shape: Sequence[int]) -> "GridTransform":
        """The same box in exactly ``shape`` voxels."""
        step = _floats(s * have / want for s, have, want in zip(self.step, self.shape, shape, strict=True))
        return self._stretched(step, _ints(shape))

    def _stretched(self, step: Triple, shape: Ints) -> "GridTransform":
        parts = zip(self.origin, self.shape, self.step, shape, step, strict=True)
        origin = _floats(o + (n_old * old - n_new * new) / 2 for o, n_old, old, n_new, new in parts)
        return replace(self, origin=origin, step=step, shape=shape)

    def place(self, voxel: Ints) -> Ints:
        """The working voxel (z, y, x) with the centre of a voxel of the original grid; it may lie beyond the array."""
        lengths = self.original.shape
        parts = zip(self.axes, self.flips, self.origin, self.step, strict=True)
        oriented = ((lengths[a] - 1 - voxel[a] if flip else voxel[a], origin, step) for a, flip, origin, step in parts)
        return _ints(math.floor((at + 0.5 - origin) / step + 1e-9) for at, origin, step in oriented)

    def orient(self, array: Shaped[np.ndarray, "i j k"]) -> Shaped[np.ndarray, "z y x"]:
        """View of an array on the original grid with its axes in (z, y, x) LPS order."""
        if array.shape != self.original.shape:
            raise ValueError(f"the array has shape {array.shape}, its grid {self.original.shape}")
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if flip else None) for flip in self.flips)]

    def apply(self, array: Shaped[np.ndarray, "i j k"]) -> Shaped[np.ndarray, "z y x"]:
        """Intensities on the original grid → working array, as `sample` makes it; 0 beyond the original."""
        return self.sample(self.orient(array), (0, 0, 0))

    def sample(self, box: Shaped[np.ndarray, "a b c"], start: Sequence[int]) -> Shaped[np.ndarray, "z y x"]:
        """As `apply`, from a box of the oriented array that begins at voxel ``start``, everything else being 0.

        Along each axis, a working voxel is the mean over its own extent, or over that of an original voxel where that
        is longer. So finer voxels are interpolated linearly, and coarser ones neither alias nor skip what lies between
        their centres. The result is float32, unless the transform is exact and copies voxels.
        """
        if self.exact:
            return read_box(box, [int(o) - s for o, s in zip(self.origin, start, strict=True)], self.shape)
        for axis in sorted(range(3), key=lambda axis: -self.step[axis]):  # those that lose voxels first
            centres = self.origin[axis] + (np.arange(self.shape[axis]) + 0.5) * self.step[axis] - 0.5
            box = _means(box, axis, centres, max(1.0, self.step[axis]), self.oriented_shape[axis], start[axis])
        return box

    def sample_reached(
        self, box: Shaped[np.ndarray, "a b c"], start: Sequence[int]
    ) -> tuple[Slices, Shaped[np.ndarray, "d e f"]]:
        """The working voxels that depend on a box as in `sample`, and their values; all others are 0."""
        reached = []
        for axis, length in enumerate(box.shape):
            # A voxel's mean reaches half an original voxel beyond its centre, or half its own extent.
            half = 0.5 + max(1.0, 1 / self.step[axis]) / 2
            low = math.floor((start[axis] - self.origin[axis]) / self.step[axis] - half)
            high = math.ceil((start[axis] + length - self.origin[axis]) / self.step[axis] + half)
            low, high = (min(max(0, edge), self.shape[axis]) for edge in (low, high))
            reached.append(slice(low, high))
        z, y, x = reached
        part = self.crop([z.start, y.start, x.start], [z.stop - z.start, y.stop - y.start, x.stop - x.start])
        return (z, y, x), part.sample(box, start)

    def sample_labels(self, box: UInt8[np.ndarray, "a b c"], start: Sequence[int]) -> UInt8[np.ndarray, "z y x"]:
        """Labels from a box as in `sample`: 0 unless more than half a voxel is labelled, else what most of it is.

        How much of a voxel has a label is what `sample` makes of that label's mask, so that labels are resampled like
        intensities and outlines stay smooth. Of equals the lowest label counts.
        """
        if self.exact:
            return self.sample(box, start)
        labels = np.zeros(self.shape, np.uint8)
        place, labelled = self.sample_reached(box > 0, start)
        most = np.zeros_like(labelled)
        for label in np.unique(box[box > 0]).tolist():
            _, share = self.sample_reached(box == label, start)
            labels[place][(share > most) & (labelled > 0.5 + 1e-6)] = label
            np.maximum(most, share, out=most)
        return labels

    def restore(self, labels: Shaped[np.ndarray, "z y x"], fill: int = 0) -> Shaped[np.ndarray, "i j k"]:
        """Working labels → original grid, by the working voxel that holds each original voxel's centre.

        Original voxels that the working array doesn't cover get the label ``fill``.
        """
        out = self._blank(labels.dtype, fill)
        self._restore_into(self.orient(out), labels, order=0)
        return out

    def restore_probabilities(self, probabilities: Float[np.ndarray, "c z y x"]) -> Float[np.ndarray, "c i j k"]:
        """Working probabilities → original grid, linear between voxel centres; 0 beyond the working array."""
        out = np.moveaxis(self._blank(probabilities.dtype, 0, len(probabilities)), 3, 0)
        for values, target in zip(probabilities, out, strict=True):
            self._restore_into(self.orient(target), values, order=0 if self.exact else 1)
        return out

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GridTransform":
        """From what ``dataclasses.asdict`` gives, also by way of JSON."""
        grid = values["original"]
        original = Grid(tuple(grid["shape"]), np.array(grid["affine"]), tuple(grid["zooms"]))
        return cls(original, *(tuple(values[name]) for name in ("axes", "flips", "origin", "step", "shape")))

    def _blank(self, dtype: np.dtype, fill: int, *channels: int) -> np.ndarray:
        """An array on the original grid, in memory as the oriented one, since copying across the grain is slow."""
        memory = np.full((*channels, *self.oriented_shape), fill, dtype=dtype)
        return memory.transpose(*(len(channels) + self.axes.index(axis) for axis in range(3)), *range(len(channels)))

    def _restore_into(self, oriented: np.ndarray, working: np.ndarray, order: int) -> None:
        if working.shape != self.shape:
            raise ValueError(f"the working array has shape {working.shape}, its grid transform {self.shape}")
        covered = []
        for axis, length in enumerate(self.shape):
            at = (np.arange(self.oriented_shape[axis]) + 0.5 - self.origin[axis]) / self.step[axis] - 0.5
            inside = np.flatnonzero((at >= -0.5 - 1e-9) & (at < length - 0.5 - 1e-9))
            if not len(inside):
                return
            covered.append(slice(int(inside[0]), int(inside[-1]) + 1))
            if order:
                working = _means(working, axis, at[covered[-1]], 1.0, length, 0)
            else:
                nearest = np.floor(at[covered[-1]] + 0.5 + 1e-9).astype(int)
                working = working[(slice(None),) * axis + (_as_slice(nearest),)]
        oriented[tuple(covered)] = working


def nonzero_box(array: Shaped[np.ndarray, "a b c"]) -> Slices:
    """Smallest box with every voxel that isn't 0; empty slices if there is none."""
    # OR over the bits of whole rows is several times faster than comparing voxels; a float can be -0.
    bits = array if array.dtype.kind in "biu" else array != 0
    plane = np.bitwise_or.reduce(bits, axis=0)
    rows = np.flatnonzero(plane.any(axis=1))
    if not len(rows):
        return slice(0, 0), slice(0, 0), slice(0, 0)
    columns = np.flatnonzero(plane.any(axis=0))
    b, c = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    first = next(i for i in range(len(bits)) if bits[i, b, c].any())
    last = next(i for i in reversed(range(len(bits))) if bits[i, b, c].any())
    return slice(first, last + 1), b, c


def bounding_box(*masks: Shaped[np.ndarray, "a b c"], margin: int = 0) -> Slices:
    """Box around the foreground of all masks and ``margin`` voxels more, within the volume; all empty: one voxel."""
    box = nonzero_box(np.logical_or.reduce([mask != 0 for mask in masks]))
    a, b, c = (slice(max(part.start - margin, 0), max(part.stop, 1) + margin) for part in box)
    return a, b, c


def widened(box: tuple[slice, ...], pads: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """A box with so many voxels around it, as far as there is room, and the first box within the second."""
    wide = tuple(slice(max(0, part.start - pad), part.stop + pad) for part, pad in zip(box, pads, strict=True))
    return wide, tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))


def read_box(
    array: Shaped[np.ndarray, "*c z y x"],
    start: Sequence[int],
    shape: Sequence[int],
    out: Shaped[np.ndarray, "*k bz by bx"] | None = None,
    channels: Sequence[int] | None = None,
) -> Shaped[np.ndarray, "*k bz by bx"]:
    """Copy of a box, zero where it passes the array; of a memory map only the box is read.

    Args:
        array: image (C, Z, Y, X) or mask (Z, Y, X), never written.
        start: first voxel (z, y, x); may be negative.
        shape: (z, y, x) of the box.
        out: array of the box's shape and the array's type to fill; a reused buffer saves the page faults of a new one,
            which cost several times the copy.
        channels: indices of the channels to read, in the order wanted; None reads all of them.

    Raises:
        ValueError: channels of an array without channels, or an ``out`` of another shape or type.
    """
    if channels is not None and array.ndim != 4:
        raise ValueError(f"channels {list(channels)} of a volume without channels, of shape {array.shape}")
    source, target = [], []
    for first, length, extent in zip(start, shape, array.shape[-3:], strict=True):
        low = min(max(first, 0), extent)
        high = max(min(first + length, extent), low)
        source.append(slice(low, high))
        target.append(slice(low - first, high - first))
    full = (*(array.shape[:-3] if channels is None else (len(channels),)), *shape)
    if out is None:
        out = np.empty(full, array.dtype)
    elif out.shape != full or out.dtype != array.dtype:
        raise ValueError(f"out is {out.dtype} {out.shape}, the box is {array.dtype} {full}")
    if any(part.stop - part.start < length for part, length in zip(source, shape, strict=True)):
        out[...] = 0
    for into, channel in [(..., ...)] if channels is None else enumerate(channels):
        out[into, *target] = array[channel, *source]
    return out


def _ints(values: Any) -> Ints:
    a, b, c = (int(v) for v in values)
    return a, b, c


def _floats(values: Any) -> Triple:
    a, b, c = (float(v) for v in values)
    return a, b, c


def _as_slice(indices: np.ndarray) -> Any:
    """Consecutive indices as a slice, which copies nothing."""
    if np.array_equal(indices, np.arange(indices[0], indices[0] + len(indices))):
        return slice(int(indices[0]), int(indices[0]) + len(indices))
    return indices


def _means(
    box: Shaped[np.ndarray, "a b c"], axis: int, at: np.ndarray, width: float, length: int, start: int
) -> Float32[np.ndarray, "d e f"]:
    """Means of an axis of ``length`` voxels over extents ``at`` ± ``width`` / 2, at least a voxel wide.

    With a width of 1 that is linear interpolation between voxel centres. The box holds the voxels from ``start`` on,
    all others are 0. An extent counts as far as it lies on the axis; one whose centre does not is 0.
    """
    inside = (at > -0.5 - 1e-9) & (at < length - 0.5 + 1e-9)
    low, high = (np.clip(edge, -0.5, length - 0.5) for edge in (at - width / 2, at + width / 2))
    first = np.floor(low + 0.5).astype(int)
    box = box.astype(np.float32, copy=False)
    out: np.ndarray | None = None
    for index in (first + tap for tap in range(math.ceil(width) + 1)):
        share = (np.minimum(high, index + 0.5) - np.maximum(low, index - 0.5)) / np.maximum(high - low, 1e-9)
        held = inside & (share > 0) & (index >= start) & (index < start + box.shape[axis])
        if held.any():
            values = np.take(box, np.where(held, index - start, 0), axis=axis)
            values *= np.where(held, share, 0).astype(np.float32).reshape((-1,) + (1,) * (2 - axis))
            out = values if out is None else np.add(out, values, out=out)
    if out is None:
        return np.zeros((*box.shape[:axis], len(at), *box.shape[axis + 1 :]), np.float32)
    return out
