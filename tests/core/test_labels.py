import numpy as np
import pytest

from brats_lightning.core.labels import (
    BRATS_METS,
    IGNORE,
    LabelScheme,
    apply_label_map,
    as_label_map,
    in_classes,
    known_classes,
    known_part,
    parse_channel,
    source_modalities,
    with_ignored,
)


def test_the_default_scheme():
    assert BRATS_METS.num_classes == 4
    assert BRATS_METS.class_names == ("background", "netc", "snfh", "et")
    assert BRATS_METS.regions == {"et": (3,), "tc": (1, 3), "wt": (1, 2, 3)}
    assert [BRATS_METS.index(name) for name in BRATS_METS.class_names] == [0, 1, 2, 3]


def test_a_cavity_is_a_region_of_its_own():
    scheme = LabelScheme(("netc", "snfh", "et", "rc"))
    assert scheme.regions == {"et": (3,), "tc": (1, 3), "wt": (1, 2, 3), "rc": (4,)}


def test_regions_need_all_their_classes_and_follow_the_order():
    assert LabelScheme(("et", "snfh")).regions == {"et": (1,)}
    assert LabelScheme(("et", "netc")).regions == {"et": (1,), "tc": (2, 1)}


@pytest.mark.parametrize("names", [(), ("et", "et"), ("background", "et")])
def test_bad_schemes_are_refused(names):
    with pytest.raises(ValueError, match="distinct foreground class names"):
        LabelScheme(names)


def test_label_map_copies_and_does_not_chain():
    mask = np.array([[0, 1, 2], [4, 3, 255]], np.int16)
    mapped = apply_label_map(mask, {4: 3, 3: 1})
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[0, 1, 2], [3, 1, 255]]
    assert mask.tolist() == [[0, 1, 2], [4, 3, 255]]
    assert apply_label_map(mask, None).tolist() == mask.tolist()
    assert apply_label_map(np.zeros((0, 2), np.int64), {1: 2}).shape == (0, 2)


def test_label_map_refuses_what_is_no_byte():
    with pytest.raises(ValueError, match=r"found -1 … 3"):
        apply_label_map(np.array([-1, 3]), None)
    with pytest.raises(ValueError, match="found 0 … 256"):
        apply_label_map(np.array([0, 256]), {})


def test_label_map_setting():
    assert as_label_map("data.label_map", None) == {}
    assert as_label_map("data.label_map", {4: 3, 255: 0}) == {4: 3, 255: 0}
    for wrong in ({1: 300}, {-1: 1}, {0: 1}, {1: 2, 256: 3}):
        with pytest.raises(ValueError, match=r"data.label_map must map labels 1 … 255 to 0 … 255"):
            as_label_map("data.label_map", wrong)


def test_in_classes():
    assert in_classes(np.array([0, 1, 2, 3], np.uint8), (1, 3)).tolist() == [False, True, False, True]
    assert not in_classes(np.array([0, 1], np.uint8), ()).any()


def test_channels():
    assert parse_channel("t1c") == ("t1c", None)
    assert parse_channel("t1c-t1n") == ("t1c", "t1n")
    assert source_modalities(("t2f", "t1c-t1n")) == ("t1n", "t1c", "t2f")
    for bad in ("t1", "t1c-t1", "t1c-t1n-t2w", "", "-t1n"):
        with pytest.raises(ValueError, match="is not a channel"):
            parse_channel(bad)


def test_an_ignored_label_is_one_more_in_the_map():
    assert with_ignored(None, None, BRATS_METS) == {}
    assert with_ignored({4: 3}, None, BRATS_METS) == {4: 3}
    assert with_ignored({4: 3}, 9, BRATS_METS) == {4: 3, 9: IGNORE}
    assert with_ignored({7: 9, 8: 9, 5: 1}, 9, BRATS_METS) == {7: IGNORE, 8: IGNORE, 5: 1, 9: IGNORE}
    assert with_ignored(None, 255, BRATS_METS) == {255: IGNORE}
    assert with_ignored(None, 4, BRATS_METS) == {4: IGNORE}


@pytest.mark.parametrize("label", [0, 3, 256, -1, 7, True])
def test_labels_that_cannot_be_ignored(label):
    with pytest.raises(ValueError, match=r"data.ignore_label must be one label of 4 … 255.*the label map \{7: 3\}"):
        with_ignored({7: 3}, label, BRATS_METS)


def test_the_known_part_of_masks():
    reference = np.array([[0, 3, IGNORE], [1, IGNORE, 2]], np.uint8)
    prediction = np.array([[1, 2, 3], [0, 0, 2]], np.uint8)
    assert known_classes(reference).tolist() == [[0, 3, 0], [1, 0, 2]]
    cut = known_part(reference, prediction)
    assert [mask.tolist() for mask in cut] == [[[0, 3, 0], [1, 0, 2]], [[1, 2, 0], [0, 0, 2]]]
    assert {mask.dtype for mask in cut} == {np.dtype(np.uint8)}
    assert known_part(prediction, reference)[1] is reference  # of which only a reference can be unknown
    assert [mask.shape for mask in known_part(reference[:0], prediction[:0])] == [(0, 3), (0, 3)]
