import numpy as np
import pytest
import torch

from brats_lightning.core.labels import BRATS_METS, IGNORE, LabelScheme
from brats_lightning.core.targets import ClassTarget, RegionTarget, decode_regions, make_target, nested_regions

WITH_RC = LabelScheme(("netc", "snfh", "et", "rc"))
SCHEMES = [BRATS_METS, WITH_RC, LabelScheme(("rc", "et", "snfh", "netc")), LabelScheme(("netc", "et")),
           LabelScheme(("lesion",)), LabelScheme(("netc", "vessel", "et"))]  # fmt: skip
KINDS = [ClassTarget, RegionTarget]


def logit(*probabilities):
    """Logits (k, 1, 1, 1)."""
    return torch.tensor(probabilities, dtype=torch.float64).logit().float().reshape(-1, 1, 1, 1)


def in_order(target, scores):
    """Class probabilities of one voxel from region probabilities by name."""
    assert list(scores) == list(target.scheme.regions)
    return target.probabilities(logit(*scores.values())).flatten().tolist()


def test_names():
    assert isinstance(make_target("classes", BRATS_METS), ClassTarget)
    assert isinstance(make_target("regions", BRATS_METS), RegionTarget)
    with pytest.raises(ValueError, match=r"target must be classes .* or regions .*'region'"):
        make_target("region", BRATS_METS)


def test_regions_of_a_mask():
    target = RegionTarget(WITH_RC)
    encoded = target.encode(torch.tensor([0, 1, 2, 3, 4], dtype=torch.uint8).reshape(1, 1, 1, 5))
    assert encoded.dtype == torch.uint8
    assert dict(zip(WITH_RC.regions, encoded[0, :, 0, 0].tolist(), strict=True)) == {
        "et": [0, 0, 0, 1, 0],
        "tc": [0, 1, 0, 1, 0],
        "wt": [0, 1, 1, 1, 0],
        "rc": [0, 0, 0, 0, 1],
    }


def test_classes_of_a_mask_are_the_mask():
    mask = torch.tensor([0, 3], dtype=torch.uint8).reshape(1, 1, 1, 2)
    assert ClassTarget(BRATS_METS).encode(mask) is mask


def test_class_probabilities_are_the_softmax_in_place():
    logits = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    expected = logits.softmax(0)
    result = ClassTarget(BRATS_METS).probabilities(logits)
    assert result is logits
    torch.testing.assert_close(result, expected)


def test_region_probabilities_by_hand():
    target = RegionTarget(BRATS_METS)
    # netc 0.6 - 0.25, snfh 0.875 - 0.6, background 0.125
    assert in_order(target, {"et": 0.25, "tc": 0.6, "wt": 0.875}) == pytest.approx([0.125, 0.35, 0.275, 0.25])
    # an inner region is no more probable than the one around it
    assert in_order(target, {"et": 0.9, "tc": 0.6, "wt": 0.7}) == pytest.approx([0.3, 0, 0.1, 0.6], abs=1e-7)
    assert in_order(target, {"et": 0.9, "tc": 0.6, "wt": 0.2}) == pytest.approx([0.8, 0, 0, 0.2], abs=1e-7)


def test_regions_apart_share_what_there_is():
    target = RegionTarget(WITH_RC)
    scores = {"et": 0.25, "tc": 0.25, "wt": 0.5, "rc": 0.25}  # room for both
    assert in_order(target, scores) == pytest.approx([0.25, 0, 0.25, 0.25, 0.25], abs=1e-6)
    scores = {"et": 0.5, "tc": 0.5, "wt": 0.9, "rc": 0.6}  # 1.5 scaled to 1: WT 0.6, RC 0.4
    assert in_order(target, scores) == pytest.approx([0, 0, 0.1, 0.5, 0.4], abs=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: "-".join(scheme.names))
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_and_sums(kind, scheme):
    target = kind(scheme)
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, scheme.num_classes, (2, 3, 4, 5), generator=generator, dtype=torch.uint8)
    encoded = target.encode(mask)
    if kind is RegionTarget:
        for channel, classes in enumerate(scheme.regions.values()):
            assert np.array_equal(encoded[:, channel], np.isin(mask, classes))
        certain = encoded.float() * 100 - 50
    else:
        certain = torch.nn.functional.one_hot(mask.long()).movedim(-1, 1) * 50.0
    assert certain.shape[1] == target.channels == len(target.background)
    assert torch.equal(target.decide(certain), mask)
    assert torch.equal(target.decide(certain.bfloat16()), mask)
    random = torch.randn(target.channels, 6, 7, 8, generator=generator) * 4
    p = target.probabilities(random.clone())
    assert p.shape == (scheme.num_classes, 6, 7, 8)
    torch.testing.assert_close(p.sum(0), torch.ones(6, 7, 8))
    assert p.min() >= 0
    background = target.probabilities(torch.tensor(target.background).reshape(-1, 1, 1, 1))
    assert background.flatten().tolist() == [1.0] + [0.0] * len(scheme.names)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: "-".join(scheme.names))
def test_unknown_voxels_stay_unknown(scheme):
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, scheme.num_classes, (2, 3, 4, 5), generator=generator, dtype=torch.uint8)
    partly = mask.masked_fill(mask == 2, IGNORE)
    assert torch.equal(make_target("classes", scheme, True).encode(partly), partly)
    encoded = make_target("regions", scheme, True).encode(partly)
    wholly = RegionTarget(scheme).encode(mask)
    assert torch.equal(encoded, wholly.masked_fill((mask == 2).unsqueeze(1), IGNORE))
    assert torch.equal(make_target("regions", scheme, True).encode(mask), wholly)


def test_a_region_keeps_its_probability():
    target = RegionTarget(BRATS_METS)
    scores = torch.rand(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).sort(0).values  # ET ≤ TC ≤ WT
    p = target.probabilities(scores.logit())
    for channel, classes in enumerate(BRATS_METS.regions.values()):
        torch.testing.assert_close(p[list(classes)].sum(0), scores[channel])


def test_decisions_of_nested_regions():
    """Background 0.4, the rest shared: no class beats it, and yet the tumour is more probable than not."""
    p = torch.tensor([[0.4, 0.2, 0.2, 0.2], [0.4, 0.3, 0.1, 0.2], [0.1, 0.1, 0.25, 0.55], [0.5, 0.2, 0.2, 0.1]])
    assert decode_regions(p.T.reshape(4, 1, 1, 4), BRATS_METS).flatten().tolist() == [2, 1, 3, 2]
    p = torch.tensor([[0.6, 0.0, 0.0, 0.0, 0.4], [0.2, 0.0, 0.3, 0.0, 0.5], [0.125, 0.125, 0.25, 0.125, 0.375]])
    assert decode_regions(p.T.reshape(5, 1, 1, 3), WITH_RC).flatten().tolist() == [0, 4, 2]


def test_patches_are_decided_as_volumes_are():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, 7, generator=generator) * 3
    target = RegionTarget(WITH_RC)
    for sample, labels in zip(logits, target.decide(logits), strict=True):
        assert torch.equal(labels, decode_regions(target.probabilities(sample), WITH_RC))
    # WT and RC both likely: the likelier one
    both = torch.tensor([-9.0, -9.0, 1.0, 2.0]).reshape(1, 4, 1, 1, 1)
    assert target.decide(both).item() == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_stay_as_they_are_where_a_patch_is_decided(kind):
    target = kind(BRATS_METS)
    logits = torch.randn(1, target.channels, 2, 2, 2)
    before = logits.clone()
    target.decide(logits)
    assert torch.equal(logits, before)


def test_balanced_weights_of_regions_follow_their_voxels():
    voxels = torch.tensor([1e6, 100.0, 900.0, 300.0])
    weights = (1 / voxels.sqrt()).tolist()
    assert ClassTarget(BRATS_METS).weights(weights) == weights
    expected = [300**-0.5, 400**-0.5, 1300**-0.5]  # ET, TC, WT
    assert RegionTarget(BRATS_METS).weights(weights) == pytest.approx(expected)


@pytest.mark.parametrize(("names", "found"), [(("netc", "snfh"), "none"), (("snfh", "et"), "ET = et")])
def test_classes_that_no_region_tells_apart(names, found):
    with pytest.raises(ValueError, match=rf"data\.labels=\[{','.join(names)}\] has {found}\. Use target=classes"):
        RegionTarget(LabelScheme(names))


@pytest.mark.parametrize(
    "regions",
    [
        {"a": (1, 2), "b": (2, 3), "c": (2,)},  # crossing
        {"a": (1, 2, 3), "b": (1,)},  # 2 and 3 are one
        {"a": (1,), "b": (2,), "c": (3,), "d": (1, 2, 3)},  # the largest has nothing of its own
        {"a": (1,), "b": (2,)},  # 3 is background
    ],
)
def test_regions_that_are_not_nested(regions, monkeypatch):
    monkeypatch.setattr(LabelScheme, "regions", regions)
    with pytest.raises(ValueError, match="nested or apart"):
        nested_regions(LabelScheme(BRATS_METS.names))


def test_extra_channels_are_the_shells_behind_the_regions():
    target = RegionTarget(WITH_RC, extra=("snfh", "netc"))
    assert target.channels == 6
    encoded = target.encode(torch.tensor([0, 1, 2, 3, 4], dtype=torch.uint8).reshape(1, 1, 1, 5))
    assert encoded[0, :, 0, 0].tolist() == [
        *([0, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]),  # ET, TC, WT, RC
        *([0, 0, 1, 0, 0], [0, 1, 0, 0, 0]),  # SNFH = WT without TC, NETC = TC without ET
    ]
    netc, snfh, et, rc = 0.5, 0.25, 1.0, 2.0
    of_regions = RegionTarget(WITH_RC).weights([9.0, netc, snfh, et, rc])
    assert target.weights([9.0, netc, snfh, et, rc]) == pytest.approx([*of_regions, snfh, netc])


def test_extra_channels_change_no_probability_and_no_decision():
    plain, extended = RegionTarget(WITH_RC), RegionTarget(WITH_RC, extra=("netc", "snfh"))
    logits = 3 * torch.randn(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(extended.probabilities(logits), plain.probabilities(logits[:4]))
    assert torch.equal(extended.decide(logits[None]), plain.decide(logits[None, :4]))
    background = torch.tensor(extended.background).reshape(-1, 1, 1, 1)
    assert extended.probabilities(background)[0].item() == 1


def test_extra_channels_are_unknown_where_the_class_is():
    target = RegionTarget(BRATS_METS, partly_labelled=True, extra=("netc",))
    encoded = target.encode(torch.tensor([IGNORE, 1], dtype=torch.uint8).reshape(1, 1, 1, 2))
    assert encoded[0, 3, 0, 0].tolist() == [IGNORE, 1]


@pytest.mark.parametrize("extra", [["et"], ["netc", "netc"], ["tc"], ["rc"]])
def test_extra_channels_are_classes_that_are_no_regions(extra):
    with pytest.raises(ValueError, match=r"target_extra must name .*\[netc,snfh,et,rc\] netc and snfh; got"):
        make_target("regions", WITH_RC, extra=extra)


def test_extra_channels_need_regions():
    with pytest.raises(ValueError, match="needs target=regions"):
        make_target("classes", BRATS_METS, extra=["netc"])
    assert isinstance(make_target("classes", BRATS_METS, extra=[]), ClassTarget)
