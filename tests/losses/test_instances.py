from threading import current_thread, main_thread

import jaxtyping
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from scipy import ndimage
from torch.nn import functional

from brats_lightning.core.components import label_components
from brats_lightning.losses import (
    BlobLoss,
    CategoricalFocalLoss,
    ComponentDiceLoss,
    CompositeLoss,
    DeepSupervision,
    LesionFocalLoss,
    WeightedDiceLoss,
    lesions,
    sums,
)
from brats_lightning.losses.lesions import LesionMap, nearest_component
from tests.losses import one_hot_losses

BOTH = pytest.mark.parametrize("loss", [ComponentDiceLoss, BlobLoss])
ALL = pytest.mark.parametrize("loss", [ComponentDiceLoss, BlobLoss, LesionFocalLoss])
REGIONS = {"et": (3,), "tc": (1, 3), "wt": (1, 2, 3)}


def certain(target, classes=4, score=200.0):
    """Logits of a prediction that is sure of ``target``."""
    return one_hot_losses.one_hot(target, classes).float() * score


def memberships_of(target, regions=REGIONS):
    return torch.stack([torch.isin(target, torch.tensor(classes)) for classes in regions.values()], 1).byte()


def two_cubes(large=30, small=2, size=40):
    """All of them enhancing: the regions are the same."""
    target = torch.zeros(1, size, size, size, dtype=torch.uint8)
    target[0, :large, :large, :large] = 3
    target[0, -small:, -small:, -small:] = 3
    return target


@pytest.fixture
def batch():
    """Three samples: several lesions of all classes; two lesions without enhancing tumour; none."""
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(3, 7, 9, 8, dtype=torch.uint8)
    target[0, 0:3, 1:4, 1:5] = 2
    target[0, 1, 2, 2:4] = 3
    target[0, 1:3, 3, 1] = 1
    target[0, 5, 6, 6] = 3
    target[0, 6, 7, 7] = 3  # joined to the last by a corner
    target[0, 0, 8, 7] = 2
    target[0, 6, 0:2, 0] = 1
    target[1, 0, 0, 0] = 1
    target[1, 4:6, 4, 4] = 2
    return torch.randn(3, 4, 7, 9, 8, generator=generator, dtype=torch.float64), target


def brute_force(p, member, kind, smooth=1e-5, absent_fraction=1e-3):
    """The losses as their papers read, one lesion at a time; p and member (b, r, z, y, x)."""
    losses = []
    for p_sample, y_sample in zip(p, member, strict=True):
        present, absent = [], []
        for p_r, y in zip(p_sample, y_sample, strict=True):
            labels, n = label_components(y.numpy() > 0)
            costs = []
            for i in range(1, n + 1):
                lesion = torch.from_numpy(labels == i).double()
                if kind is BlobLoss:
                    mask = torch.from_numpy((labels == 0) | (labels == i))
                else:
                    mask = torch.from_numpy(nearest_component(labels) == i)
                masked = p_r * mask
                overlap, total = 2 * (masked * lesion).sum(), masked.sum() + lesion.sum()
                costs.append((total - overlap) / (total + smooth))
            if costs:
                present.append(sum(costs) / n)
            else:
                absent.append(p_r.sum() / (p_r.sum() + absent_fraction * y.numel()))
        mean = sum(present) / len(present) if present else 0
        losses.append(mean + sum(absent) / len(p_sample))
    return sum(losses) / len(losses)


def softmax_regions(logits, regions=REGIONS):
    return torch.stack([logits.softmax(1)[:, list(classes)].sum(1) for classes in regions.values()], 1)


# ---- values by hand


def test_one_missed_lesion_of_eight_voxels_beside_a_found_one_of_27000():
    target = two_cubes()
    seen = target.clone()
    seen[0, -2:, -2:, -2:] = 0
    logits = certain(seen)
    # 8 missed: FN / (2R - FN) of 27008 voxels
    assert WeightedDiceLoss(smooth=0)(logits, target).item() == pytest.approx(8 / (2 * 27008 - 8))  # 0.000148
    # one of two lesions has Dice 1, the other 0
    assert ComponentDiceLoss()(logits, target).item() == pytest.approx(0.5, abs=1e-5)
    assert BlobLoss()(logits, target).item() == pytest.approx(0.5, abs=1e-5)


def test_false_positives_beside_one_of_two_lesions():
    target = two_cubes(large=4, small=2, size=12)
    guess = target.clone()
    guess[0, 10:12, 10:12, 7:10] = 3  # 12 voxels that touch the small lesion, of 8
    logits = certain(guess)
    # charged to the small one alone: 12 / (2 · 8 + 12); the large one is perfect
    assert ComponentDiceLoss(smooth=0)(logits, target).item() == pytest.approx((12 / 28 + 0) / 2)
    # charged to both: the large one of 64 voxels costs 12 / (2 · 64 + 12)
    assert BlobLoss(smooth=0)(logits, target).item() == pytest.approx((12 / 28 + 12 / 140) / 2)
    # smooth is in the denominator alone
    assert ComponentDiceLoss(smooth=28)(logits, target).item() == pytest.approx((12 / 56 + 0) / 2)


@BOTH
def test_half_a_lesion(loss):
    target = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    target[0, 0, 0, 0] = target[0, 3, 3, 3] = 2
    logits = torch.zeros(1, 4, 4, 4, 4)
    logits[:, 0] = 200
    logits[0, :, 0, 0, 0] = torch.tensor([1.0, 0.0, 1.0, 0.0]) * 200  # p = ½ at one of two lesions of a voxel
    # WT: (½ / (2 - ½) + 1) / 2; ET and TC are absent and not predicted
    assert loss(smooth=0)(logits, target).item() == pytest.approx((1 / 3 + 1) / 2)


@BOTH
def test_a_region_in_error_is_one_of_three(loss):
    target = two_cubes(large=4, small=2, size=12)
    guess = target.clone()
    guess[guess == 3] = 1  # the core is found, but not as enhancing
    assert loss()(certain(guess), target).item() == pytest.approx(1 / 3)  # ET 1, TC 0, WT 0


def test_focal_loss_of_lesions_of_two_sizes():
    """γ = 2: each lesion costs the mean of (1 - p)² (-log p) over its voxels, whatever their number."""
    target = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    target[0, 0], target[0, 3, 3, 3] = 2, 2  # 16 voxels and one
    logits = torch.zeros(1, 4, 4, 4, 4)
    logits[:, 2, 0] = 100  # the larger is found; WT's p at the other is ¾
    logits[:, 0, 1:3] = -7  # elsewhere anything goes
    expected = (0 + 0.25**2 * -np.log(0.75)) / 2  # one region has lesions
    assert LesionFocalLoss()(logits, target).item() == pytest.approx(expected)
    assert LesionFocalLoss(gamma=0)(logits, target).item() == pytest.approx(-np.log(0.75) / 2)
    memberships = torch.zeros(1, 3, 4, 4, 4)
    memberships[:, 2, 0] = 100  # p = ½ at the other
    assert LesionFocalLoss()(memberships, memberships_of(target)).item() == pytest.approx(0.25 * np.log(2) / 2)


def test_without_lesions_the_focal_loss_of_lesions_is_zero():
    logits = torch.randn(2, 4, 3, 3, 3, requires_grad=True)
    loss = LesionFocalLoss()(logits, torch.zeros(2, 3, 3, 3, dtype=torch.uint8))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_lesion_missed_for_certain_still_moves_the_focal_loss_of_lesions():
    """Where the gradient of Dice losses has vanished."""
    target = two_cubes(large=10, small=2, size=20)
    logits = certain(target * 0, score=30.0).requires_grad_()
    small = (0, 3, -1, -1, -1)  # ET of a voxel of the small lesion
    gradient = {}
    for loss in (WeightedDiceLoss(), ComponentDiceLoss(), BlobLoss(), LesionFocalLoss()):
        (grad,) = torch.autograd.grad(loss(logits, target), logits)
        gradient[type(loss)] = abs(grad[small].item())
    # one voxel of 8 of one lesion of 2, in ET; in TC and WT ET shares p with 1 and 2 others
    assert gradient[LesionFocalLoss] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3 / 16, rel=1e-4)
    assert max(gradient[loss] for loss in (WeightedDiceLoss, ComponentDiceLoss, BlobLoss)) < 1e-11


# ---- identities


@ALL
def test_perfect_prediction_costs_nothing(batch, loss):
    _, target = batch
    assert loss()(certain(target), target).item() == 0
    member = memberships_of(target)
    assert loss()((member.float() - 0.5) * 400, member).item() == 0


@BOTH
def test_no_lesion_is_charged_as_by_the_dice_loss(loss):
    generator = torch.Generator().manual_seed(1)
    member = torch.zeros(2, 3, 4, 5, 6, dtype=torch.uint8)
    logits = torch.randn(member.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    value = loss(absent_fraction=0.01)(logits, member)
    p = logits.sigmoid().sum((2, 3, 4))
    torch.testing.assert_close(value, (p / (p + 0.01 * 120)).mean())
    value.backward()
    assert (logits.grad > 0).all()


@BOTH
def test_charge_of_two_million_voxels(loss):
    logits = torch.zeros(1, 2, 128, 128, 128, dtype=torch.float16)
    logits[:, 0] = 8
    p = 1 / (1 + np.exp(8.0))
    target = torch.zeros(1, 128, 128, 128, dtype=torch.uint8)
    expected = p / (p + 1e-3)
    assert loss(["lesion"])(logits, target).item() == pytest.approx(expected, rel=1e-5)


@BOTH
def test_single_lesions_equal_the_soft_dice_of_the_patch(loss):
    generator = torch.Generator().manual_seed(2)
    target = torch.zeros(2, 5, 6, 7, dtype=torch.uint8)
    target[:, 1:4, 2:5, 3:6] = 1
    target[1, 0, 0, 0] = 0
    logits = torch.randn(2, 2, 5, 6, 7, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(loss(["lesion"])(logits, target), WeightedDiceLoss()(logits, target))


@BOTH
def test_one_voxel_volume(loss):
    target = torch.full((1, 1, 1, 1), 3, dtype=torch.uint8)
    assert loss(smooth=0)(certain(target), target).item() == 0
    assert loss(smooth=0)(certain(target * 0), target).item() == pytest.approx(1)
    assert loss(smooth=0)(torch.zeros(1, 3, 1, 1, 1), memberships_of(target)).item() == pytest.approx(0.5 / 1.5)


@ALL
def test_a_batch_is_the_mean_of_its_samples(batch, loss):
    logits, target = batch
    alone = [loss()(logits[i : i + 1], target[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(loss()(logits, target), sum(alone) / 3)


@ALL
def test_numbers_of_components_do_not_matter(batch, loss, monkeypatch):
    def reversed_numbers(mask):
        labels, n = label_components(mask)
        return np.where(labels > 0, n + 1 - labels, 0).astype(np.int32), n

    logits, target = batch
    before = loss()(logits, target)
    monkeypatch.setattr(lesions, "label_components", reversed_numbers)
    torch.testing.assert_close(loss()(logits, target), before)


# ---- parity, gradients, types


@BOTH
def test_equals_a_loop_over_lesions_of_classes(batch, loss, monkeypatch):
    monkeypatch.setattr(sums, "chunk_size", lambda _: 150)  # four chunks a sample
    logits, target = batch
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    value = loss()(mine, target)
    expected = brute_force(softmax_regions(theirs), memberships_of(target), loss)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    value.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)


@BOTH
def test_equals_a_loop_over_lesions_of_further_classes(batch, loss):
    logits, target = batch
    logits = torch.cat([logits, logits[:, 1:2].flip(2)], 1)
    target[0, 5, 6, 6], target[1, 0, 0, 0] = 4, 4
    regions = REGIONS | {"rc": (4,)}
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    value = loss(["netc", "snfh", "et", "rc"])(mine, target)
    expected = brute_force(softmax_regions(theirs, regions), memberships_of(target, regions), loss)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    value.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)


@BOTH
def test_equals_a_loop_over_lesions_of_memberships(batch, loss, monkeypatch):
    monkeypatch.setattr(sums, "chunk_size", lambda _: 150)  # four chunks a sample
    logits, target = batch
    member = memberships_of(target)
    mine, theirs = (logits[:, :3].clone().requires_grad_() for _ in range(2))
    value = loss(smooth=0.1, absent_fraction=0.02)(mine, member)
    expected = brute_force(theirs.sigmoid(), member, loss, smooth=0.1, absent_fraction=0.02)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    value.backward()
    expected.backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)


@ALL
@pytest.mark.parametrize("kind", ["classes", "memberships"])
def test_gradient_by_finite_differences(loss, kind):
    generator = torch.Generator().manual_seed(3)
    target = torch.zeros(2, 3, 3, 4, dtype=torch.uint8)
    target[0, 0, 0, :2], target[0, 2, 2, 3], target[0, 2, 0, 3] = 3, 1, 2
    target[1, 1, 1, 1] = 2
    channels = 4 if kind == "classes" else 3
    logits = torch.randn(2, channels, 3, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    target = target if kind == "classes" else memberships_of(target)
    assert torch.autograd.gradcheck(lambda x: loss()(x, target), (logits,))


@ALL
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["classes", "memberships"])
def test_value_and_gradient_in_any_type_and_layout(batch, loss, dtype, layout, kind):
    logits, target = batch
    if kind == "memberships":
        logits, target = logits[:, 1:], memberships_of(target)
    logits = logits.to(dtype).contiguous(memory_format=layout).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    expected = loss()(exact, target)
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):  # which must not reach the sums
        value = loss()(logits, target)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@ALL
@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int64])
def test_any_integer_target(batch, loss, kind):
    logits, target = batch
    assert loss()(logits, target.to(kind)) == loss()(logits, target)


@BOTH
def test_further_classes_are_regions_of_their_own(loss):
    target = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    target[0, 0, 0, 0], target[0, 3, 3, 3] = 4, 3
    found = target.clone()
    found[target == 4] = 0
    # of ET, TC, WT and RC the last is missed
    assert loss(["netc", "snfh", "et", "rc"])(certain(found, 5), target).item() == pytest.approx(1 / 4, abs=1e-5)


# ---- cells


def test_cells_of_two_voxels():
    labels = np.zeros((1, 1, 12), dtype=np.int32)
    labels[0, 0, 1], labels[0, 0, 10] = 2, 1
    assert nearest_component(labels)[0, 0].tolist() == [2] * 6 + [1] * 6


@pytest.mark.parametrize("shape", [(20, 24, 22), (17, 1, 31), (15, 21, 19)])
def test_cells_are_wrong_only_where_two_components_are_about_as_near(shape):
    rng = np.random.default_rng(0)
    labels, n = label_components(rng.random(shape) < 0.01)
    cells = nearest_component(labels)
    distances = np.stack([ndimage.distance_transform_edt(labels != i) for i in range(1, n + 1)])
    own = np.take_along_axis(distances, cells[None].astype(np.int64) - 1, 0)[0]
    excess = own - distances.min(0)
    assert excess.max() <= 2 * 3**0.5
    assert excess.mean() < 0.25  # though there is a component every five voxels or so
    np.testing.assert_array_equal(cells[labels > 0], labels[labels > 0])
    assert cells.dtype == np.int32


# ---- in use


@pytest.mark.parametrize("name", ["cc_dice_focal", "blob", "lesion_focal"])
def test_config(composed, batch, name):
    logits, target = batch
    loss = instantiate(composed(f"loss={name}").loss)
    result = loss(logits, target)
    assert isinstance(loss, CompositeLoss)
    dice, focal = WeightedDiceLoss()(logits, target), CategoricalFocalLoss()(logits, target)
    losses = {"cc_dice_focal": ComponentDiceLoss, "blob": BlobLoss, "lesion_focal": LesionFocalLoss}
    by_hand = {"cc_dice_focal": (1, 1), "blob": (2, 1), "lesion_focal": (1, 0.07)}[name]
    expected = by_hand[0] * (dice + focal) + by_hand[1] * losses[name]()(logits, target)
    torch.testing.assert_close(result["loss"], expected)


@pytest.mark.parametrize(
    ("overrides", "weight"),
    [
        (["sampling.size=[48,48,48]"], 7),
        (["sampling.size=[96,48,24]"], 7),
        (["sampling.size=[96,96,96]"], 56),  # so that a voxel weighs the same
        (["loss.weights.focal=3"], 3),
    ],
)
def test_config_with_cross_entropy(composed, batch, overrides, weight):
    logits, target = batch
    result = instantiate(composed("loss=lesion_ce", *overrides).loss)(logits, target)
    cross_entropy = functional.cross_entropy(logits, target.long())
    expected = WeightedDiceLoss()(logits, target) + 0.3 * LesionFocalLoss()(logits, target) + weight * cross_entropy
    torch.testing.assert_close(result["loss"], expected)


def test_weight_of_the_cross_entropy_for_slices(composed):
    overrides = ["sampling=slices", "sampling.depth=[16,48]", "sampling.multiple_of=16", "sampling.in_plane=[96,48]"]
    assert composed("loss=lesion_ce", *overrides, plain=True).loss.weights.focal == 14  # of the deepest


def test_config_follows_the_labels(composed):
    cfg = composed("loss=blob", "data.labels=[netc,snfh,et,rc]")
    assert tuple(instantiate(cfg.loss).parts["blob"].scheme.regions) == ("et", "tc", "wt", "rc")


@ALL
@pytest.mark.parametrize("kind", ["classes", "memberships"])
def test_under_deep_supervision(batch, loss, kind):
    logits, target = batch
    levels = [logits, logits[..., ::2, ::2, ::2].contiguous()]
    if kind == "memberships":
        levels, target = [level[:, 1:] for level in levels], memberships_of(target)
    value = DeepSupervision(loss())(levels, target)
    full = loss()(levels[0], target)
    assert value.isfinite()
    assert value != full


@pytest.fixture
def threads(monkeypatch):
    """The thread in which the lesions of each sample were found."""
    threads, find = [], LesionMap._find
    monkeypatch.setattr(LesionMap, "_find", lambda *args: threads.append(current_thread()) or find(*args))
    return threads


@ALL
@pytest.mark.parametrize("kind", ["classes", "memberships"])
def test_lesions_found_beforehand_are_those_found_later(batch, loss, kind, threads):
    logits, target = batch
    if kind == "memberships":
        logits, target = logits[:, 1:], memberships_of(target)
    whole = DeepSupervision(CompositeLoss({"part": loss()}))
    expected = whole(logits, target)["loss"]
    assert expected == loss()(logits, target)
    threads.clear()

    found = whole.find_lesions(target)
    assert whole(logits, target, found)["loss"] == expected
    assert len(threads) == 3  # samples
    assert main_thread() not in threads
    assert whole(logits, target)["loss"] == expected
    assert len(threads) == 6


@ALL
def test_lesions_of_every_resolution_are_found_beforehand_from_the_second_time_on(batch, loss, threads):
    logits, target = batch
    coarse = functional.avg_pool3d(logits, 2, ceil_mode=True)
    part = loss()
    whole = DeepSupervision(CompositeLoss({"part": part}))
    assert len(whole.find_lesions(target)) == 1
    expected = whole([logits, coarse], target)["loss"]

    threads.clear()
    found = whole.find_lesions(target)
    assert len(found) == 2
    assert whole([logits, coarse], target, found)["loss"] == expected
    assert len(threads) == 6  # samples of two resolutions
    assert whole(logits, target, found)["loss"] == part(logits, target)

    # Of another shape: the coarser ones are found as they are asked for.
    fewer, other = [logits[:, :, 1:], functional.avg_pool3d(logits[:, :, 1:], 2, ceil_mode=True)], target[:, 1:]
    threads.clear()
    value = whole(fewer, other, whole.find_lesions(other))["loss"]
    assert len(threads) == 6
    assert value == DeepSupervision(CompositeLoss({"part": part}))(fewer, other)["loss"]

    # As many levels as before, of other sizes.
    again = [logits, logits[:, :, ::2, ::2, ::2][:, :, :, :, 1:]]
    value = whole(again, target, whole.find_lesions(target))["loss"]
    assert value == DeepSupervision(CompositeLoss({"part": part}))(again, target)["loss"]


def test_one_map_for_all_parts_and_none_where_none_is_needed(batch, threads):
    parts = {
        "blob": BlobLoss(),
        "dice": WeightedDiceLoss(),
        "component": ComponentDiceLoss(),
        "focal": LesionFocalLoss(),
    }
    CompositeLoss(parts)(*batch)
    assert len(threads) == 3  # samples
    assert CompositeLoss({"dice": WeightedDiceLoss()}).find_lesions(batch[1]) is None
    assert DeepSupervision(WeightedDiceLoss()).find_lesions(batch[1]) == {}
    assert len(threads) == 3


def test_lesions_of_another_target(batch):
    logits, target = batch
    with pytest.raises(ValueError, match="must agree"):
        BlobLoss()(logits, target, BlobLoss().find_lesions(target[:, 1:]))


@pytest.mark.parametrize("setting", [{"smooth": -1}, {"absent_fraction": 0}, {"absent_fraction": float("inf")}])
def test_settings_out_of_range(setting):
    with pytest.raises(ValueError, match="absent_fraction positive"):
        ComponentDiceLoss(**setting)


def test_negative_gamma():
    with pytest.raises(ValueError, match="gamma must be 0 or more, got -1"):
        LesionFocalLoss(gamma=-1)


def test_channels_of_other_labels(batch):
    logits, target = batch
    with pytest.raises(ValueError, match=r"3 channels, but labels=\['netc', 'snfh', 'et'\].*make 4"):
        BlobLoss()(logits[:, :3], target)


def test_shapes_that_disagree(batch, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside the tests
    logits, target = batch
    with pytest.raises(ValueError, match="must agree"):
        BlobLoss()(logits, target[:, :5])
    with pytest.raises(ValueError, match="must agree"):
        BlobLoss()(logits, memberships_of(target))
