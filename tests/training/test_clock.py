import math

import pytest

from brats_lightning.training import clock
from brats_lightning.training.clock import Pace, Remaining


def remaining(**changed):
    """Of 600 batches 250 are done, a validation of 4 cases is due every 300; 3 test cases."""
    start = {"done": 250, "end": 600, "time": None, "interval": 300, "val_cases": 4, "test_cases": 3}
    return Remaining(**(start | changed))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 350 * 2 + 2 * 4 * 10 + 3 * 10),  # validations at 300 and 600
        ({"done": 300}, 300 * 2 + 4 * 10 + 30),
        ({"done": 299}, 301 * 2 + 2 * 40 + 30),
        ({"end": 580}, 330 * 2 + 2 * 40 + 30),  # the last one at the end
        ({"done": 310, "end": 580}, 270 * 2 + 40 + 30),
        ({"interval": math.inf}, 350 * 2 + 40 + 30),  # at the end alone
        ({"val_cases": 0}, 350 * 2 + 30),
        ({"done": 300, "pending": 3}, 300 * 2 + 40 + 30 + 30),  # in the validation at 300
        ({"done": 580, "end": 580, "pending": 1}, 10 + 30),  # in the last one
        ({"done": 580, "end": 580}, 30),
        ({"time": 100}, 100 + 40 + 30),  # ends before the batches do
        ({"time": 5000}, 350 * 2 + 2 * 40 + 30),
        ({"end": None, "time": 100}, 100 + 40 + 30),
        ({"end": None, "time": 100, "pending": 4}, 100 + 40 + 30),  # whose 40 s are part of the 100 s
        ({"end": None, "time": 0, "pending": 2}, 20 + 30),  # in the last one
        ({"end": None}, None),
        ({"end": 0, "done": 0, "val_cases": 0, "pending": 2, "test_cases": 0}, 20),  # in the test
    ],
)
def test_seconds_to_the_very_end(changed, expected):
    assert remaining(**changed).seconds(batch=2, case=10) == expected


def test_the_pace_is_the_mean_of_what_is_counted(monkeypatch):
    now = 0.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: now)
    pace = Pace()
    assert pace.of("batch") is None
    now = 100.0
    pace.skip()
    for seconds in (1, 3):
        now += seconds
        pace.count("batch")
    now += 10
    pace.count("case")
    assert (pace.of("batch"), pace.of("case"), pace.of("other")) == (2, 10, None)
