import numpy as np
import pytest
from omegaconf import OmegaConf

from brats_lightning.config.allow_list import UntrustedTarget
from brats_lightning.config.build import build_part
from brats_lightning.config.postprocessing import as_config, tuned, tuned_file
from brats_lightning.config.resolvers import config_dir
from brats_lightning.core.labels import BRATS_METS, LabelScheme
from brats_lightning.inference.postprocessing import (
    ByRegion,
    ConfidentCore,
    FillHoles,
    Hysteresis,
    MinVolume,
    Postprocessing,
    PostprocessingError,
    RequireCore,
    SolidCore,
)

MM = (1.0, 1.0, 1.0)


def steps(*chosen, decode=None):
    """Post-processing by these steps."""
    return Postprocessing({str(number): step for number, step in enumerate(chosen)}, decode)


def line(*voxels):
    """Probabilities (4, 1, 1, n) from tuples (netc, snfh, et) or the foreground's probability, all of it ET."""
    rows = [voxel if isinstance(voxel, tuple) else (0.0, 0.0, voxel) for voxel in voxels]
    foreground = np.array(rows, np.float32).T
    return np.concatenate([1 - foreground.sum(0, keepdims=True), foreground])[:, None, None]


def volume(labels):
    """Certain probabilities of given labels."""
    return np.stack([labels == index for index in range(4)]).astype(np.float32)


def flat(labels):
    return labels.reshape(-1).tolist()


def test_without_rules_the_most_probable_class_wins_and_the_first_of_equals():
    probabilities = line((0.2, 0.2, 0.25), (0.25, 0.25, 0.25), (0.0, 0.25, 0.5), (0.6, 0.2, 0.1))
    assert flat(Postprocessing()(probabilities, MM, BRATS_METS)) == [0, 0, 3, 1]
    random = np.random.default_rng(0).random((4, 5, 6, 7), np.float32)
    random /= random.sum(0)
    assert np.array_equal(Postprocessing()(random, MM, BRATS_METS), random.argmax(0))


def test_hysteresis_keeps_a_component_with_a_peak_and_all_of_it():
    rules = steps(Hysteresis(low=0.25, high=0.75))
    #            component without peak | one with | a peak alone
    probabilities = line(0.5, 0.5, 0.0, 0.375, 0.875, 0.5, 0.125, 1.0)
    assert flat(rules(probabilities, MM, BRATS_METS)) == [0, 0, 0, 3, 3, 3, 0, 3]


def test_both_thresholds_must_be_exceeded():
    rules = steps(Hysteresis(low=0.25, high=0.75))
    # at low is not in the component; at high is no peak
    assert flat(rules(line(0.25, 0.875, 0.25, 0.0, 0.75, 0.5), MM, BRATS_METS)) == [0, 3, 0, 0, 0, 0]


def test_the_peak_must_lie_in_the_component_itself():
    # 0.25 separates the faint component from its neighbour's peak
    assert flat(steps(Hysteresis(0.25, 0.5))(line(0.375, 0.25, 1.0), MM, BRATS_METS)) == [0, 0, 3]
    assert flat(steps(Hysteresis(0.25, 0.5))(line(0.375, 0.375, 1.0), MM, BRATS_METS)) == [3, 3, 3]


def test_hysteresis_takes_the_foreground_of_all_classes_and_the_most_probable_of_them():
    # the background is the most probable class, yet the foreground's 0.625 together is a peak
    probabilities = line((0.125, 0.25, 0.25), (0.25, 0.0, 0.125))
    assert flat(steps(Hysteresis(0.25, 0.5))(probabilities, MM, BRATS_METS)) == [2, 1]


def test_decoding_by_regions():
    #           the background is the most probable class | shared by netc and et | snfh in the core's favour | nothing
    probabilities = line((0.25, 0.25, 0.125), (0.25, 0.125, 0.25), (0.25, 0.5, 0.25), (0.125, 0.125, 0.125))
    assert flat(Postprocessing(decode="regions")(probabilities, MM, BRATS_METS)) == [2, 1, 1, 0]
    assert flat(Postprocessing(decode="argmax")(probabilities, MM, BRATS_METS)) == [0, 0, 2, 0]
    cavity = np.array([0.25, 0.0, 0.25, 0.0, 0.5], np.float32).reshape(5, 1, 1, 1)
    assert flat(Postprocessing(decode="regions")(cavity, MM, LabelScheme(("netc", "snfh", "et", "rc")))) == [4]


def test_hysteresis_keeps_what_regions_decode_and_fills_in_the_most_probable_class():
    rules = steps(Hysteresis(0.25, 0.7), decode="regions")
    #       netc, as TC is 0.5, though snfh is the most probable | below ½, in the component | a component without peak
    probabilities = line((0.25, 0.375, 0.25), (0.0, 0.25, 0.125), 0.0, 0.625)
    assert flat(rules(probabilities, MM, BRATS_METS)) == [1, 2, 0, 0]
    assert flat(steps(Hysteresis(0.25, 0.7))(probabilities, MM, BRATS_METS)) == [2, 2, 0, 0]
    # what is decoded as foreground but not above low goes
    assert flat(steps(Hysteresis(0.7, 0.8), decode="regions")(probabilities, MM, BRATS_METS)) == [1, 0, 0, 0]


def test_regions_that_cannot_be_decoded():
    two = np.array([0.5, 0.5, 0.0], np.float32).reshape(3, 1, 1, 1)
    with pytest.raises(ValueError, match=r"data\.labels=\[netc,snfh\]"):
        Postprocessing(decode="regions")(two, MM, LabelScheme(("netc", "snfh")))


def test_decoding_follows_the_target_unless_it_is_chosen():
    hysteresis = Hysteresis(0.1, 0.5)
    assert steps(hysteresis).decoding("regions") == steps(hysteresis, decode="regions")
    assert Postprocessing(decode="argmax").decoding("regions") == Postprocessing(decode="argmax")


def test_components_that_touch_by_a_corner_are_one():
    labels = np.zeros((3, 3, 3), np.uint8)
    probabilities = volume(labels)
    for place, p in (((0, 0, 0), 1.0), ((1, 1, 1), 0.5), ((2, 2, 0), 0.5)):
        probabilities[(0, *place)], probabilities[(3, *place)] = 1 - p, p
    out = steps(Hysteresis(0.25, 0.75))(probabilities, MM, BRATS_METS)
    assert (out[0, 0, 0], out[1, 1, 1], out[2, 2, 0], out.sum()) == (3, 3, 3, 9)


def test_low_equal_high_is_one_threshold():
    assert flat(steps(Hysteresis(0.5, 0.5))(line(0.5, 0.625, 0.375), MM, BRATS_METS)) == [0, 3, 0]


def test_core_that_is_sure_nowhere_goes_to_what_encloses_it():
    rules = steps(ConfidentCore(0.75))
    #                      an oedema with a speck of ET that is unsure | with one that is sure and reaches on
    probabilities = line((0.0, 1.0, 0.0), (0.0, 0.25, 0.75), (0.0, 1.0, 0.0), (0.0, 0.125, 0.875), (0.0, 0.25, 0.5))
    assert flat(rules(probabilities, MM, BRATS_METS)) == [2, 2, 2, 3, 3]
    # ET 0.5 is unsure, TC 1 is not | neither is | a sure ET beside NETC, which is sure as part of the core
    probabilities = line((0.375, 0.0, 0.625), 0.0, (0.125, 0.25, 0.5), 0.0, 0.875, (0.5, 0.25, 0.25))
    assert flat(rules(probabilities, MM, BRATS_METS)) == [1, 0, 2, 0, 3, 1]
    # at the threshold is not above it; without any core there is nothing to do
    assert flat(rules(line(0.75, 0.0, 0.8125), MM, BRATS_METS)) == [2, 0, 3]
    assert flat(rules(line((0.0, 0.75, 0.0), 0.0), MM, BRATS_METS)) == [2, 0]


def test_core_touches_no_other_region_and_needs_no_enclosing_class():
    cavity = LabelScheme(("netc", "snfh", "et", "rc"))
    rc = np.array([0.25, 0.0, 0.0, 0.0, 0.75], np.float32).reshape(5, 1, 1, 1)
    assert flat(steps(ConfidentCore(0.875))(rc, MM, cavity)) == [4]
    two = LabelScheme(("netc", "et"))
    #                p(background), netc, et: ET unsure but the core sure; both unsure
    probabilities = np.array([[0.0, 0.375], [0.375, 0.0], [0.625, 0.625]], np.float32).reshape(3, 1, 1, 2)
    assert flat(steps(ConfidentCore(0.75))(probabilities, MM, two)) == [1, 1]
    assert flat(steps(ConfidentCore(0.75))(probabilities[..., 1:], MM, two)) == [0]


def test_the_surest_component_stays_however_unsure():
    faint = line(0.625, 0.0, 0.75, 0.0, 0.0625)
    assert flat(steps(Hysteresis(0.5, 0.875))(faint, MM, BRATS_METS)) == [0, 0, 0, 0, 0]
    assert flat(steps(Hysteresis(0.5, 0.875, keep_surest=True))(faint, MM, BRATS_METS)) == [0, 0, 3, 0, 0]
    # beside one that is sure enough it changes nothing
    clear = line(0.625, 0.0, 0.9375)
    assert flat(steps(Hysteresis(0.5, 0.875, keep_surest=True))(clear, MM, BRATS_METS)) == [0, 0, 3]
    # the core likewise: the surer ET stays ET, the other becomes oedema
    assert flat(steps(ConfidentCore(0.875))(faint, MM, BRATS_METS)) == [2, 0, 2, 0, 0]
    assert flat(steps(ConfidentCore(0.875, keep_surest=True))(faint, MM, BRATS_METS)) == [2, 0, 3, 0, 0]
    # the surest ET stays though the surest core is another: ET .5625 in a core of .625, beside a core of .8125
    two = line((0.0625, 0.3125, 0.5625), 0.0, (0.75, 0.125, 0.0625))
    assert flat(steps(ConfidentCore(0.875))(two, MM, BRATS_METS)) == [2, 0, 2]
    assert flat(steps(ConfidentCore(0.875, keep_surest=True))(two, MM, BRATS_METS)) == [3, 0, 1]
    # what nothing suspects is not made up
    assert flat(steps(Hysteresis(0.5, 0.875, True), ConfidentCore(0.875, True))(line(0.25, 0.5), MM, BRATS_METS)) == [
        0,
        0,
    ]


def test_oedema_without_core_goes_where_a_core_is_required():
    rules = steps(RequireCore())
    #       oedema alone | oedema around ET, in one component with it | NETC alone is a core
    labels = np.array([2, 2, 0, 2, 3, 2, 0, 1], np.uint8).reshape(1, 1, -1)
    assert flat(rules(volume(labels), MM, BRATS_METS)) == [0, 0, 0, 2, 3, 2, 0, 1]
    # a corner joins oedema to a core
    corner = np.zeros((2, 2, 4), np.uint8)
    corner[0, 0, 0], corner[1, 1, 1], corner[0, 0, 3] = 2, 3, 2
    assert np.argwhere(rules(volume(corner), MM, BRATS_METS)).tolist() == [[0, 0, 0], [1, 1, 1]]
    # a core that is not sure enough is none, and its oedema goes with it
    unsure = line((0.0, 1.0, 0.0), (0.0, 0.25, 0.75), 0.0, (0.0, 0.125, 0.875), (0.0, 1.0, 0.0))
    assert flat(steps(ConfidentCore(0.75))(unsure, MM, BRATS_METS)) == [2, 2, 0, 3, 2]
    assert flat(steps(ConfidentCore(0.75), RequireCore())(unsure, MM, BRATS_METS)) == [0, 0, 0, 3, 2]


def test_without_any_core_the_surest_oedema_stays_if_that_is_asked_for():
    oedema = line((0.0, 0.625, 0.0), 0.0, (0.125, 0.625, 0.0), 0.0, (0.0, 0.5625, 0.0))
    assert flat(steps(RequireCore())(oedema, MM, BRATS_METS)) == [0, 0, 0, 0, 0]
    assert flat(steps(RequireCore(keep_surest=True))(oedema, MM, BRATS_METS)) == [0, 0, 2, 0, 0]
    # of equals the largest, not all
    certain = line((0.0, 1.0, 0.0), 0.0, (0.0, 1.0, 0.0), (0.0, 1.0, 0.0), 0.0, (0.0, 1.0, 0.0))
    assert flat(steps(RequireCore(keep_surest=True))(certain, MM, BRATS_METS)) == [0, 0, 2, 2, 0, 0]
    # not beside a core, however sure the oedema is
    both = line((0.0, 1.0, 0.0), 0.0, (0.0, 0.0, 0.625))
    assert flat(steps(RequireCore(keep_surest=True))(both, MM, BRATS_METS)) == [0, 0, 3]


def test_oedema_may_surround_a_cavity():
    cavity = LabelScheme(("netc", "snfh", "et", "rc"))
    labels = np.array([4, 4, 0, 2, 4, 0, 2, 0, 3], np.uint8).reshape(1, 1, -1)
    probabilities = np.stack([labels == index for index in range(5)]).astype(np.float32)
    assert flat(steps(RequireCore())(probabilities, MM, cavity)) == [4, 4, 0, 2, 4, 0, 0, 0, 3]


def test_a_core_too_small_to_stay_leaves_no_oedema():
    labels = np.array([2, 2, 3, 2, 0, 3, 3, 2], np.uint8).reshape(1, 1, -1)
    small = MinVolume(2, ["et"])
    assert flat(steps(small)(volume(labels), MM, BRATS_METS)) == [2, 2, 2, 2, 0, 3, 3, 2]
    assert flat(steps(small, RequireCore())(volume(labels), MM, BRATS_METS)) == [0, 0, 0, 0, 0, 3, 3, 2]


def test_classes_without_oedema_need_no_core():
    labels = np.stack([[[[0.0, 1.0]]], [[[1.0, 0.0]]]]).astype(np.float32)
    assert flat(steps(RequireCore())(labels, MM, LabelScheme(("lesion",)))) == [1, 0]


def everything(mm3):
    return steps(
        Hysteresis(0.25, 0.5, True),
        ConfidentCore(0.5, True),
        SolidCore(),
        FillHoles(),
        MinVolume(mm3),
        RequireCore(True),
    )


@pytest.mark.parametrize("rules", [Postprocessing(), everything(10)])
def test_nothing_stays_nothing(rules):
    empty = rules(volume(np.zeros((2, 3, 4), np.uint8)), MM, BRATS_METS)
    assert empty.shape == (2, 3, 4)
    assert empty.dtype == np.uint8
    assert not empty.any()


def test_everything_stays_everything():
    full = np.full((2, 3, 4), 3, np.uint8)
    assert (everything(full.size)(volume(full), MM, BRATS_METS) == 3).all()


def test_small_components_go_by_volume_in_mm3():
    labels = np.zeros((1, 1, 12), np.uint8)
    labels[0, 0, [1, 4, 5, 8, 9, 10]] = 3  # 1, 2 and 3 voxels
    spacing = (2.0, 0.5, 0.5)  # of 0.5 mm³
    for least, kept in ((0.5, 6), (0.6, 5), (1.0, 5), (1.1, 3), (1.5, 3), (1.6, 0)):
        rules = steps(MinVolume(least, ["et"]))
        assert np.count_nonzero(rules(volume(labels), spacing, BRATS_METS)) == kept
    # spacings of headers carry rounding errors: 3 voxels of 0.1 are 0.3
    tenth = steps(MinVolume(0.3, ["et"]))
    assert np.count_nonzero(tenth(volume(labels), (0.1, 1.0, 1.0), BRATS_METS)) == 3


def test_volume_counts_26_connected_components():
    labels = np.zeros((2, 2, 2), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 3
    assert steps(MinVolume(2))(volume(labels), MM, BRATS_METS).sum() == 6


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0, 3, 0], [0, 0, 0]),
        ([2, 3, 0], [2, 2, 0]),
        ([2, 3, 1], [2, 1, 1]),  # the innermost that it touches
        ([2, 0, 3], [2, 0, 0]),
        ([2, 3, 3], [2, 3, 3]),
    ],
)
def test_a_small_et_becomes_what_encloses_it(before, after):
    labels = np.array(before, np.uint8).reshape(1, 1, -1)
    assert flat(steps(MinVolume(2, ["et"]))(volume(labels), MM, BRATS_METS)) == after


def test_small_cores_become_oedema_and_small_lesions_background():
    labels = np.array([2, 1, 3, 2, 0, 1, 3, 0, 2], np.uint8).reshape(1, 1, -1)
    assert flat(steps(MinVolume(3, ["tc"]))(volume(labels), MM, BRATS_METS)) == [2, 2, 2, 2, 0, 0, 0, 0, 2]
    assert flat(steps(MinVolume(3, ["wt"]))(volume(labels), MM, BRATS_METS)) == [2, 1, 3, 2] + [0] * 5
    # inner regions first: what ET leaves is judged with the core it joined
    every = steps(MinVolume(2))
    assert flat(every(volume(labels), MM, BRATS_METS)) == [2, 1, 1, 2, 0, 1, 1, 0, 0]


def test_components_at_the_border_of_the_volume_and_a_region_of_its_own():
    scheme = LabelScheme(("netc", "snfh", "et", "rc"))
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 0, 0] = 4
    labels[0, 0, 1] = 2  # touches it
    labels[2, 2, :] = 4
    probabilities = np.stack([labels == index for index in range(5)]).astype(np.float32)
    out = steps(MinVolume(2, ["rc"]))(probabilities, MM, scheme)
    assert (out[0, 0, 0], out[0, 0, 1], out[2, 2].tolist()) == (0, 2, [4, 4, 4])


def test_oedema_enclosed_by_the_core_becomes_netc():
    labels = np.full((9, 9, 9), 2, np.uint8)
    labels[1:8, 1:8, 1:8] = 3
    labels[2:7, 2:7, 2:7] = 2
    labels[3, 3, 3] = 0  # background stays
    labels[1, 4, 4] = 2  # a hole in the wall, enclosed in the slice z = 1 alone
    out = steps(SolidCore())(volume(labels), MM, BRATS_METS)
    expected = labels.copy()
    expected[2:7, 2:7, 2:7] = 1
    expected[3, 3, 3] = 0
    # It leads out of the slices y = 4 and x = 4. Where these two cross, z alone encloses; elsewhere two still do.
    expected[1:7, 4, 4] = 2
    np.testing.assert_array_equal(out, expected)

    tube = np.full((5, 5, 5), 2, np.uint8)  # enclosed in one orientation alone
    tube[:, 1:4, 1:4] = 3
    tube[:, 2, 2] = 2
    np.testing.assert_array_equal(steps(SolidCore())(volume(tube), MM, BRATS_METS), tube)


def test_oedema_that_leads_to_the_border_is_not_enclosed():
    ring = np.full((1, 7, 7), 2, np.uint8)  # in one slice, one orientation
    ring[:, 1:6, 1:6] = 3
    ring[:, 2:5, 2:5] = 2
    bowl = np.full((6, 7, 7), 2, np.uint8)  # open where the volume ends
    bowl[:4, 1:6, 1:6] = 3
    bowl[:3, 2:5, 2:5] = 2
    for labels in (ring, bowl):
        np.testing.assert_array_equal(steps(SolidCore())(volume(labels), MM, BRATS_METS), labels)


def shell():
    """Oedema (2), in it a shell of enhancing tumour (3), in that oedema again."""
    labels = np.full((7, 7, 7), 2, np.uint8)
    labels[1:6, 1:6, 1:6] = 3
    labels[2:5, 2:5, 2:5] = 2
    return labels


def test_a_cavity_is_no_core_but_lies_within():
    labels = shell()
    labels[3, 3, 3] = 4
    expected = labels.copy()
    expected[2:5, 2:5, 2:5] = 1
    expected[3, 3, 3] = 4
    probabilities = np.stack([labels == index for index in range(5)]).astype(np.float32)
    scheme = LabelScheme(("netc", "snfh", "et", "rc"))
    np.testing.assert_array_equal(steps(SolidCore())(probabilities, MM, scheme), expected)
    labels[1:6, 1:6, 1:6] = 4  # a cavity alone encloses nothing
    labels[2:5, 2:5, 2:5] = 2
    probabilities = np.stack([labels == index for index in range(5)]).astype(np.float32)
    np.testing.assert_array_equal(steps(SolidCore())(probabilities, MM, scheme), labels)


@pytest.mark.parametrize(
    ("names", "core", "oedema"), [(("lesion",), 1, 1), (("netc", "snfh"), 1, 2), (("snfh", "et"), 2, 1)]
)
def test_a_solid_core_needs_all_three_classes(names, core, oedema):
    labels = np.where(shell() == 3, core, oedema)
    probabilities = np.stack([labels == index for index in range(len(names) + 1)]).astype(np.float32)
    out = steps(SolidCore())(probabilities, MM, LabelScheme(names))
    np.testing.assert_array_equal(out, labels)


def test_only_what_is_surely_core_makes_it_solid():
    labels = shell()
    labels[3, 3, 3] = 3  # sure, but encloses nothing
    faint = volume(labels) * 0.6 + 0.1
    faint[:, 3, 3, 3] = (0, 0, 0, 1)
    out = steps(ConfidentCore(0.9), SolidCore())(faint, MM, BRATS_METS)
    expected = np.full((7, 7, 7), 2)
    expected[3, 3, 3] = 3
    np.testing.assert_array_equal(out, expected)


def test_holes_become_what_encloses_them():
    labels = np.full((5, 5, 9), 0, np.uint8)
    labels[1:4, 1:4, 1:4] = 3
    labels[2, 2, 2] = 0  # in the core
    labels[1:4, 1:4, 4:8] = 2
    labels[2, 2, 6] = 0  # in the oedema
    labels[0, 0, 0] = 0
    out = steps(FillHoles())(volume(labels), MM, BRATS_METS)
    assert (out[2, 2, 2], out[2, 2, 6]) == (1, 2)
    assert np.count_nonzero(out != labels) == 2
    labels[2, 2, 3] = 2  # oedema in the wall: now the whole tumour encloses, no longer the core
    assert steps(FillHoles())(volume(labels), MM, BRATS_METS)[2, 2, 2] == 2
    assert steps(FillHoles(["tc"]))(volume(labels), MM, BRATS_METS)[2, 2, 2] == 0
    labels[:, 2, 2] = 0  # open to the outside
    assert steps(FillHoles())(volume(labels), MM, BRATS_METS)[2, 2, 2] == 0
    cavity = np.full((3, 3, 3), 4, np.uint8)
    cavity[1, 1, 1] = 0
    scheme = LabelScheme(("netc", "snfh", "et", "rc"))
    probabilities = np.stack([cavity == index for index in range(5)]).astype(np.float32)
    assert steps(FillHoles())(probabilities, MM, scheme)[1, 1, 1] == 0
    assert (steps(FillHoles(["rc"]))(probabilities, MM, scheme) == 4).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: Hysteresis(low=0.6, high=0.5), "low ≤ high"),
        (lambda: Hysteresis(low=-0.1, high=0.5), "low ≤ high"),
        (lambda: Hysteresis(low=0.1, high=1), "low ≤ high"),
        (lambda: ConfidentCore(1), "0 ≤ threshold < 1 .*, got threshold=1"),
        (lambda: MinVolume(-1), "at least 0"),
        (lambda: ByRegion(low=1), "0 ≤ low < 1"),
        (lambda: ByRegion(low=0.5, high=0.4), "low ≤ high ≤ 1, got low=0.5 high=0.4"),
        (lambda: Postprocessing(decode="softmax"), "decode must be argmax, regions or null, got 'softmax'"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(PostprocessingError, match=message):
        settings()


def test_rules_that_do_not_fit_the_classes():
    labels = volume(np.zeros((1, 1, 1), np.uint8))
    for step in (Hysteresis(0.5, 0.5, regions=["rc"]), ConfidentCore(0.5, regions=["rc"]), MinVolume(1, ["rc"])):
        rules = steps(step)
        assert not rules(labels, MM, BRATS_METS).any()
        assert rules.lacking(BRATS_METS) == [
            "postprocessing.steps.0 leaves out rc, not among the labels netc, snfh, et"
        ]
        assert rules.lacking(LabelScheme(("netc", "snfh", "et", "rc"))) == []
    custom = LabelScheme(("lesion", "b", "c"))
    labels = np.full((4, 3, 3, 3), 0, np.float32)
    labels[1], labels[1, 1, 1, 1], labels[0, 1, 1, 1] = 1, 0, 1
    rules = steps(FillHoles(), SolidCore(), RequireCore(), Hysteresis(0.5, 0.5, regions=["b"]))
    assert not rules(labels, MM, custom)[1, 1, 1]  # nothing fills the hole
    assert [line.split(" leaves out ")[1].partition(", not")[0] for line in rules.lacking(custom)] == [
        "tc, wt", "netc, snfh, et", "snfh"
    ]  # fmt: skip
    with pytest.raises(PostprocessingError, match=r"regions has cavity, the regions of data\.labels are et, tc, wt"):
        steps(MinVolume(1, ["cavity"])).lacking(BRATS_METS)


def written(path, rules):
    """What tuning leaves for a checkpoint."""
    OmegaConf.save(OmegaConf.create({"chosen": as_config(rules), "score": 1}), tuned_file(path))


def test_tuned_rules_are_read_from_beside_the_checkpoint(tmp_path):
    a, b = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    assert tuned_file(a) == tmp_path / "a_postprocessing.yaml"
    with pytest.raises(PostprocessingError, match=r"tune ckpt=.*a\.ckpt"):
        tuned(a)
    rules = Postprocessing({"hysteresis": Hysteresis(0.25, 0.5), "small": MinVolume(3, ["et"])})
    written(a, rules)
    assert tuned(str(a)) == rules
    written(b, rules)
    assert tuned([a, b]) == tuned(a)
    for others in (
        Postprocessing({"hysteresis": Hysteresis(0.25, 0.75)}),
        Postprocessing(dict(reversed(rules.steps.items()))),
    ):
        written(b, others)
        with pytest.raises(PostprocessingError, match="different rules"):
            tuned([a, b])


@pytest.mark.parametrize("chosen", ["{low: 0.25}", "{_target_: torch.nn.ReLU}"])
def test_tuned_rules_of_another_kind(tmp_path, chosen):
    tuned_file(tmp_path / "a.ckpt").write_text(f"chosen: {chosen}")
    with pytest.raises(PostprocessingError, match=r"a_postprocessing\.yaml: no post-processing"):
        tuned(tmp_path / "a.ckpt")


def test_a_tuned_file_runs_nothing_else(tmp_path):
    tuned_file(tmp_path / "a.ckpt").write_text("chosen: {steps: {a: {_target_: os.system, command: touch owned}}}")
    with pytest.raises(UntrustedTarget, match=r"wants to run 'os\.system'"):
        tuned(tmp_path / "a.ckpt")


@pytest.fixture
def chosen(composed, tmp_path):
    def build(*overrides):
        paths = [f"ckpt={tmp_path}/a.ckpt", "input=x", "output=y"]
        return build_part("postprocessing", composed(*paths, *overrides, name="predict").postprocessing)

    return build


def test_the_configs_build_the_rules(chosen, tmp_path):
    assert chosen("postprocessing=none") == Postprocessing()
    assert chosen("postprocessing=hysteresis").steps == {"hysteresis": Hysteresis(0.25, 0.7)}
    confident = {"hysteresis": Hysteresis(0.5, 0.98, True), "core": ConfidentCore(0.98, True)}
    assert chosen("postprocessing=confident").steps == confident
    strict = chosen("postprocessing=strict").steps
    assert list(strict.items()) == [
        *confident.items(),
        ("solid_core", SolidCore()),
        ("require_core", RequireCore(True)),
    ]
    assert chosen("postprocessing=none", "postprocessing.decode=regions") == Postprocessing(decode="regions")
    rules = chosen(
        "postprocessing=none",
        "postprocessing/step=[fill_holes,min_volume]",
        "postprocessing.steps.min_volume.regions=[et]",
    )
    assert list(rules.steps.values()) == [FillHoles(), MinVolume(3, ["et"])]
    assert rules(volume(np.full((1, 1, 2), 3, np.uint8)), MM, BRATS_METS).sum() == 0
    written(tmp_path / "a.ckpt", rules)
    assert chosen("postprocessing=tuned") == rules


def test_every_step_is_a_choice_and_may_be_switched_off(chosen):
    names = sorted(path.stem for path in (config_dir() / "postprocessing/step").glob("*.yaml"))
    rules = chosen("postprocessing=none", f"postprocessing/step=[{','.join(names)}]")
    assert {name: type(step) for name, step in rules.steps.items()} == {
        "by_region": ByRegion, "core": ConfidentCore, "fill_holes": FillHoles, "hysteresis": Hysteresis,
        "min_volume": MinVolume, "require_core": RequireCore, "solid_core": SolidCore,
    }  # fmt: skip
    assert list(chosen("postprocessing=strict", "postprocessing.steps.core=null").steps) == [
        "hysteresis", "solid_core", "require_core",
    ]  # fmt: skip


@pytest.mark.parametrize("sign", ["+", "++"])
def test_settings_of_a_step_that_was_not_chosen(chosen, sign):
    with pytest.raises(ValueError, match="and no _target_") as error:
        chosen("postprocessing=none", f"{sign}postprocessing.steps.hysteresis.low=0.3")
    assert str(error.value) == (
        "postprocessing.steps.hysteresis has the settings {'low': 0.3} and no _target_: this step was not chosen; "
        "choose it, e.g. by postprocessing=hysteresis or 'postprocessing/step=[hysteresis]', or leave it out, "
        "postprocessing.steps.hysteresis=null"
    )


def test_each_region_with_its_own_hysteresis():
    #             oedema, sure | core with a peak | tumour too faint | core without a peak | ET suspected in NETC
    probabilities = line(
        (0.125, 0.75, 0.125), (0.5, 0.375, 0.125), (0.25, 0.125, 0.0), (0.5, 0.5, 0.0), 0.0, (0.5, 0.0, 0.375)
    )
    assert flat(Postprocessing()(probabilities, MM, BRATS_METS)) == [2, 1, 0, 1, 0, 1]
    whole, core, enhancing = (
        Hysteresis(0.5, 0.75, regions=["wt"]),
        Hysteresis(0.25, 0.6, regions=["tc"]),
        Hysteresis(0.25, 0.3, regions=["et"]),
    )
    assert flat(steps(whole)(probabilities, MM, BRATS_METS)) == [2, 1, 0, 1, 0, 1]
    # at low is not in the core, though its neighbour has a peak; what has none becomes oedema
    assert flat(steps(core)(probabilities, MM, BRATS_METS)) == [2, 1, 0, 2, 0, 1]
    assert flat(steps(whole, core, enhancing)(probabilities, MM, BRATS_METS)) == [2, 1, 0, 2, 0, 3]
    # one step for the three, in the order given
    together = Hysteresis(0.25, 0.5, regions=["wt", "tc", "et"])
    alone = [Hysteresis(0.25, 0.5, regions=[region]) for region in ("wt", "tc", "et")]
    assert np.array_equal(steps(together)(probabilities, MM, BRATS_METS), steps(*alone)(probabilities, MM, BRATS_METS))
    # nothing of another region is taken: oedema around a cavity is none of its foreground
    cavity = LabelScheme(("netc", "snfh", "et", "rc"))
    rc = np.array([[0.0, 0.0], [0.0, 0.0], [0.5, 0.25], [0.0, 0.0], [0.375, 0.75]], np.float32).reshape(5, 1, 1, 2)
    rc[0] = 1 - rc[1:].sum(0)
    assert flat(steps(Hysteresis(0.25, 0.5, regions=["rc"]))(rc, MM, cavity)) == [2, 4]
