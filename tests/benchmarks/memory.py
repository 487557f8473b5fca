"""Memory that a training holds, whatever the number of cases."""

from collections.abc import Iterator

from tests.benchmarks.measure import Goal, Options, Row
from tests.benchmarks.workload import probed_training, tiny_cases

STEPS = 40


def rows(options: Options) -> Iterator[Row]:
    roots = {count: tiny_cases(options.scratch, count) for count in (10, 500)}
    for root in roots.values():
        probed_training(options, root)  # fills the cache
    yield Row(
        "memory",
        "memory of a training with 500 cases",
        "MB",
        {
            "ours": lambda: probed_training(options, roots[500], step=STEPS)["memory"],
            "with 10 cases": lambda: probed_training(options, roots[10], step=STEPS)["memory"],
        },
        goals=[Goal("with 10 cases", at_most=1.05)],
        repeats=3,
        note=f"PSS of the main process and two workers after {STEPS} steps of batches of two 32³ patches",
    )
