"""Surfaces and distances, by hand and against all pairs of points."""

import math

import numpy as np
import pytest
from scipy import ndimage

from brats_lightning.metrics.surfaces import (
    Surface,
    cell_surface,
    directed_distances,
    neighbour_codes,
    pooled_hd95,
    surface_dice,
    surface_distances,
    surface_element_areas,
    surface_mask,
    surface_points,
    voxel_surface,
    weighted_hd95,
)
from tests.metrics import metric_rules

SPACINGS = [(1.0, 1.0, 1.0), (0.5, 0.75, 5.0), (3.0, 0.4, 2.0)]


def random_mask(rng, density=None):
    shape = tuple(rng.integers(1, 9, 3))
    return rng.random(shape) < (rng.uniform(0.02, 0.95) if density is None else density)


def test_surface_mask_is_the_mask_without_its_erosion():
    rng = np.random.default_rng(0)
    for _ in range(100):
        mask = random_mask(rng)
        np.testing.assert_array_equal(surface_mask(mask), mask ^ ndimage.binary_erosion(mask))
    full = np.ones((5, 4, 3), bool)  # outside the volume is background
    assert surface_mask(full).sum() == 60 - 3 * 2 * 1


def test_areas_by_hand():
    """Bits 0, 1, 2 and 4 are the corners (000), (001), (010) and (100)."""
    areas = surface_element_areas((1.0, 1.0, 1.0))
    corner, root = math.sqrt(3) / 8, math.sqrt(2)
    assert areas[0b00000001] == pytest.approx(corner)
    assert areas[0b00000011] == pytest.approx(root / 2)  # an edge: 1 × √½
    assert areas[0b00001111] == 1  # a face
    assert areas[0b00000111] == pytest.approx(0.5 + 3 * corner)
    assert areas[0b00010111] == pytest.approx(6 * corner)  # a regular hexagon with sides of √½
    assert areas[0b00010111] == pytest.approx(3 * math.sqrt(3) / 2 / 2)
    assert areas[[0, 255]].tolist() == [0, 0]
    x, y, z = spacing = (2.0, 3.0, 5.0)
    areas = surface_element_areas(spacing)
    assert areas[0b00001111] == y * z
    assert areas[0b00110011] == x * z
    assert areas[0b01010101] == x * y
    assert areas[0b00000001] == pytest.approx(0.5 * math.sqrt((y * z) ** 2 + (x * z) ** 2 + (x * y) ** 2) / 4)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_areas_follow_from_one_code_of_each_class_by_symmetry(spacing):
    np.testing.assert_allclose(surface_element_areas(spacing), metric_rules.area_table(spacing), rtol=1e-14)


def test_neighbour_codes_bit_by_bit():
    rng = np.random.default_rng(1)
    mask = random_mask(rng, 0.5)
    padded, codes = np.pad(mask, 1), neighbour_codes(mask)
    for i, j, k in np.ndindex(codes.shape):
        block = padded[i : i + 2, j : j + 2, k : k + 2]
        assert codes[i, j, k] == sum(int(block[a, b, c]) << (4 * a + 2 * b + c) for a, b, c in np.ndindex(2, 2, 2))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_cell_surface_of_a_box(spacing):
    """Flat faces have their own area; each of the 12 edges is bevelled and each corner cut."""
    mask = np.zeros((9, 9, 9), bool)
    mask[1:5, 2:7, 0:6] = True  # 4 × 5 × 6, at the border
    surface = cell_surface(mask, mask.astype(np.int32), 1, spacing)
    assert len(surface.points) == 5 * 6 * 7 - 3 * 4 * 5
    x, y, z = spacing
    faces = 2 * (4 * 5 * y * z + 3 * 5 * x * z + 3 * 4 * x * y)
    edges = 4 * (3 * x * math.hypot(y, z) + 4 * y * math.hypot(x, z) + 5 * z * math.hypot(x, y)) / 2
    corners = math.sqrt((y * z) ** 2 + (x * z) ** 2 + (x * y) ** 2)  # eight times an eighth
    assert surface.areas.sum() == pytest.approx(faces + edges + corners)


def test_surfaces_are_grouped_by_label():
    labels = np.zeros((5, 5, 9), np.int32)
    labels[1:4, 1:4, 0:3], labels[0, 0, 8], labels[4, 4, 5] = 2, 1, 0
    mask = labels > 0
    mask[4, 4, 5] = True  # foreground without a label
    voxels, cells = voxel_surface(mask, labels, 3), cell_surface(mask, labels, 3, (1.0, 1.0, 1.0))
    assert np.diff(voxels.starts).tolist() == [1, 1, 26, 0]
    assert np.diff(cells.starts).tolist() == [8, 8, 4**3 - 2**3, 0]
    assert voxels.lesion([1]).points.tolist() == [[0, 0, 8]]
    assert len(voxels.lesion([2, 1]).points) == 27
    assert set(map(tuple, cells.lesion([1]).points.tolist())) == {(i, j, 8 + k) for i, j, k in np.ndindex(2, 2, 2)}
    assert len(cells.lesion([3]).points) == 0


@pytest.mark.parametrize("spacing", SPACINGS)
def test_directed_distances_are_the_nearest(spacing):
    rng = np.random.default_rng(2)
    for _ in range(30):
        a, b = (rng.integers(0, 12, (rng.integers(1, 60), 3)) for _ in range(2))
        expected = metric_rules.distances(a, b, spacing)
        np.testing.assert_allclose(directed_distances(a, b, spacing), expected, rtol=1e-14)


def test_a_distance_of_one_voxel_is_exactly_the_spacing():
    """The tolerance of brats2026 is the smallest spacing, and 0.7 · 4 − 0.7 · 3 is not 0.7."""
    spacing = (0.859, 0.7, 1.1)
    points = np.array([[3 * i, 3 * i + 1, 3 * i + 2] for i in range(80)])
    for axis in range(3):
        moved = points + np.eye(3, dtype=int)[axis]
        assert set(directed_distances(points, moved, spacing).tolist()) == {spacing[axis]}


def test_distance_to_nothing_is_infinite():
    points, nothing = np.zeros((2, 3), int), np.zeros((0, 3), int)
    assert directed_distances(points, nothing, (1.0, 1.0, 1.0)).tolist() == [math.inf] * 2
    assert directed_distances(nothing, points, (1.0, 1.0, 1.0)).tolist() == []


def test_pooled_hd95_interpolates_over_both_lists():
    a_to_b, b_to_a = np.arange(10.0), np.arange(10.0, 21.0)  # 0 … 20 together: 95 % lies at 19
    assert pooled_hd95(a_to_b, b_to_a) == 19
    assert pooled_hd95(np.array([0.0]), np.array([2.0])) == pytest.approx(1.9)


def line(distances, areas):
    points = np.stack([np.arange(len(distances))] * 3, axis=1)
    return Surface(points, np.array(areas, float), np.array([0, len(points)])), np.array(distances, float)


def test_weighted_hd95_goes_by_area_and_takes_the_larger_direction():
    small, small_distances = line([1, 2, 9], [90, 4, 6])  # 9 mm holds more than the last 5 %
    other, other_distances = line([1, 3, 8], [90, 6, 4])  # 8 mm less
    assert weighted_hd95(small, other, small_distances, other_distances) == 9
    assert weighted_hd95(other, other, other_distances, other_distances) == 3
    boundary, boundary_distances = line([5, 7], [19, 1])  # exactly 95 % within 5 mm
    assert weighted_hd95(boundary, boundary, boundary_distances, boundary_distances) == 5
    nothing, none = line([], [])
    assert weighted_hd95(small, nothing, small_distances, none) == math.inf


def test_weighted_hd95_sorts():
    a, distances = line([9, 1, 2], [6, 90, 4])
    assert weighted_hd95(a, a, distances, distances) == 9


@pytest.mark.parametrize("spacing", SPACINGS)
def test_both_hausdorff_distances_of_random_masks(spacing):
    rng = np.random.default_rng(4)
    for _ in range(20):
        a = random_mask(rng)
        b = rng.random(a.shape) < 0.4
        if a.any() and b.any():
            none = np.zeros(a.shape, np.int32)
            cells = cell_surface(a, none, 0, spacing), cell_surface(b, none, 0, spacing)
            ours = weighted_hd95(*cells, *surface_distances(*cells, spacing))
            assert ours == pytest.approx(metric_rules.deepmind_hd95(a, b, spacing), abs=1e-12)
            points = surface_points(a), surface_points(b)
            pair = directed_distances(*points, spacing), directed_distances(*points[::-1], spacing)
            theirs = metric_rules.nsd(a, b, spacing, 1.0, 0)
            assert surface_dice(*pair, 1.0) == pytest.approx(theirs, abs=1e-12)


def test_surface_dice_by_hand():
    a_to_b, b_to_a = np.array([0.0, 0.5, 1.0, 2.0]), np.array([0.0, 3.0])
    assert surface_dice(a_to_b, b_to_a, 0.5) == (0.5 + 0.5) / 2
    assert surface_dice(a_to_b, b_to_a, 1.0) == (0.75 + 0.5) / 2
    assert surface_dice(a_to_b, b_to_a, 3.0) == 1
    assert surface_dice(a_to_b, b_to_a, 3.0, epsilon=1e-8) == 2 / (2 + 1e-8)
