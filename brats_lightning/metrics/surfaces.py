"""Surfaces of masks and the distances between them: HD95 in its two definitions and the normalised surface Dice.

A surface is kept as a list of integer positions, so the cost of a distance is that of a KD-tree over surface elements,
not of a distance transform over the volume. Two kinds exist:

* *voxel surfaces*: the foreground voxels with a background voxel among their six face neighbours (the mask XOR its
  erosion);
* *cell surfaces* (DeepMind's surface-distance): the 2×2×2 blocks of voxels that are neither empty nor full, each with
  the area of the surface that marching cubes would draw through it.

Outside the volume is background. Positions and spacing are in the array's own axis order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8
from scipy.spatial import cKDTree

from brats_lightning.core.geometry import Ints, Triple


@dataclass(frozen=True)
class Surface:
    """Surface elements of a labelled mask, sorted by label.

    Attributes:
        points: integer positions.
        areas: mm² of each element, or ones where every element counts alike.
        starts: elements of label ``l`` are the rows ``starts[l]`` to ``starts[l + 1]``.
    """

    points: Int[np.ndarray, "n 3"]
    areas: Float[np.ndarray, " n"]
    starts: Int[np.ndarray, " labels"]

    def lesion(self, labels: Sequence[int]) -> "Surface":
        """The elements of some labels together, now without labels."""
        rows = [slice(self.starts[label], self.starts[label + 1]) for label in labels]
        points = np.concatenate([self.points[part] for part in rows])
        areas = np.concatenate([self.areas[part] for part in rows])
        return Surface(points, areas, np.array([0, len(points)]))


def _sorted_by_label(elements: np.ndarray, labels: np.ndarray, areas: np.ndarray, n_labels: int) -> Surface:
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=n_labels + 1))])
    return Surface(elements[order], areas[order], starts)


def surface_mask(mask: Bool[np.ndarray, "a b c"]) -> Bool[np.ndarray, "a b c"]:
    """Voxels of the mask that have a background voxel, or the volume's border, among their six face neighbours."""
    interior = mask.copy()
    for axis in range(3):
        inner, source = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        inner[1:] &= source[:-1]
        inner[:-1] &= source[1:]
        inner[[0, -1]] = False
    return mask ^ interior


def surface_points(mask: Bool[np.ndarray, "a b c"]) -> Int[np.ndarray, "n 3"]:
    """Positions of the surface voxels, in C order."""
    return _positions(surface_mask(mask))


def _positions(mask: np.ndarray) -> np.ndarray:
    return np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), axis=1)  # 5 × as quick as np.argwhere


def voxel_surface(mask: Bool[np.ndarray, "a b c"], labels: Int32[np.ndarray, "a b c"], n_labels: int) -> Surface:
    """Surface voxels of a mask, grouped by label (0 where a voxel of the mask carries none)."""
    points = surface_points(mask)
    return _sorted_by_label(points, labels[tuple(points.T)], np.ones(len(points)), n_labels)


def cell_surface(
    mask: Bool[np.ndarray, "a b c"], labels: Int32[np.ndarray, "a b c"], n_labels: int, spacing: Triple
) -> Surface:
    """Surface cells of a mask with their areas, grouped by label.

    Cell ``p`` holds the voxels ``p - 1`` and ``p`` along each axis. All voxels of a cell touch each other, so where
    labels number 26-connected components, or unions of them, a cell has one label.
    """
    codes = neighbour_codes(mask)
    points = _positions((codes != 0) & (codes != 255))
    padded = np.pad(labels, 1)
    cell_labels = np.maximum.reduce([padded[tuple((points + corner).T)] for corner in product((0, 1), repeat=3)])
    return _sorted_by_label(points, cell_labels, surface_element_areas(spacing)[codes[tuple(points.T)]], n_labels)


def neighbour_codes(mask: Bool[np.ndarray, "a b c"]) -> UInt8[np.ndarray, "a+1 b+1 c+1"]:
    """Which of a cell's eight voxels are foreground: bit 4i + 2j + k is voxel (i, j, k) of the 2×2×2 block."""
    padded = np.pad(mask, 1).view(np.uint8)
    pairs = padded[..., :-1] | padded[..., 1:] << 1
    quads = pairs[:, :-1] | pairs[:, 1:] << 2
    return quads[:-1] | quads[1:] << 4


@lru_cache
def surface_element_areas(spacing: Triple) -> Float[np.ndarray, "256"]:
    """Area in mm² of the surface through a cell, for each of its 256 neighbour codes.

    The geometry is that of marching cubes (Lorensen and Cline 1987) with vertices in the middle of the cell's edges,
    as DeepMind's ``surface-distance`` tabulates it (https://github.com/google-deepmind/surface-distance). Each triangle
    is its area vector at unit spacing; at another spacing each component grows by the area of the voxel face it is
    normal to.
    """
    x, y, z = spacing
    areas = np.zeros(256)
    for code in range(256):
        for normal in _triangles(code):
            areas[code] += np.linalg.norm(normal * (y, x, x) * (z, z, y))
    return areas


def _triangles(code: int) -> list[np.ndarray]:
    """Area vectors (up to signs) of the triangles that marching cubes draws for a neighbour code.

    A code and its complement have one surface between them, so only the smaller side, of at most four corners, is
    drawn. Corners that share no edge of the cell are cut off separately: that settles the ambiguous faces.
    """
    code = min(code, 255 - code, key=int.bit_count)
    corners = [(i, j, k) for i, j, k in product((0, 1), repeat=3) if code >> (4 * i + 2 * j + k) & 1]
    triangles = []
    while corners:
        group = [corners.pop()]
        for corner in group:  # grows while it is walked
            group += [other for other in corners if _share_edge(corner, other)]
            corners = [other for other in corners if other not in group]
        triangles += _cut(group)
    return triangles


def _share_edge(a: Ints, b: Ints) -> bool:
    return sum(i != j for i, j in zip(a, b, strict=True)) == 1


def _cut(group: list[Ints]) -> list[np.ndarray]:
    """Triangles that cut one to four edge-connected corners off a cell."""
    flat = np.ptp(group, axis=0) == 0  # axes along which the corners do not differ
    oblique = np.full(3, 1 / 8)
    match len(group), flat.sum():
        case 1, _:  # a corner: one triangle
            return [oblique]
        case 2, _:  # an edge: a rectangle
            return 2 * [flat / 4]
        case 3, _:  # an L in a face: a pentagon
            return [flat / 2, 2 * oblique, oblique]
        case 4, 1:  # a face: a square
            return 2 * [flat / 2]
    inner = [corner for corner in group if sum(_share_edge(corner, other) for other in group) == 2]
    if not inner:  # a corner with its three neighbours: a hexagon
        return [oblique, 2 * oblique, 2 * oblique, oblique]
    # A path along all three axes: a skew hexagon, with one triangle in the plane of each outer edge and the diagonal.
    middle = np.abs(np.subtract(inner[0], inner[1]))
    return [oblique, 3 * oblique, *((1 - edge) / 4 for edge in np.eye(3) if not (edge == middle).all())]


def directed_distances(
    points: Int[np.ndarray, "n 3"], others: Int[np.ndarray, "m 3"], spacing: Triple
) -> Float[np.ndarray, " n"]:
    """Distance in mm from each point to the nearest of the others; infinite if there are none.

    The tree only finds the neighbour: the distance is taken anew from the difference of the integer positions, as a
    distance transform does, so that one voxel's width is exactly the spacing and compares as equal to a tolerance.
    """
    if len(others) == 0:
        return np.full(len(points), np.inf)
    scale = np.array(spacing, dtype=np.float64)
    # Grid positions in order need no balancing; large leaves suit thin sheets of points.
    tree = cKDTree(others * scale, leafsize=32, balanced_tree=False, compact_nodes=False)
    _, nearest = tree.query(points * scale)
    offsets = (points - others[nearest]) * scale
    return np.sqrt((offsets * offsets).sum(axis=1))


def surface_distances(a: Surface, b: Surface, spacing: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from the elements of ``a`` to ``b``, and from those of ``b`` to ``a``."""
    return directed_distances(a.points, b.points, spacing), directed_distances(b.points, a.points, spacing)


def pooled_hd95(a_to_b: Float[np.ndarray, " n"], b_to_a: Float[np.ndarray, " m"]) -> float:
    """95th percentile of the directed distances of both surfaces in one list (panoptica, MedPy)."""
    return float(np.percentile(np.concatenate([a_to_b, b_to_a]), 95))


def weighted_hd95(a: Surface, b: Surface, a_to_b: Float[np.ndarray, " n"], b_to_a: Float[np.ndarray, " m"]) -> float:
    """DeepMind's robust Hausdorff distance: the larger of the two directions' 95 % points by surface area.

    The 95 % point of a direction is the smallest distance within which 95 % of the area lies. Infinite if a surface is
    empty.
    """
    if len(a_to_b) == 0 or len(b_to_a) == 0:
        return np.inf
    return max(_area_quantile(a_to_b, a.areas), _area_quantile(b_to_a, b.areas))


def _area_quantile(distances: np.ndarray, areas: np.ndarray) -> float:
    order = np.lexsort((areas, distances))
    areas = areas[order]
    index = int(np.searchsorted(np.cumsum(areas) / np.sum(areas), 0.95))
    return float(distances[order[index]])


def surface_dice(
    a_to_b: Float[np.ndarray, " n"], b_to_a: Float[np.ndarray, " m"], tolerance: float, epsilon: float = 0.0
) -> float:
    """Normalised surface Dice: the mean of the two surfaces' fractions within ``tolerance`` mm of the other one.

    With t and f the fractions of a surface's elements within and beyond: (t_a + t_b) / (t_a + t_b + f_a + f_b + ε), as
    in GaNDLF and panoptica. Every element counts alike, unlike in Nikolov et al.'s definition by area.
    """
    within = np.mean(a_to_b <= tolerance) + np.mean(b_to_a <= tolerance)
    beyond = np.mean(a_to_b > tolerance) + np.mean(b_to_a > tolerance)
    return float(within / (within + beyond + epsilon))
