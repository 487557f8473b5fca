"""How time and memory grow with the number of cases, and what a large run therefore needs."""

import time
from collections.abc import Callable, Iterator

from brats_lightning.data.cases import find_cases
from tests.benchmarks.measure import Options, Row
from tests.benchmarks.workload import case_data, probed_training, tiny_cases

COUNTS = (1300, 100, 10)
CASES, GPUS = 1300, 8  # of the run that `requirements` describes
STEPS = 20


def rows(options: Options) -> Iterator[Row]:
    roots = {count: tiny_cases(options.scratch, count) for count in COUNTS}
    cache = options.scratch / "tiny-cache"
    for root in roots.values():
        case_data(root, cache).prepare_data()
    names = {count: "ours" if count == COUNTS[0] else f"with {count} cases" for count in COUNTS}

    def each(value: Callable[[int], float]) -> dict[str, Callable[[], float]]:
        return {names[count]: (lambda count=count: value(count)) for count in COUNTS}

    def index(count: int) -> float:
        start = time.perf_counter()
        assert len(find_cases(roots[count])) == count
        return time.perf_counter() - start

    def open_cache(count: int) -> float:
        data = case_data(roots[count], cache)
        start = time.perf_counter()
        data.prepare_data()
        data.setup("fit")
        seconds = time.perf_counter() - start
        assert len(data.cases) == count
        return seconds

    title = f"{COUNTS[0]:,} cases: "
    note = "hard links to tiny phantoms, files in the page cache"
    yield Row("index", title + "listing the files", "s", each(index), note=note)
    yield Row("open", title + "checking and opening a warm cache", "s", each(open_cache), note=note)
    runs: dict[int, dict[str, float]] = {}

    def first_step(count: int) -> float:
        runs[count] = probed_training(options, roots[count], step=1)
        return runs[count]["seconds"]

    yield Row("start", title + "to the end of the first step", "s", each(first_step), repeats=3, note=note)
    yield Row(
        "held", title + "memory after the first step", "MB", each(lambda n: runs[n]["memory"]), repeats=1, note=note
    )
    sidecars = {n: case_data(roots[n], cache).cache.directory for n in COUNTS}
    yield Row(
        "sidecars",
        title + "cache beside the voxels",
        "MB",
        each(lambda n: sum(file.stat().st_size for file in sidecars[n].glob("*") if file.suffix != ".tif") / 1e6),
        repeats=1,
        note="sidecars and positions",
    )
