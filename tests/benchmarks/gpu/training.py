"""Whole training steps of the recipes by the trainer, and their feed: from the cache to augmented patches."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import OmegaConf

from brats_lightning.config.build import build_data
from brats_lightning.config.measure import measured_steps
from brats_lightning.synthetic.phantom import PhantomSettings, make_phantoms, phantom_folder
from brats_lightning.training.measurement import STEPS
from tests.benchmarks.gpu.networks import OURS, WIDTHS
from tests.benchmarks.gpu.part import Cell, Rows, Size, seconds
from tests.benchmarks.workload import config

CASES = 4
WORKERS = 8  # at most, for the feed


def recipe(name: str, size: Size, scratch: Path, *overrides: str) -> Any:
    """An experiment's config for phantoms of the size, with its patches and a single device."""
    settings = PhantomSettings(cases=CASES, shape=size.volume)
    root = make_phantoms(phantom_folder(scratch, settings), settings)
    accelerator = "cpu" if size.device.type == "cpu" else "gpu"
    widths = ",".join(str(width // size.thinner) for width in WIDTHS)
    return config(
        *(f"experiment={name}", "data=brats_mets", f"data.root={root}", f"paths.cache_dir={scratch}/cache"),
        *(f"sampling.size=[{size.patch},{size.patch},{size.patch}]", f"data.batch_size={size.batch}", "seed=0"),
        *(f"trainer.accelerator={accelerator}", "trainer.precision=bf16-mixed", "trainer.devices=1"),
        *("data.val_share=0", "data.test_share=0", "data.patches_per_case=1000", f"model.widths=[{widths}]"),
        *(f"paths.run_dir={scratch}/run", *overrides),
    )


def prepare(size: Size, rows: Rows, scratch: Path) -> None:
    """Make the phantoms and their cache, which the parts below find again."""
    start = time.perf_counter()
    data = build_data(recipe(OURS[0], size, scratch))
    made = time.perf_counter()
    data.prepare_data()
    data.setup("fit")
    rows.add(
        f"{CASES} phantoms",
        seconds=Cell(made - start, "s"),
        cache=Cell(time.perf_counter() - made, "s"),
    )


def steps(size: Size, rows: Rows, scratch: Path) -> None:
    """The shortest of some steps with loss, deep supervision, clipping, averaged weights and a feed without workers."""
    for name in OURS:
        config: Any = OmegaConf.to_container(recipe(name, size, scratch))
        measured = measured_steps(config)
        rows.add(
            f"experiment={name}",
            step=Cell(1000 * measured.seconds, "ms"),
            patches=Cell(size.batch / measured.seconds, "/s"),
            memory=Cell(measured.memory / 1e9, "GB"),
            note=Cell(None, f"the shortest of {STEPS - 1} steps"),
        )


def feed(size: Size, rows: Rows, scratch: Path) -> None:
    """Patches per second: read by workers, pinned, copied, normalised and augmented on the device."""
    for workers in (2, WORKERS) if size.device.type == "cuda" else (1,):
        cfg = recipe("mets", size, scratch, f"data.workers={workers}")
        data = build_data(cfg)
        data.prepare_data()
        data.setup("fit")
        # What the data module asks of a trainer.
        progress = SimpleNamespace(total=SimpleNamespace(processed=0))
        loops = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        strategy = SimpleNamespace(root_device=size.device)
        data.trainer = SimpleNamespace(training=True, strategy=strategy, fit_loop=loops, global_rank=0, world_size=1)
        batches = iter(data.train_dataloader())
        count = 8 * size.repeats

        def take(augmented: bool, batches: Any = batches, data: Any = data, count: int = count) -> None:
            for batch in itertools.islice(batches, count):
                batch = batch.to(size.device)
                if augmented:
                    data.on_after_batch_transfer(batch, 0)

        for what, augmented in (("read and copied", False), ("the same, normalised and augmented", True)):
            rate = count * size.batch / seconds(lambda on=augmented: take(on), size.device, 1)
            rows.add(f"{what}, workers: {workers}", patches=Cell(rate, "/s"))
