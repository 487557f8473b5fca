"""How time and memory grow with the number of cases, and what a large run therefore needs."""

import time
from collections.abc import Callable, Iterator, Mapping

from brats_lightning.data.layouts.brats import find_cases
from tests.benchmarks.measure import Options, Result, Row
from tests.benchmarks.workload import case_data, probed_training, tiny_cases

COUNTS = (1300, 100, 10)
CASES, GPUS = 1300, 8  # of the run that `requirements` describes
WORKERS = 2  # per GPU, the default


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
    worker = each(lambda count: runs[count]["worker"])
    yield Row("worker", title + "memory of each worker", "MB", worker, repeats=1, note=note)
    sidecars = {n: case_data(roots[n], cache).cache.directory for n in COUNTS}
    yield Row(
        "sidecars",
        title + "cache beside the voxels",
        "MB",
        each(lambda n: sum(file.stat().st_size for file in sidecars[n].glob("*") if file.suffix != ".tif") / 1e6),
        repeats=1,
        note="sidecars and positions",
    )


def requirements(results: Mapping[str, Result]) -> str:
    """What a run of `CASES` cases on `GPUS` GPUs needs, in a paragraph, from the rows measured; empty without them."""
    wanted = ("cache", "patches read", "index", "open", "start", "held", "worker")
    if any(name not in results for name in wanted):
        return ""
    size, rate, index, opened, start, held, worker = (results[name].median("ours") for name in wanted)
    disk = CASES * size / 1e3
    patch = 128**3 * (4 * 2 + 1) / 1e6  # codes of four modalities and a mask, in MB
    memory = GPUS * (held + WORKERS * 2 * 2 * patch) / 1e3  # a worker keeps two batches of two patches ready
    return (
        f"**{CASES:,} cases on {GPUS} GPUs**, from these measurements: {disk:.0f} GB of disk for the cache "
        f"({size:.1f} MB a case), which the page cache should hold for crops at memory speed; from disk a patch 128³×4 "
        f"is {patch:.0f} MB. Listing the files takes {index:.2g} s, opening the warm cache {opened:.2g} s, the first "
        f"step comes after {start:.1f} s. A process with {WORKERS} workers holds {held / 1e3:.1f} GB besides its "
        f"network and batches, each further worker {worker / 1e3:.2f} GB: {memory:.0f} GB for {GPUS} GPUs. A worker "
        f"reads {rate:.0f} patches 128³×4 a second (normalisation and augmentation are the GPU's), so the default of "
        f"{WORKERS} per GPU sustains {WORKERS * rate:.0f}, {GPUS * WORKERS * rate:.0f} on all, with "
        f"{GPUS * (WORKERS + 1)} CPU cores."
    )
