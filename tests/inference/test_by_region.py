"""Decoding of each region by itself, against a slow implementation that shares nothing with it."""

from collections import deque
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage

from brats_lightning.config.build import build_part
from brats_lightning.core.labels import BRATS_METS, LabelScheme
from brats_lightning.core.targets import RegionTarget
from brats_lightning.inference.postprocessing import ByRegion, Postprocessing
from tests.inference.test_postprocessing import MM, flat, line, steps

CAVITY = LabelScheme(("netc", "snfh", "et", "rc"))
CLASSES = {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,), "rc": (4,)}
WRITTEN = {"wt": 2, "tc": 1, "et": 3, "rc": 4}


def components(mask):
    """Sets of voxels, each 26-connected, in the order of their first voxels."""
    left, found = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}, []
    for first in sorted(left):
        if first not in left:
            continue
        left.remove(first)
        component, edge = {first}, deque([first])
        while edge:
            z, y, x = edge.popleft()
            for dz, dy, dx in product((-1, 0, 1), repeat=3):
                neighbour = z + dz, y + dy, x + dx
                if neighbour in left:
                    left.remove(neighbour)
                    component.add(neighbour)
                    edge.append(neighbour)
        found.append(component)
    return found


def slow_mets2026(region_probabilities):
    """Labels from the probability of each region by itself."""
    labels = np.zeros(next(iter(region_probabilities.values())).shape, np.uint8)
    dropped = 0
    for region in ("wt", "tc", "et"):
        p = region_probabilities[region]
        for component in components(p > 0.25):
            if max(p[voxel] for voxel in component) >= 0.7:
                for voxel in component:
                    labels[voxel] = WRITTEN[region]
            else:
                dropped += 1
    if "rc" in region_probabilities:
        p = region_probabilities["rc"]
        cavities = components(p > 0.5)
        dropped += max(0, len(cavities) - 1)
        for voxel in max(cavities, key=lambda c: (len(c), max(p[v] for v in c)), default=()):
            labels[voxel] = 4
    return labels, dropped


def maps(seed):
    """Random logits of five classes: blobs, sharp in some volumes and blurred in others."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(6, 11, 3))
    logits = np.stack([ndimage.gaussian_filter(rng.normal(0, 1, shape), rng.uniform(0.6, 1.2)) for _ in range(5)])
    logits *= rng.uniform(4, 14) / logits.std()
    logits[0] += rng.uniform(-1, 3)
    return torch.from_numpy(logits.astype(np.float32)).softmax(0).numpy()


@pytest.fixture
def mets2026(composed):
    return build_part("postprocessing", composed("postprocessing=mets2026").postprocessing)


def test_mets2026_equals_the_slow_implementation_on_random_maps(mets2026):
    seen, all_dropped = np.zeros(5, int), 0
    for seed in range(50):
        probabilities = maps(seed)
        expected, dropped = slow_mets2026({r: probabilities[list(c)].sum(0) for r, c in CLASSES.items()})
        for decode in ("argmax", "regions"):
            found = mets2026.decoding(decode)(probabilities, MM, CAVITY)
            np.testing.assert_array_equal(found, expected)
        seen += np.bincount(expected.reshape(-1), minlength=5) > 0
        all_dropped += dropped
    assert (seen > 15).all()  # the maps are no easy ones: every label is in many of them
    assert all_dropped > 100


def test_without_cavities(mets2026):
    for seed in range(5):
        probabilities = maps(seed)
        probabilities[0] += probabilities[4]
        three = {region: probabilities[list(CLASSES[region])].sum(0) for region in ("wt", "tc", "et")}
        expected, _ = slow_mets2026(three)
        np.testing.assert_array_equal(mets2026(probabilities[:4], MM, BRATS_METS), expected)
    assert mets2026.lacking(BRATS_METS) == [
        "postprocessing.steps.cavity leaves out rc, not among the labels netc, snfh, et"
    ]


def test_a_network_of_regions_is_decoded_by_its_sigmoids(mets2026):
    """Where sigmoids lie inside each other, class probabilities give each region's own sigmoid back."""
    rng = np.random.default_rng(0)
    wt, rc = (ndimage.gaussian_filter(rng.random((9, 10, 8)), 1) for _ in range(2))
    wt, rc = (np.clip((p - p.min()) / np.ptp(p) * 1.1, 0.001, 0.999) for p in (wt, rc))
    rc *= 1 - wt
    tc = wt * rng.uniform(0.8, 1, wt.shape)
    et = tc * rng.uniform(0.8, 1, wt.shape)
    sigmoids = {"et": et, "tc": tc, "wt": wt, "rc": rc}
    assert list(CAVITY.regions) == list(sigmoids)
    logits = torch.from_numpy(np.stack([np.log(p / (1 - p)) for p in sigmoids.values()]).astype(np.float32))
    probabilities = RegionTarget(CAVITY).probabilities(logits).numpy()
    for region, classes in CLASSES.items():
        np.testing.assert_allclose(probabilities[list(classes)].sum(0), sigmoids[region], atol=1e-6)
    expected, _ = slow_mets2026(sigmoids)
    np.testing.assert_array_equal(mets2026.decoding("regions")(probabilities, MM, CAVITY), expected)
    assert len(np.unique(expected)) == 5


def test_thresholds_of_each_region_by_hand():
    probabilities = line((0.125, 0.5, 0.25), (0.25, 0.0, 0.5), (0.0, 0.375, 0.0), (0.375, 0.0, 0.25), 0.0)
    # WT 0.875 0.75 0.375 0.625 0, TC 0.375 0.75 0 0.625 0, ET 0.25 0.5 0 0.25 0
    assert flat(Postprocessing()(probabilities, MM, BRATS_METS)) == [2, 3, 0, 0, 0]
    whole = ByRegion(0.25, regions=["wt"])
    assert flat(steps(whole)(probabilities, MM, BRATS_METS)) == [2, 3, 2, 2, 0]
    core, enhancing = ByRegion(0.5, regions=["tc"]), ByRegion(0.125, regions=["et"])
    assert flat(steps(whole, core)(probabilities, MM, BRATS_METS)) == [2, 3, 2, 1, 0]
    assert flat(steps(whole, core, enhancing)(probabilities, MM, BRATS_METS)) == [3, 3, 2, 3, 0]
    assert flat(steps(whole, core, ByRegion(0.5, regions=["et"]))(probabilities, MM, BRATS_METS)) == [2, 1, 2, 1, 0]
    assert flat(steps(ByRegion())(probabilities, MM, BRATS_METS)) == [2, 1, 0, 1, 0]
    assert flat(steps(ByRegion(0.25, 0.75))(probabilities, MM, BRATS_METS)) == [1, 1, 2, 2, 0]  # 0.75 is reached


def test_the_largest_component_of_equals_the_most_probable_one():
    probabilities = line(0.75, 0.0, 0.5, 0.75, 0.0, 0.75, 0.75)
    assert flat(steps(ByRegion(0.25, largest=True))(probabilities, MM, BRATS_METS)) == [0, 0, 3, 3, 0, 0, 0]
    probabilities[:, ..., 2] = probabilities[:, ..., 0]
    probabilities[3, ..., 6], probabilities[0, ..., 6] = 0.875, 0.125
    assert flat(steps(ByRegion(0.25, largest=True))(probabilities, MM, BRATS_METS)) == [0, 0, 0, 0, 0, 3, 3]
    assert flat(steps(ByRegion(0.25, 0.8, largest=True))(probabilities, MM, BRATS_METS)) == [0, 0, 0, 0, 0, 3, 3]
    assert flat(steps(ByRegion(0.25, 0.9, largest=True))(probabilities, MM, BRATS_METS)) == [0] * 7
    assert flat(steps(ByRegion(0.9, largest=True))(probabilities, MM, BRATS_METS)) == [0] * 7
