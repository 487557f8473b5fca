"""How long the rest of a run takes, by what it took so far."""

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Remaining:
    """What is left of a run.

    Attributes:
        done: batches of training so far, also before the run was resumed.
        end: batches at which training ends; None: no number of steps or epochs ends it.
        time: seconds of ``trainer.max_time`` that are left; None: no limit.
        interval: batches between two validations.
        val_cases: cases of one validation.
        pending: cases left of the validation or test that runs now; 0 while training.
        test_cases: cases of the test that has not begun.
    """

    done: int
    end: float | int | None
    time: float | int | None
    interval: float | int
    val_cases: int
    pending: int = 0
    test_cases: int = 0

    def seconds(self, batch: float | int, case: float | int) -> float | int | None:
        """To the very end, if a batch and a case of validation or test take so many; None if training has no limit.

        Training ends with a validation: the one of the interval, if that falls on the last batch, or one more.
        """
        now, validation = self.pending * case, self.val_cases * case
        ends = []
        if self.end is not None:
            left = max(0.0, self.end - self.done)
            count = max(1, math.ceil(self.end / self.interval) - self.done // self.interval) if left else 0
            ends.append(left * batch + count * validation + now)
        if self.time is not None:  # which goes on during validations
            ends.append(self.time + validation if self.time > now else now)
        return min(ends) + self.test_cases * case if ends else None


class Pace:
    """Mean seconds of what happens again and again, by its kind."""

    def __init__(self) -> None:
        self._mark = time.monotonic()
        self._sums: dict[str, tuple[int, float]] = {}

    def skip(self) -> None:
        """Do not count the time since the last call."""
        self._mark = time.monotonic()

    def count(self, kind: str) -> None:
        """One of a kind has ended, which began at the last call."""
        before, self._mark = self._mark, time.monotonic()
        number, seconds = self._sums.get(kind, (0, 0.0))
        self._sums[kind] = number + 1, seconds + self._mark - before

    def of(self, kind: str) -> float | int | None:
        """Mean seconds of a kind; None before the first has ended."""
        number, seconds = self._sums.get(kind, (0, 0.0))
        return seconds / number if number else None
