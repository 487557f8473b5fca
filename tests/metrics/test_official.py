"""Named cases of the challenge's protocols, worked by hand, and what the front door promises."""

import math

import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS, LabelScheme
from brats_lightning.metrics.brats2026 import COLUMNS
from brats_lightning.metrics.official import PROTOCOLS, ScoreError, score_case

ISOTROPIC = (1.0, 1.0, 1.0)
NAN = math.nan


def volume(*boxes, shape=(40, 40, 40), label=3):
    """A mask with boxes of (x, y, z) ranges, each of ``label`` or of the label that follows its three ranges."""
    mask = np.zeros(shape, np.uint8)
    for x, y, z, *own in boxes:
        mask[slice(*x), slice(*y), slice(*z)] = own[0] if own else label
    return mask


A = ((5, 9), (5, 9), (5, 9))  # 4³
FAR = ((25, 29), (25, 29), (25, 29))
CUBE27 = ((25, 28), (25, 28), (25, 28))
VOXEL = ((30, 31), (30, 31), (30, 31))
SMALL_A = ((5, 8), (5, 8), (5, 8))  # 3³
GAP2 = ((10, 13), (5, 8), (5, 8))
GAP3 = ((11, 14), (5, 8), (5, 8))
CORE = ((11, 22), (5, 10), (5, 10), 1)
SHELLS = (((10, 11), (5, 10), (5, 10)), ((22, 23), (5, 10), (5, 10)))

# reference, prediction, brats2023 (Dice, HD95), brats2025 (Dice, HD95, NSD 0.5, NSD 1), brats2026 (DSC, HD95)
GOLDEN = {
    "both empty": ((), (), (1, 0), (1, 0, 1, 1), (NAN, NAN)),
    "reference empty, one false positive": ((), (A,), (0, 374), (0, 69.2820323, 0, 0), (NAN, NAN)),
    "one missed": ((A,), (), (0, 374), (0, 69.2820323, 0, 0), (0, 373)),
    "one found, one missed": ((A, FAR), (A,), (0.5, 187), (0.5, 34.6410162, 0.5, 0.5), (0.5, 186.5)),
    "a false positive of 27 voxels": ((A,), (A, CUBE27), (0.5, 187), (0.5, 34.6410162, 0.5, 0.5), (0.5, 186.5)),
    "a false positive of one voxel": ((A,), (A, VOXEL), (0.5, 187), (1, 0, 1, 1), (0.5, 186.5)),
    "touch without overlap": ((A,), (((9, 13), A[1], A[2]),), (0, 4), (0, 4, 0, 2 / 7), (0, 373)),
    "a gap of two, one found": ((SMALL_A, GAP2), (SMALL_A,), (2 / 3, 5), (2 / 3, 5, 0.75, 0.75), (0.5, 186.5)),
    "a gap of three, one found": (
        (SMALL_A, GAP3),
        (SMALL_A,),
        (0.5, 187),
        (0.5, 34.6410162, 0.5, 0.5),
        (0.5, 186.5),
    ),
    "two voxels missed beside a large one found": (
        (A, ((30, 32), (30, 31), (30, 31))),
        (A,),
        (1, 0),
        (1, 0, 1, 1),
        (1, 0),
    ),
    "one prediction spans two lesions": (
        (A, ((15, 19), A[1], A[2])),
        (((5, 20), A[1], A[2]),),
        (8 / 19, 10.5),
        (8 / 19, 10.5, 0.5794, 0.6862),
        (4 / 19, 192),
    ),
    "two shells on one core, one found": (
        (CORE, *SHELLS),
        (CORE, SHELLS[0]),
        (0.5, 187),
        (2 / 3, 12, 0.75, 0.75),
        (0.5, 186.5),
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_values(case):
    reference, prediction, *expected = GOLDEN[case]
    reference, prediction = volume(*reference), volume(*prediction)
    older = ("LesionWise_Score_Dice", "LesionWise_Score_HD95")
    columns = {
        "brats2023": older,
        "brats2025": (*older, "LesionWise_Score_NSD @ 0.5", "LesionWise_Score_NSD @ 1.0"),
        "brats2026": ("lesionwise_dsc_mean", "lesionwise_hd95_mean"),
    }
    for (protocol, names), values in zip(columns.items(), expected, strict=True):
        scores = score_case(reference, prediction, ISOTROPIC, BRATS_METS, protocol)["et"]
        np.testing.assert_allclose([scores[name] for name in names], values, atol=6e-5, err_msg=protocol)


def test_brats2024_is_2025_with_the_penalty_of_2023():
    reference, prediction = volume(CORE, *SHELLS, FAR), volume(CORE, SHELLS[0], VOXEL)
    scores = {name: score_case(reference, prediction, ISOTROPIC, BRATS_METS, name)["et"] for name in PROTOCOLS}
    assert list(scores["brats2024"]) == list(scores["brats2023"])
    assert scores["brats2024"]["LesionWise_Score_Dice"] == scores["brats2025"]["LesionWise_Score_Dice"] == 1 / 3
    assert scores["brats2024"]["LesionWise_Score_HD95"] == (12 + 374) / 2
    assert scores["brats2025"]["LesionWise_Score_HD95"] == pytest.approx((12 + math.sqrt(3) * 40) / 2)
    assert (scores["brats2023"]["Num_FP"], scores["brats2024"]["Num_FP"]) == (1, 0)


def test_an_undetected_small_lesion_costs_only_the_small_f1():
    reference = volume(A, ((30, 32), (30, 31), (30, 31)))
    scores = score_case(reference, volume(A), ISOTROPIC, BRATS_METS, "brats2026")["et"]
    assert (scores["small_instance_f1"], scores["large_instance_f1"]) == (0, 1)
    assert scores["all_instance_f1"] == pytest.approx(2 / 3)


def test_whole_region_columns():
    reference, prediction = volume(A), volume(((7, 11), A[1], A[2]))  # shifted by half its length
    scores = score_case(reference, prediction, (1.0, 1.0, 2.0), BRATS_METS, "brats2023")["et"]
    assert scores["GT_Complete_Volume"] == 128
    assert scores["Legacy_Dice"] == 0.5
    assert scores["Sensitivity"] == 0.5
    assert scores["Specificity"] == (40**3 - 96) / (40**3 - 64)
    assert scores["Legacy_HD95"] == 2
    newer = score_case(reference, prediction, (1.0, 1.0, 2.0), BRATS_METS, "brats2026")["et"]
    assert (newer["global_dsc"], newer["global_hd95"]) == (0.5, 2)
    assert newer["global_nsd"] == pytest.approx(2 * 8 * 3 / 2 / 56 + 0 * 8)  # the four lateral faces' common voxels


@pytest.mark.parametrize(("thresholds", "large", "detected"), [("default", 1, 1), ("challenge", NAN, NAN)])
def test_thresholds_of_2026(thresholds, large, detected):
    """A lesion of 24 mm³ is large from 20 but not from 27; a Dice of 1/6 detects from 0.1 but not from 0.2."""
    reference = volume(((5, 7), (5, 8), (5, 9)))
    prediction = volume(((6, 8), (7, 10), (5, 9)))
    scores = score_case(reference, prediction, ISOTROPIC, BRATS_METS, "brats2026", thresholds)["et"]
    np.testing.assert_equal([scores["large_instance_tp"], scores["large_instance_rec"]], [large, detected])
    if thresholds == "challenge":
        assert (scores["small_instance_tp"], scores["small_instance_fn"], scores["all_instance_tp"]) == (0, 1, 1)


def test_lesions_exactly_at_the_thresholds_of_2026():
    """20 mm³ is large; a Dice of exactly 0.1 detects."""
    reference = volume(((5, 15), (5, 6), (5, 6)))
    prediction = volume(((14, 24), (5, 6), (5, 6)))
    scores = score_case(reference, prediction, (1.0, 1.0, 2.0), BRATS_METS, "brats2026")["et"]
    assert (scores["large_instance_tp"], scores["lesionwise_dsc_mean"]) == (1, 0.1)


def test_the_official_program_of_2026_swaps_the_spacings_of_x_and_z():
    reference, prediction = volume(A), volume(((6, 10), A[1], A[2]))
    scores = [
        score_case(reference, prediction, (0.5, 1.0, 3.0), BRATS_METS, "brats2026", spacing_mode=mode)["et"]
        for mode in ("official", "correct")
    ]
    assert [row["lesionwise_hd95_mean"] for row in scores] == [3.0, 0.5]
    assert [row["global_hd95"] for row in scores] == [1.0, 1.0]


def test_a_missing_prediction():
    scores = score_case(volume(A), None, ISOTROPIC, BRATS_METS, "brats2026")
    assert set(scores) == {"et", "tc", "wt"}
    for column, value in scores["wt"].items():
        assert value == (373 if column.endswith(("hd95", "hd95_mean")) else 0), column
    assert tuple(scores["et"]) == COLUMNS
    for protocol in PROTOCOLS[:3]:
        empty = score_case(volume(A), volume(), ISOTROPIC, BRATS_METS, protocol)
        assert score_case(volume(A), None, ISOTROPIC, BRATS_METS, protocol) == empty


def test_the_resection_cavity_is_a_region_of_its_own():
    scheme = LabelScheme(("netc", "snfh", "et", "rc"))
    reference = volume((*A, 4), (*FAR, 1))
    for protocol in PROTOCOLS:
        scores = score_case(reference, volume((*A, 4)), ISOTROPIC, scheme, protocol)
        assert list(scores) == ["et", "tc", "wt", "rc"]
        cavity, core = scores["rc"], scores["wt"]
        column = "lesionwise_dsc_mean" if protocol == "brats2026" else "LesionWise_Score_Dice"
        assert (cavity[column], core[column]) == (1, 0), protocol


def test_a_scheme_without_necrosis_has_no_core_to_join_lesions_by():
    scheme = LabelScheme(("et",))
    reference = np.where(volume(CORE, *SHELLS) == 3, 1, 0).astype(np.uint8)
    prediction = reference.copy()
    prediction[22] = 0
    scores = score_case(reference, prediction, ISOTROPIC, scheme, "brats2024")
    assert scores["et"]["LesionWise_Score_Dice"] == 0.5


@pytest.mark.parametrize(("start", "joined"), [(5, "behind"), (0, "before")])
def test_cores_are_numbered_by_the_first_voxel_of_their_dilation(start, joined):
    """ET between two cores goes to the lower-numbered one. Inside the volume that is the core with the lower x, one
    before the other's; at the border, where the dilation is cut, the one with the lower y.
    """
    upper, lower, z = (start, start + 1), (start + 1, start + 2), (3, 5)
    before, behind = (lower, (1, 3), z), (upper, (14, 17), z)
    between = (lower, (6, 11), z)
    reference = volume(before, between, behind, (lower, (3, 6), z, 1), (upper, (11, 14), z, 1))
    prediction = volume({"before": before, "behind": behind}[joined])
    found, rest = int(prediction.astype(bool).sum()), 10
    scores = score_case(reference, prediction, ISOTROPIC, BRATS_METS, "brats2024")["et"]
    assert (scores["Num_TP"], scores["Num_FN"]) == (1, 1)
    assert scores["LesionWise_Score_Dice"] == pytest.approx(2 * found / (2 * found + rest) / 2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_invariance(protocol):
    """Room around the masks and the memory's layout change nothing but true negatives and the diagonal."""
    rng = np.random.default_rng(3)
    reference = (rng.integers(0, 4, (9, 8, 7)) * (rng.random((9, 8, 7)) < 0.3)).astype(np.uint8)
    prediction = np.roll(reference, 1, axis=1)
    spacing = (0.7, 1.0, 2.5)
    scores = score_case(reference, prediction, spacing, BRATS_METS, protocol)
    layout = score_case(np.asfortranarray(reference), np.asfortranarray(prediction), spacing, BRATS_METS, protocol)
    np.testing.assert_equal(layout, scores)
    np.testing.assert_equal(
        score_case(reference.astype(np.int16), prediction.astype(np.int64), spacing, BRATS_METS, protocol), scores
    )
    if protocol in (
        "brats2025",
        "brats2026",
    ):  # numbering by dilated voxels, which the border cuts, decides no tie here
        return
    roomy = score_case(np.pad(reference, 5), np.pad(prediction, 5), spacing, BRATS_METS, protocol)
    for region, row in scores.items():
        assert {**roomy[region], "Specificity": 0} == {**row, "Specificity": 0}


def test_a_float32_header_is_computed_in_double_precision():
    """Four voxels of 0.7 · 0.9 · 7.9365077 mm³ are just under 20 mm³; their float32 product is 20."""
    spacing = tuple(np.float32(value) for value in (0.7, 0.9, 7.936507701873779))
    assert np.prod(spacing) * 4 >= 20
    mask = volume(((5, 9), (5, 6), (5, 6)))
    scores = score_case(mask, mask, spacing, BRATS_METS, "brats2026")["et"]
    assert scores["small_instance_tp"] == 1


def test_inputs_are_not_written():
    reference, prediction = volume(A), volume(FAR)
    for mask in (reference, prediction):
        mask.flags.writeable = False
    for protocol in PROTOCOLS:
        score_case(reference, prediction, ISOTROPIC, BRATS_METS, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_full_and_tiny_volumes(protocol):
    one = np.full((1, 1, 1), 3, np.uint8)
    scores = score_case(one, one, (2.0, 2.0, 2.0), BRATS_METS, protocol)["et"]
    found = "all_instance_f1" if protocol == "brats2026" else "LesionWise_Score_Dice"
    # From 2024 on the one predicted voxel is deleted, and the lesion of 8 mm³ is missed.
    assert scores[found] == (0 if protocol in ("brats2024", "brats2025") else 1)
    if protocol != "brats2026":
        assert scores["Specificity"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": np.zeros((3, 4, 5), np.uint8)}, "shape"),
        ({"reference": np.zeros((4, 4), np.uint8)}, "3D"),
        ({"spacing": (1.0, 0.0, 1.0)}, "positive"),
        ({"spacing": (1.0, 1.0)}, "three positive"),
        ({"spacing": (1.0, math.nan, 1.0)}, "positive"),
        ({"protocol": "brats2022"}, "brats2023, brats2024, brats2025, brats2026, got 'brats2022'"),
        ({"thresholds": "strict"}, "default, challenge"),
        ({"spacing_mode": "mm"}, "official, correct"),
    ],
)
def test_errors_say_what_was_expected(change, message):
    arguments = {
        "reference": np.zeros((4, 4, 4), np.uint8),
        "prediction": np.zeros((4, 4, 4), np.uint8),
        "spacing": ISOTROPIC,
        "protocol": "brats2026",
        **change,
    }
    with pytest.raises(ScoreError, match=message):
        score_case(scheme=BRATS_METS, **arguments)
