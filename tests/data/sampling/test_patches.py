"""Which patch: uniformity, lesions that are really inside, borders, and the copy itself."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import chisquare

from brats_lightning.core.geometry import read_box
from brats_lightning.data.sampling.patches import LesionBalanced, SliceBlocks, UniformPatches


@dataclass
class FakeCase:
    """Lesions given as lists of voxels (z, y, x)."""

    shape: tuple[int, int, int]
    voxels: tuple = ()
    id: str = "case"

    def __post_init__(self):
        stops = np.cumsum([len(lesion) for lesion in self.voxels]).tolist()
        starts = [0, *stops[:-1]]
        self.lesions = [SimpleNamespace(start=a, stop=b) for a, b in zip(starts, stops, strict=False)]

    def positions(self):
        rows = [(number + 1, 3, *voxel) for number, lesion in enumerate(self.voxels) for voxel in lesion]
        return np.array(rows, dtype=np.int16).reshape(-1, 5)


def starts(sampler, case, n, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([sampler.draw_start(case, sampler.draw_size(rng), rng) for _ in range(n)])


def test_uniform_patches_take_every_start_equally_often():
    drawn = starts(UniformPatches([4, 3, 5]), FakeCase((6, 3, 8)), 6000)
    assert set(map(tuple, drawn)) == {(z, 0, x) for z in range(3) for x in range(4)}
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert chisquare(counts).pvalue > 0.01


def test_a_smaller_volume_is_centred():
    case = FakeCase((4, 9, 5), (((3, 8, 4),),))
    for sampler in (UniformPatches([8, 4, 8]), LesionBalanced([8, 4, 8], ratio=1.0, margin=0)):
        z, y, x = starts(sampler, case, 50).T
        assert set(z) == {-2}
        assert set(x) == {-2}  # 1 voxel of zeros after, 2 before
        assert y.min() >= 0
        assert y.max() <= 5
    patch = read_box(np.ones((4, 9, 5), np.uint8), (-2, 0, -2), (8, 4, 8))
    assert patch[:, 0, 3].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert patch[3, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0]


def test_equal_generators_draw_equal_patches():
    case = FakeCase((40, 40, 40), (((20, 20, 20),), ((5, 6, 7),)))
    for sampler in (UniformPatches([8, 8, 8]), LesionBalanced([8, 8, 8]), SliceBlocks([2, 9], [8, 8])):
        np.testing.assert_array_equal(starts(sampler, case, 20, seed=3), starts(sampler, case, 20, seed=3))
        assert (starts(sampler, case, 20, seed=3) != starts(sampler, case, 20, seed=4)).any()


def test_each_lesion_is_drawn_equally_often_whatever_its_volume():
    big = tuple((z, y, 5) for z in range(5, 10) for y in range(5, 10))
    case = FakeCase((60, 30, 30), (big, ((30, 20, 20),), ((50, 3, 3), (51, 3, 3))))
    drawn = starts(LesionBalanced([8, 8, 8], ratio=1.0), case, 3000)
    ends = drawn + 8
    held = [
        np.mean([any(np.all((s <= v) & (v < e)) for v in np.array(lesion)) for s, e in zip(drawn, ends, strict=True)])
        for lesion in case.voxels
    ]
    assert sum(held) == pytest.approx(1)  # they are too far apart to share a patch
    assert chisquare(np.array(held) * 3000).pvalue > 0.01


@pytest.mark.parametrize("voxel", [(0, 0, 0), (39, 19, 29), (20, 10, 15), (0, 19, 15)])
def test_a_lesion_patch_holds_the_lesion_and_lies_inside(voxel):
    case = FakeCase((40, 20, 30), ((voxel,),))
    for margin in (0, 3, 100):
        first = starts(LesionBalanced([9, 6, 10], ratio=1.0, margin=margin), case, 200)
        stop = first + np.array([9, 6, 10])
        assert (first >= 0).all()
        assert (stop <= case.shape).all()
        assert ((first <= voxel) & (voxel < stop)).all()


def test_a_lesion_lies_anywhere_inside_the_patch_but_in_the_margin():
    case = FakeCase((50, 50, 50), (((25, 25, 25),),))
    offsets = 25 - starts(LesionBalanced([10, 10, 10], ratio=1.0, margin=2), case, 3000)
    for axis in range(3):
        places, counts = np.unique(offsets[:, axis], return_counts=True)
        assert places.tolist() == [2, 3, 4, 5, 6, 7]
        assert chisquare(counts).pvalue > 0.01


def test_a_margin_wider_than_half_the_patch_centres_the_lesion():
    case = FakeCase((50, 50, 50), (((25, 26, 27),),))
    assert set(map(tuple, starts(LesionBalanced([5, 5, 5], ratio=1.0, margin=9), case, 20))) == {(23, 24, 25)}
    assert set(map(tuple, starts(LesionBalanced([1, 1, 1], ratio=1.0, margin=9), case, 20))) == {(25, 26, 27)}


def test_ratio_is_the_share_of_patches_around_a_lesion():
    case = FakeCase((1000, 1, 1), (((0, 0, 0),),))
    z = starts(LesionBalanced([1, 1, 1], ratio=0.67), case, 3000)[:, 0]
    assert np.mean(z == 0) == pytest.approx(0.67, abs=0.03)
    assert np.mean(starts(LesionBalanced([1, 1, 1], ratio=0.0), case, 500)[:, 0] == 0) < 0.02


def test_without_lesion_patches_are_uniform():
    drawn = starts(LesionBalanced([1, 1, 1], ratio=1.0), FakeCase((4, 1, 1)), 2000)
    assert chisquare(np.bincount(drawn[:, 0], minlength=4)).pvalue > 0.01
    assert len(set(starts(SliceBlocks([2, 2], [1, 1], lesion_ratio=1.0), FakeCase((9, 3, 3)), 50)[:, 0])) == 8


def test_case_weights_make_lesions_of_the_data_set_equally_likely():
    cases = [FakeCase((9, 9, 9), (((0, 0, 0),),) * n) for n in (1, 0, 6)]
    weights = LesionBalanced([3, 3, 3], across_cases=True).case_weights(cases)
    np.testing.assert_allclose(weights, [1 / 8, 1 / 8, 6 / 8])
    assert LesionBalanced([3, 3, 3]).case_weights(cases) is None
    assert UniformPatches([3, 3, 3]).case_weights(cases) is None


def test_slice_blocks_draw_every_allowed_depth():
    sampler = SliceBlocks([10, 40], [12, 9], multiple_of=8)
    rng = np.random.default_rng(0)
    sizes = [sampler.draw_size(rng) for _ in range(300)]
    assert {size[1:] for size in sizes} == {(12, 9)}
    depths, counts = np.unique([size[0] for size in sizes], return_counts=True)
    assert depths.tolist() == [16, 24, 32, 40]
    assert chisquare(counts).pvalue > 0.01


def test_slice_blocks_are_contiguous_uniform_and_meet_lesions_at_the_ratio():
    case = FakeCase((100, 20, 20), (((70, 10, 10),),))
    block = SliceBlocks([4, 4], [20, 32])
    z, y, x = starts(block, case, 4000).T
    assert set(y) == {0}
    assert set(x) == {-6}
    assert chisquare(np.bincount(z, minlength=97)).pvalue > 0.01
    z = starts(SliceBlocks([4, 4], [20, 32], lesion_ratio=0.5), case, 2000)[:, 0]
    assert np.mean((z <= 70) & (z + 4 > 70)) == pytest.approx(0.5 + 0.5 * 4 / 97, abs=0.03)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: UniformPatches([0, 8, 8]), "sampling.size"),
        (lambda: UniformPatches([8, 8]), "sampling.size"),
        (lambda: LesionBalanced([8, 8, -1]), "sampling.size"),
        (lambda: LesionBalanced([8, 8, 8], ratio=1.2), "sampling.ratio"),
        (lambda: LesionBalanced([8, 8, 8], margin=-1), "sampling.margin"),
        (lambda: SliceBlocks([9, 8], [8, 8]), "sampling.depth"),
        (lambda: SliceBlocks([0, 8], [8, 8]), "sampling.depth"),
        (lambda: SliceBlocks([9, 15], [8, 8], multiple_of=8), "sampling.depth"),
        (lambda: SliceBlocks([8, 9], [8, 8], multiple_of=0), "sampling.multiple_of"),
        (lambda: SliceBlocks([8, 9], [8, 8, 8]), "sampling.in_plane"),
        (lambda: SliceBlocks([8, 9], [8, 8], lesion_ratio=-0.1), "sampling.lesion_ratio"),
    ],
)
def test_wrong_settings_are_named(build, key):
    with pytest.raises(ValueError, match=key):
        build()
