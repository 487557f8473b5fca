import sys
import types

import pytest

from tests.benchmarks import measure
from tests.benchmarks.measure import Goal, Options, Result, Row, alternate, close, rate, timed


def result(ours, theirs, goals=(), **fields):
    return Result("m", "r", "a row", "s", {"ours": ours, "peer": theirs}, list(goals), "–", **fields)


def test_contenders_take_turns_and_every_other_round_goes_backwards():
    calls = []

    def contender(name, values):
        return lambda: calls.append(name) or next(values)

    contenders = {"a": contender("a", iter([99, 1, 2, 3])), "b": contender("b", iter([99, 4, 5, 6]))}
    assert alternate(contenders, 3) == {"a": [1, 2, 3], "b": [4, 5, 6]}  # without the warm-up
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"


def test_timed_counts_the_work_alone(monkeypatch):
    clock = iter([10.0, 16.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    calls = []
    seconds = timed(lambda: calls.append("work"), per=3, before=lambda: calls.append("before"))
    assert seconds() == 2.0
    assert calls == ["before", "work"]


def test_rate(monkeypatch):
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert rate(lambda: None, per=10)() == 5.0


def test_a_ratio_is_the_median_over_rounds_not_the_ratio_of_medians():
    drifting = result([1, 10, 100], [2, 30, 200], [Goal("peer", at_least=2)])
    assert drifting.times_better("peer") == [2, 3, 2]
    assert drifting.reached(drifting.goals[0]) == 2
    assert drifting.median("ours") == 10


def test_of_a_rate_more_is_better():
    assert result([6, 6], [2, 3], higher_is_better=True).times_better("peer") == [3, 2]


@pytest.mark.parametrize(
    ("goal", "reached", "met"),
    [
        (Goal("peer", at_least=4), 4, True),
        (Goal("peer", at_least=4.1), 4, False),
        (Goal("peer", at_most=0.25), 0.25, True),
        (Goal("peer", at_most=0.2), 0.25, False),
        (Goal(at_most=2), 2, True),
        (Goal(at_most=1.9), 2, False),
    ],
)
def test_goals(goal, reached, met):
    measured = result([2], [8])
    assert measured.reached(goal) == reached
    assert measured.met(goal) is met


@pytest.mark.parametrize("bounds", [{}, {"against": "peer"}, {"at_least": 2}, {"at_least": 1, "at_most": 2}])
def test_a_goal_has_one_bound_and_something_to_be_better_than(bounds):
    with pytest.raises(ValueError, match="at_least or at_most"):
        Goal(**bounds)


def test_a_row_has_ours_and_goals_against_its_contenders():
    with pytest.raises(ValueError, match="goals against"):
        Row("r", "t", "s", {"ours": lambda: 1.0}, goals=[Goal("peer", at_least=1)])
    with pytest.raises(ValueError, match="row r"):
        Row("r", "t", "s", {"peer": lambda: 1.0})


def test_result_survives_json():
    before = result([1.0], [2.0], [Goal("peer", at_least=2)], note="warm")
    assert Result.from_dict(before.to_dict()) == before


def test_close():
    assert close([1.0, 2.0], [1.0, 2.0], 0, "masks") == "masks equal"
    assert close([1.0], [1.25], 0.5) == "outputs within 0.2"
    with pytest.raises(AssertionError, match="differ by 1"):
        close([1.0], [2.0], 0.5)
    with pytest.raises(AssertionError, match="shapes"):
        close([1.0], [[1.0]], 0.5)


@pytest.fixture
def module(monkeypatch):
    """A benchmark of one row, and the order of what happens to it."""
    happened = []

    def rows(options):
        happened.append("made")
        contenders = {"ours": lambda: happened.append("measured") or 1.0}
        yield Row("r", "t", "s", contenders, check=lambda: happened.append("checked") or "same", repeats=2)

    made = types.ModuleType("tests.benchmarks.made_up")
    made.rows = rows
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(measure, "_set_threads", lambda threads: happened.append(f"threads {threads}"))
    return happened


def test_measure(module, tmp_path):
    (measured,) = measure.measure("made_up", Options(tmp_path, tmp_path, repeats=5, threads=3))
    assert module == ["made", "threads 3", "checked", *["measured"] * 3]
    assert measured.values == {"ours": [1.0, 1.0]}
    assert (measured.module, measured.outputs) == ("made_up", "same")
    assert measured.machine["threads"] == 3
    assert len(measured.machine["load"]) == 2
