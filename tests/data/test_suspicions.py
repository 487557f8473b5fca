"""Each detector finds the fault planted for it in phantoms, and nothing in sound ones."""

import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS, MODALITIES
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.inspection import cell_means, contrasts, inspect_cases, some_slices
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.suspicions import Suspicion, find_suspicions
from brats_lightning.synthetic.phantom import PhantomSettings, case_name, make_case
from tests.data.tiny_cases import save

SETTINGS = PhantomSettings(cases=8, shape=(64, 72, 56))
SECOND, ITS_SIBLING = 3, 2  # the second timepoint of a patient, and the first


@pytest.fixture(scope="module")
def phantoms():
    """The images and the mask of each case, in (z, y, x) LPS."""
    return [make_case(SETTINGS, number) for number in range(SETTINGS.cases)]


@pytest.fixture(scope="module")
def folder(phantoms, tmp_path_factory):
    """The sound cases on disk, and their cache."""
    folder = tmp_path_factory.mktemp("phantoms")
    for number, (images, mask) in enumerate(phantoms):
        write(folder / "raw", number, images, mask)
    return folder


def write(root, number, images, mask):
    name = case_name(number)
    for suffix, volume in (*images.items(), ("seg", mask)):
        save(root / name / f"{name}-{suffix}.nii.gz", np.ascontiguousarray(volume.T))


def inspections(root, cache, modalities=MODALITIES):
    filled = Cache(cache).fill(find_cases(root), modalities)
    assert not filled.problems
    return inspect_cases(filled.cases, BRATS_METS)


@pytest.fixture
def suspicions_with(phantoms, folder, tmp_path):
    """Suspicions about the data set with one case changed by a function of its images and its mask."""

    def find(number, change):
        for name in (case_name(other) for other in range(len(phantoms)) if other != number):
            (tmp_path / name).symlink_to(folder / "raw" / name)
        images, mask = phantoms[number]
        images, mask = dict(images), mask.copy()
        changed = change(images, mask)
        write(tmp_path, number, *(changed or (images, mask)))
        return find_suspicions(inspections(tmp_path, folder / "cache"))

    return find


def test_sound_phantoms_are_not_suspicious(folder):
    assert find_suspicions(inspections(folder / "raw", folder / "cache")) == []


@pytest.mark.parametrize(("one", "other"), [("t1n", "t1c"), ("t1n", "t2w"), ("t2w", "t2f"), ("t1c", "t2f")])
def test_swapped_sequences(suspicions_with, one, other):
    def swap(images, mask):
        images[one], images[other] = images[other], images[one]

    (found,) = [each for each in suspicions_with(5, swap) if "looks like" in each.found]
    assert found.case == case_name(5)
    assert {*found.file.split(", ")} == {one, other}
    assert f"{one} looks like {other}" in found.found


def test_a_mask_off_the_brain(suspicions_with):
    def shift(images, mask):
        outside = np.logical_and.reduce([image == 0 for image in images.values()])
        mask[:] = 0
        z, y, x = np.argwhere(outside)[len(np.argwhere(outside)) // 2]
        mask[z : z + 3, y : y + 3, x : x + 3] = 3

    found = suspicions_with(1, shift)
    assert [(each.case, each.file) for each in found if "outside the brain" in each.found] == [(case_name(1), "seg")]


@pytest.mark.parametrize(("axis", "name"), [(0, "upside down"), (1, "front to back"), (2, "left to right")])
def test_a_flipped_mask(suspicions_with, axis, name):
    def flip(images, mask):
        mask[:] = np.flip(mask, axis).copy()

    found = [each for each in suspicions_with(4, flip) if "flipped" in each.found]
    assert found == [Suspicion(case_name(4), "seg", f"fits the images better when flipped {name}")]


def test_a_scan_flipped_against_its_sibling(suspicions_with):
    def flip(images, mask):
        return {name: image[..., ::-1] for name, image in images.items()}, mask[..., ::-1]

    found = [each for each in suspicions_with(SECOND, flip) if "flipped" in each.found]
    assert {each.case for each in found} == {case_name(SECOND), case_name(ITS_SIBLING)}  # one of the two
    assert case_name(ITS_SIBLING) in found[1].found


def test_copies(suspicions_with, phantoms):
    def copy(images, mask):
        images["t1c"] = images["t1n"]
        images["t2f"] = phantoms[0][0]["t2f"]

    found = [each for each in suspicions_with(6, copy) if "has the voxels" in each.found]
    assert found == [
        Suspicion(case_name(6), "t1c", "has the voxels of t1n"),
        Suspicion(case_name(6), "t2f", f"has the voxels of t2f of {case_name(0)}"),
    ]


def test_few_cases_have_nothing_typical(folder):
    found = inspections(folder / "raw", folder / "cache")[:4]
    assert find_suspicions(found) == []


def test_cells_of_blocks():
    image = np.zeros((1, 32, 32, 48), np.uint16)
    image[0, :, :16, :24] = 10
    image[0, :, 16:, :24] = 30
    image[0, 2::4] *= 2  # the slices that are taken
    found = cell_means(some_slices(image), 16)[0]
    assert found.shape == (8, 16, 16)
    assert (found[:, :8, :8] == 20).all()
    assert (found[:, 8:, :8] == 60).all()
    assert np.isnan(found[:, :, 8:]).all()


def test_a_volume_smaller_than_its_cells():
    assert cell_means(some_slices(np.full((2, 5, 7, 9), 3, np.uint16)), 16).shape == (2, 8, 7, 9)


def test_contrasts_do_not_depend_on_the_scale():
    cells = np.random.default_rng(0).normal(100, 10, (2, 4, 20, 20)).astype(np.float32)
    cells[1] = 500 - 3 * cells[0]  # where one is bright the other is dark
    found = contrasts(cells, ("t1n", "t2w"))
    np.testing.assert_allclose(found["t1n", "t1n"], -found["t2w", "t2w"][::-1], atol=1e-3)
    middles = (0.01, 0.06, 0.3, 0.7, 0.94, 0.99)
    np.testing.assert_allclose(found["t1n", "t2w"], 1 - np.array(middles), atol=2e-3)
    assert contrasts(np.full_like(cells, np.nan), ("t1n", "t2w")) == {}
