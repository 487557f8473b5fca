import pytest

from brats_lightning.evaluation.report.selection import cases_in_pictures, kind_of_lesion, worst_first, worst_lesions
from tests.evaluation.evaluating import lesion, scored


def test_worst_first():
    cases = [
        scored("clean"),
        scored("good", dice=0.9),
        scored("bad", dice=0.1),
        scored("missing", dice=0.5, missing=True),
        scored("false alarm", lesion(false_positive=True), voxel=0.0),
        scored("bad too", lesion(), dice=0.1),
    ]
    order = [case.case for case in worst_first(cases, "brats2024", "et")]
    assert order == ["missing", "false alarm", "bad too", "bad", "good", "clean"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (8, {"Worst": "0123", "In the middle": "45", "Best": "89"}),
        (9, {"Worst": "01234", "In the middle": "56", "Best": "89"}),
        (4, {"Worst": "01", "In the middle": "5", "Best": "9"}),
        (3, {"Worst": "012"}),
        (1, {"Worst": "0"}),
        (0, {}),
        (10, {"All cases, worst first": "0123456789"}),
        (None, {"All cases, worst first": "0123456789"}),
    ],
)
def test_cases_in_pictures(count, expected):
    cases = [scored("without", missing=True), *(scored(str(i)) for i in range(10))]
    groups = cases_in_pictures(cases, count)
    assert {name: "".join(case.case for case in group) for name, group in groups.items()} == expected


def test_no_case_with_a_prediction_has_no_pictures():
    assert cases_in_pictures([scored("without", missing=True)], 5) == {}


def test_kinds():
    rows = lesion(dice=0.0), lesion(false_positive=True), lesion(dice=0.2), lesion(dice=0.5)
    assert [kind_of_lesion(row) for row in rows] == ["missed", "false positive", "poor", "found"]


def test_worst_lesions_are_the_largest_of_each_kind(monkeypatch):
    missed = [lesion(i, float(i)) for i in range(1, 5)]
    detected = [lesion(9, 1e6, dice=0.9), lesion(10, 1e5, dice=0.7), lesion(11, 8.0, dice=0.3)]
    invented = [lesion(i, float(10 * i), false_positive=True) for i in range(1, 3)]
    cases = [scored("a", *missed, *detected, *invented), scored("b", lesion(1, 99.0), missing=True)]
    chosen = worst_lesions(cases, "et")
    assert {case for case, _ in chosen} == {"a"}
    assert [row.volume for _, row in chosen] == [4, 3, 2, 1, 20, 10, 8]
    assert [row.dice for _, row in worst_lesions(cases, "et", found=True)[-2:]] == [0.7, 0.9]
    assert worst_lesions(cases[1:], "et") == []
    monkeypatch.setattr("brats_lightning.evaluation.report.selection.LISTED", 1)
    assert [row.volume for _, row in worst_lesions(cases, "et", found=True)] == [4, 20, 8, 1e5]
