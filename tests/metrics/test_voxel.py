import math

import pytest
import torch

from brats_lightning.core.labels import BRATS_METS, LabelScheme
from brats_lightning.metrics.voxel import CaseScores, confusion_matrix, voxel_scores


def scores(reference, prediction, scheme=BRATS_METS):
    pair = [torch.tensor(values, dtype=torch.uint8) for values in (reference, prediction)]
    return voxel_scores(confusion_matrix(*pair, scheme.num_classes), scheme)


def test_confusion_counts_by_reference_row_and_prediction_column():
    confusion = confusion_matrix(torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1, 2, 0], dtype=torch.uint8), 4)
    expected = torch.zeros(4, 4, dtype=torch.int64)
    expected[0, 0] = expected[1, 1] = expected[1, 2] = expected[3, 0] = 1
    assert torch.equal(confusion, expected)


def test_hand_worked_case():
    #         bg NETC SNFH ET ET bg
    got = scores([0, 1, 2, 3, 3, 0], [0, 3, 2, 3, 0, 2])
    assert got["accuracy"] == pytest.approx(3 / 6)
    assert got["dice_et"] == pytest.approx(2 * 1 / (2 + 2))
    assert got["iou_et"] == pytest.approx(1 / 3)
    # TC = {1, 3}: the reference has voxels 1, 3, 4, the prediction 1, 3
    assert got["dice_tc"] == pytest.approx(2 * 2 / (3 + 2))
    # WT: reference 1-4, prediction 1, 2, 3, 5
    assert got["dice_wt"] == pytest.approx(2 * 3 / (4 + 4))
    assert got["iou_wt"] == pytest.approx(3 / 5)
    assert got["dice_netc"] == 0
    assert got["dice_snfh"] == pytest.approx(2 / 3)
    assert got["dice_et_class"] == got["dice_et"]
    assert got["dice_mean"] == pytest.approx((0.5 + 0.8 + 0.75) / 3)
    assert got["iou_mean"] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


def test_perfect_prediction_is_1_and_absent_classes_are_nan():
    got = scores([0, 2, 2, 0], [0, 2, 2, 0])
    assert got["accuracy"] == got["iou_mean"] == got["dice_mean"] == got["dice_wt"] == 1
    assert math.isnan(got["dice_et"])
    assert math.isnan(got["iou_netc"])


def test_no_lesion_on_either_side_leaves_nothing_to_score():
    got = scores([0, 0], [0, 0])
    assert got["accuracy"] == 1
    assert all(math.isnan(value) for name, value in got.items() if name != "accuracy")


def test_a_false_positive_without_reference_is_0_not_nan():
    got = scores([0, 0], [3, 0])
    assert got["dice_et"] == got["dice_tc"] == got["dice_wt"] == 0


def test_resection_cavity_is_a_region_outside_the_headline():
    got = scores([4, 3], [4, 0], LabelScheme(("netc", "snfh", "et", "rc")))
    assert got["dice_rc"] == got["dice_rc_class"] == 1
    assert got["dice_mean"] == 0  # ET, TC and WT only
    assert got["iou_mean"] == pytest.approx(0.5)  # ET 0, RC 1


def test_classes_unknown_to_the_challenge_are_regions_of_their_own():
    got = scores([1, 2], [1, 0], LabelScheme(("core", "halo")))
    assert got["dice_core"] == 1
    assert got["dice_halo"] == 0
    assert got["dice_mean"] == 0.5


def test_torchmetrics_agrees():
    from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

    torch.manual_seed(0)
    reference, prediction = torch.randint(0, 4, (2, 500))
    confusion = confusion_matrix(reference, prediction, 4)
    assert torch.equal(confusion, multiclass_confusion_matrix(prediction, reference, 4))
    expected = multiclass_jaccard_index(prediction, reference, 4, average=None)
    got = voxel_scores(confusion, BRATS_METS)
    assert [got["iou_netc"], got["iou_snfh"], got["iou_et_class"]] == pytest.approx(expected[1:].tolist())


def test_case_scores_skip_nan_and_count_what_is_left():
    table = CaseScores(["a", "b", "c"], ["dice", "volume"])
    table.update("a", {"dice": 0.5, "volume": 10.0})
    table.update("c", {"dice": float("nan"), "volume": 20.0})
    assert table.means() == {"dice": pytest.approx(0.5), "volume": pytest.approx(15.0)}
    assert table.counts() == {"dice": 1, "volume": 2}
    assert table.compute()[1].isnan().all()


def test_case_scores_without_any_case_are_nan():
    table = CaseScores(["a"], ["dice"])
    table.update("a", None)
    assert math.isnan(table.means()["dice"])
    assert table.counts() == {"dice": 0}


def test_rows_of_two_processes_add_up_to_one_table():
    first, second = CaseScores(["a", "b"], ["dice"]), CaseScores(["a", "b"], ["dice"])
    first.update("a", {"dice": 0.25})
    second.update("b", {})
    first.values += second.values  # what the sum over processes does
    first.scored += second.scored
    assert first.compute()[0].item() == 0.25
    assert first.compute()[1].isnan().item()
