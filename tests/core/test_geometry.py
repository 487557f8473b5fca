import json
from dataclasses import asdict

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.core.geometry import Grid, GridTransform, nonzero_box, read_box

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RAS_ORIGIN = np.array([[1.0, 0, 0, 0], [0, 1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
RAS = np.diag([1.0, 1.0, 1.0, 1.0])
# array axes run to superior, right, anterior
ROTATED = np.array([[0.0, 2, 0, -7], [0, 0, 3, 5], [4, 0, 0, 1], [0, 0, 0, 1]])
AFFINES = {"lps": LPS, "ras": RAS, "ras_origin": RAS_ORIGIN, "rotated": ROTATED}


def oblique(degrees: float) -> np.ndarray:
    a = np.deg2rad(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.9, -0.8, 1.5])
    return affine


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_marked_left_anterior_superior_voxel_goes_to_its_lps_place(affine):
    # the voxel that lies furthest left, anterior and superior in the world
    shape = (5, 6, 7)
    grid = Grid(shape, affine)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1).T
    world = corners @ affine[:3, :3].T
    corner = corners[np.argmax(world @ [-1, 1, 1])]
    array = np.zeros(shape, np.uint8)
    array[tuple(corner)] = 9
    transform = GridTransform.whole(grid)
    working = transform.apply(array)
    z, _, x = working.shape
    assert np.argwhere(working).tolist() == [[z - 1, 0, x - 1]]  # superior last, anterior first, left last
    np.testing.assert_array_equal(transform.restore(working), array)


def test_orientation_agrees_with_nibabel():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 99, (5, 6, 7)).astype(np.int16)
    for affine in (*AFFINES.values(), oblique(20)):
        image = nib.Nifti1Image(array, affine)
        to_lps = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt("LPS")
        )
        expected = np.asanyarray(image.as_reoriented(to_lps).dataobj).transpose(2, 1, 0)
        np.testing.assert_array_equal(GridTransform.whole(Grid((5, 6, 7), affine)).apply(array), expected)


def test_spacing_follows_the_axes():
    transform = GridTransform.whole(Grid((5, 6, 7), ROTATED))
    assert transform.original.spacing == (4, 2, 3)
    assert transform.spacing == (4, 3, 2)  # z from the first array axis, y from the third, x from the second
    assert transform.shape == (5, 7, 6)
    np.testing.assert_allclose(GridTransform.whole(Grid((3, 4, 5), oblique(20))).spacing, (1.5, 0.8, 0.9))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize(
    ("start", "shape"), [((1, 2, 0), (3, 2, 4)), ((-2, -1, 3), (9, 12, 9)), ((0, 0, 0), (1, 1, 1))]
)
def test_crop_and_pad_restore_exactly_what_they_kept(affine, start, shape):
    array = np.random.default_rng(1).integers(1, 250, (5, 6, 7)).astype(np.uint8)
    transform = GridTransform.whole(Grid((5, 6, 7), affine)).crop(start, shape)
    assert transform.exact
    working = transform.apply(array)
    assert working.shape == shape
    kept = transform.restore(np.ones(shape, np.uint8))
    np.testing.assert_array_equal(transform.restore(working), array * kept)
    np.testing.assert_array_equal(transform.restore(working, fill=251)[kept == 0], 251)
    probabilities = np.stack([working, working + 1]).astype(np.float32)
    restored = transform.restore_probabilities(probabilities)
    np.testing.assert_array_equal(restored[0], array * kept)
    np.testing.assert_array_equal(restored[1], (array.astype(float) + 1) * kept)


@pytest.mark.parametrize("affine", [*AFFINES.values(), oblique(20)])
def test_a_voxel_is_placed_where_its_value_goes(affine):
    array = np.zeros((5, 6, 7), np.uint8)
    array[3, 1, 5] = 9
    transform = GridTransform.whole(Grid((5, 6, 7), affine)).crop((-1, 1, 0), (9, 4, 6))
    assert np.argwhere(transform.apply(array)).tolist() == [list(transform.place((3, 1, 5)))]


def test_a_voxel_is_placed_in_the_coarser_one_that_holds_it():
    transform = GridTransform.whole(Grid((5, 6, 7), LPS)).resize((7, 3, 5))
    assert [transform.place((0, y, 0))[1] for y in range(6)] == [0, 0, 1, 1, 2, 2]


def test_centred_crops_and_pads_evenly():
    line = np.arange(1, 8, dtype=np.int16).reshape(7, 1, 1)
    whole = GridTransform.whole(Grid((7, 1, 1), np.diag([-1.0, -1, 1, 1])))
    assert whole.centred((1, 1, 3)).apply(line).ravel().tolist() == [3, 4, 5]
    assert whole.centred((1, 1, 4)).apply(line).ravel().tolist() == [2, 3, 4, 5]
    assert whole.centred((1, 1, 10)).apply(line).ravel().tolist() == [0, 0, *range(1, 8), 0]


def test_resampling_by_hand():
    line = np.array([0.0, 10, 20, 30], np.float32).reshape(4, 1, 1)
    whole = GridTransform.whole(Grid((4, 1, 1), np.diag([-2.0, -1, 1, 1])))
    half = whole.resample((1, 1, 1))  # 2 mm → 1 mm: new centres at −¼, ¼, ¾ …
    assert half.shape == (1, 1, 8)
    assert half.spacing == (1, 1, 1)
    assert half.apply(line).ravel().tolist() == [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30]
    double = whole.resample((1, 1, 4))  # centres between two voxels
    assert double.apply(line).ravel().tolist() == [5, 25]
    labels = np.array([1, 2, 3, 4], np.uint8).reshape(1, 1, 4)  # oriented
    assert half.sample_labels(labels, (0, 0, 0)).ravel().tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert half.restore(half.sample_labels(labels, (0, 0, 0))).ravel().tolist() == [1, 2, 3, 4]
    assert double.sample_labels(labels, (0, 0, 0)).ravel().tolist() == [1, 3]  # of equals the lowest
    # an extent that isn't a multiple is covered evenly: 8 mm in 3 voxels of 3 mm reach ½ mm beyond each end
    third = whole.resample((1, 1, 3))
    assert third.shape == (1, 1, 3)
    assert third.origin == (0, 0, -0.25)


def test_coarser_voxels_are_means_over_their_extent():
    whole = GridTransform.whole(Grid((6, 1, 1), np.diag([-1.0, -1, 1, 1])))
    line = np.array([0.0, 9, 0, 9, 0, 9], np.float32).reshape(6, 1, 1)
    assert whole.resample((1, 1, 3)).apply(line).ravel().tolist() == pytest.approx([3, 6])  # not 9 and 0, the centres
    assert whole.resample((1, 1, 1.5)).apply(line).ravel().tolist() == pytest.approx([3, 3, 6, 6])  # 1½ voxels each
    # 6 mm in one voxel of 5 mm, which sees half a millimetre less on each side
    assert whole.resample((1, 1, 5)).apply(line).ravel().tolist() == pytest.approx([(9 + 0 + 9 + 0 + 4.5) / 5])


@pytest.mark.parametrize("spacing", [(3.0, 2.0, 1.0), (1.0, 4.0, 6.0), (1.5, 1.0, 1.2)])
def test_a_coarser_grid_of_the_same_extent_keeps_the_total(spacing):
    array = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32)
    working = GridTransform.whole(Grid((12, 12, 12), LPS)).resample(spacing).apply(array)
    assert working.sum() * np.prod(spacing) == pytest.approx(array.sum(), rel=1e-5)


def test_labels_are_what_most_of_a_voxel_is_if_half_of_it_is_labelled():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.repeat(rng.integers(0, 4, (5, 6, 4), dtype=np.uint8), 2, axis=0), 3, axis=2)
    whole = GridTransform.whole(Grid(labels.shape, ROTATED))
    oriented = whole.orient(labels)
    for transform in (whole.resample((3, 2, 1)), whole.resample((5, 3, 3)).crop((-1, 1, 0), (4, 9, 8)), whole):
        shares = np.stack([transform.apply((labels == label).astype(np.float32)) for label in (1, 2, 3)])
        found = transform.sample_labels(oriented, (0, 0, 0))
        assert found.dtype == np.uint8
        clear = np.abs(shares.sum(0) - 0.5) > 1e-5
        np.testing.assert_array_equal((found > 0)[clear], (shares.sum(0) > 0.5)[clear])
        highest = np.take_along_axis(shares, np.maximum(found, 1)[None].astype(int) - 1, axis=0)[0]
        np.testing.assert_allclose(highest[found > 0], shares.max(0)[found > 0], atol=1e-6)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 0.7, 2), (0.4, 5, 0.9)])
def test_a_box_reaches_no_further_than_said(spacing):
    transform = GridTransform.whole(Grid((20, 20, 20), LPS)).crop((2, 1, 3), (15, 18, 16)).resample(spacing)
    for start in ((4, 9, 8), (0, 0, 0), (17, 17, 17)):
        box = np.ones((2, 3, 1), np.float32)
        place, values = transform.sample_reached(box, start)
        whole = transform.sample(box, start)
        np.testing.assert_array_equal(whole[place], values)
        whole[place] = 0
        assert not whole.any()


def test_equal_spacing_with_rounding_errors_copies_voxels():
    affine = np.diag([-0.8590000271797180, -0.859, 1.5, 1])
    transform = GridTransform.whole(Grid((6, 5, 4), affine)).resample((1.5, 0.859, 0.859))
    assert transform.exact


def test_resize_gives_the_shape_and_the_spacing_that_follows():
    transform = GridTransform.whole(Grid((10, 12, 14), LPS)).crop((1, 2, 3), (12, 8, 6)).resize((6, 16, 6))
    assert transform.shape == (6, 16, 6)
    assert transform.spacing == (2, 0.5, 1)
    assert transform.origin == (1, 2, 3)


@pytest.mark.parametrize("affine", [LPS, ROTATED, oblique(15)], ids=["lps", "rotated", "oblique"])
@pytest.mark.parametrize("spacing", [(0.7, 1.3, 0.9), (2.0, 0.5, 2.2)])
def test_smooth_fields_survive_a_resampled_round_trip(affine, spacing):
    shape = (24, 22, 20)
    i, j, k = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij")
    field = (1 + i + 2 * j + 3 * k + 0.2 * np.sin(3 * i + 2 * k)).astype(np.float32)
    transform = GridTransform.whole(Grid(shape, affine)).resample(spacing)
    restored = transform.restore_probabilities(transform.apply(field)[None])[0]
    inner = (slice(4, -4),) * 3  # edges are held, not extrapolated
    np.testing.assert_allclose(restored[inner], field[inner], atol=0.02)


def test_linear_field_has_no_shift():
    # Any half-voxel misalignment would show as a constant offset of this ramp.
    ramp = np.broadcast_to(np.arange(40.0, dtype=np.float32)[:, None, None], (40, 3, 3))
    transform = GridTransform.whole(Grid((40, 3, 3), LPS)).crop((0, 0, 5), (3, 3, 30)).resample((1, 1, 0.6))
    restored = transform.restore_probabilities(transform.apply(ramp)[None])[0]
    np.testing.assert_allclose(restored[6:34], ramp[6:34], atol=1e-4)


def test_sample_from_a_box_equals_apply_to_the_whole():
    rng = np.random.default_rng(2)
    array = np.zeros((12, 11, 10), np.float32)
    array[3:8, 2:9, 4:7] = rng.random((5, 7, 3))
    whole = GridTransform.whole(Grid(array.shape, ROTATED))
    oriented = whole.orient(array)
    low = np.argwhere(oriented).min(0)
    high = np.argwhere(oriented).max(0) + 1
    box = oriented[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    for transform in (whole, whole.crop((2, 1, 3), (6, 5, 4)), whole.resample((3, 2, 1)), whole.resize((5, 30, 8))):
        start = [int(v) for v in low]
        np.testing.assert_allclose(transform.sample(box, start), transform.apply(array), rtol=1e-6)
        labels = np.ceil(3 * box).astype(np.uint8)
        got = transform.sample_labels(labels, start)
        np.testing.assert_array_equal(got, transform.sample_labels(np.ceil(3 * oriented).astype(np.uint8), (0, 0, 0)))


def test_empty_box_is_zero_everywhere():
    whole = GridTransform.whole(Grid((4, 4, 4), LPS))
    empty = np.zeros((0, 0, 0), np.int16)
    for transform in (whole, whole.resize((3, 5, 2))):
        assert not transform.sample(empty, (0, 0, 0)).any()
        assert transform.sample_labels(empty.astype(np.uint8), (0, 0, 0)).shape == transform.shape


def test_one_voxel_axes_resample():
    transform = GridTransform.whole(Grid((1, 1, 1), LPS)).resize((2, 2, 2))
    assert transform.apply(np.full((1, 1, 1), 7, np.int16)).tolist() == np.full((2, 2, 2), 7.0).tolist()


def test_a_crop_beside_the_volume_restores_only_fill():
    transform = GridTransform.whole(Grid((3, 3, 3), LPS)).crop((10, 0, 0), (2, 3, 3))
    assert not transform.apply(np.ones((3, 3, 3), np.uint8)).any()
    assert (transform.restore(np.ones((2, 3, 3), np.uint8), fill=5) == 5).all()


@pytest.mark.parametrize("step", ["crop", "resample"])
def test_json_round_trip(step):
    transform = GridTransform.whole(Grid((5, 6, 7), oblique(10))).crop((1, 1, 1), (3, 4, 2))
    if step == "resample":
        transform = transform.resample((1.1, 1.2, 1.3))
    again = GridTransform.from_dict(json.loads(json.dumps(asdict(transform), default=np.ndarray.tolist)))
    assert again == transform
    assert hash(again.original) == hash(transform.original)
    assert Grid((5, 6, 7), LPS) != Grid((5, 6, 8), LPS)


def test_distance_is_the_farthest_corner():
    grid = Grid((11, 11, 11), np.eye(4))
    moved, scaled = np.eye(4), np.diag([1.1, 1, 1, 1])
    moved[:3, 3] = (3, 0, 4)
    assert grid.distance(Grid((11, 11, 11), moved)) == pytest.approx(5)
    assert grid.distance(Grid((11, 11, 11), scaled)) == pytest.approx(1)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_bad_affines_are_refused(affine):
    with pytest.raises(ValueError, match="invertible 4×4"):
        Grid((2, 2, 2), affine)


def test_wrong_shapes_are_refused():
    transform = GridTransform.whole(Grid((3, 4, 5), LPS))
    with pytest.raises(ValueError, match=r"shape \(3, 4, 6\), its grid \(3, 4, 5\)"):
        transform.apply(np.zeros((3, 4, 6)))
    with pytest.raises(ValueError, match=r"shape \(3, 4, 5\), its grid transform \(5, 4, 3\)"):
        transform.restore(np.zeros((3, 4, 5), np.uint8))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_restored_arrays_have_no_negative_strides(affine):
    # torch.from_numpy refuses those
    transform = GridTransform.whole(Grid((3, 4, 5), affine)).resample((0.7, 0.7, 0.7))
    assert min(transform.restore(np.zeros(transform.shape, np.uint8)).strides) > 0
    restored = transform.restore_probabilities(np.zeros((2, *transform.shape), np.float32))
    assert restored.shape == (2, 3, 4, 5)
    assert min(restored.strides) > 0


def test_nonzero_box():
    array = np.zeros((4, 5, 6), np.int16)
    assert array[nonzero_box(array)].size == 0
    array[2, 3, 1] = -3
    array[3, 1, 1] = 256  # no bit in the low byte
    assert nonzero_box(array) == (slice(2, 4), slice(1, 4), slice(1, 2))
    assert nonzero_box(-0.0 * np.ones((2, 2, 2))) == (slice(0, 0),) * 3
    assert nonzero_box(np.full((2, 3, 4), np.nan)) == (slice(0, 2), slice(0, 3), slice(0, 4))


def test_read_box_copies_only_what_was_asked():
    volume = np.arange(2 * 4 * 5 * 6, dtype=np.uint16).reshape(2, 4, 5, 6)
    patch = read_box(volume, (1, 2, 3), (2, 3, 2))
    np.testing.assert_array_equal(patch, volume[:, 1:3, 2:5, 3:5])
    assert not np.shares_memory(patch, volume)
    np.testing.assert_array_equal(read_box(volume[0], (0, 0, 0), (4, 5, 6)), volume[0])


def test_read_box_channels_come_in_the_order_asked():
    volume = np.arange(4 * 27, dtype=np.uint16).reshape(4, 3, 3, 3)
    np.testing.assert_array_equal(read_box(volume, (0, 0, 0), (3, 3, 3), channels=[2, 0]), volume[[2, 0]])
    with pytest.raises(ValueError, match="without channels"):
        read_box(volume[0], (0, 0, 0), (3, 3, 3), channels=[0])


@pytest.mark.parametrize("start", [(-2, -1, 3), (2, 0, 0), (-9, 0, 0), (9, 0, 0), (-1, -1, -1)])
def test_read_box_is_zero_outside_the_volume(start):
    volume = np.random.default_rng(0).integers(1, 99, (2, 4, 5, 6), dtype=np.uint16)
    padded = np.pad(volume, ((0, 0), (20, 20), (20, 20), (20, 20)))
    region = tuple(slice(s + 20, s + 20 + n) for s, n in zip(start, (6, 7, 8), strict=True))
    out = np.full((2, 6, 7, 8), 7, np.uint16)
    assert read_box(volume, start, (6, 7, 8), out=out) is out
    np.testing.assert_array_equal(out, padded[:, *region])
    np.testing.assert_array_equal(read_box(volume, start, (6, 7, 8), channels=[1]), padded[[1], *region])


def test_read_box_refuses_another_buffer():
    volume = np.zeros((2, 4, 4, 4), np.uint16)
    for out in (np.zeros((2, 3, 3, 3), np.float32), np.zeros((1, 3, 3, 3), np.uint16)):
        with pytest.raises(ValueError, match="out is"):
            read_box(volume, (0, 0, 0), (3, 3, 3), out=out)


def test_read_box_of_a_memory_map_is_an_ordinary_writable_array(tmp_path):
    np.arange(64, dtype=np.uint16).tofile(tmp_path / "volume")
    volume = np.memmap(tmp_path / "volume", np.uint16, "r", shape=(4, 4, 4))
    patch = read_box(volume, (1, 1, 1), (2, 2, 2))
    assert type(patch) is np.ndarray
    assert patch.flags.writeable
    assert patch[0, 0].tolist() == [21, 22]
