"""What the trainer costs besides the arithmetic: steps of `pl.Trainer`, as configured, against a bare PyTorch loop."""

import copy
import itertools
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from torch import nn

from brats_lightning.config.build import build_segmentation, build_trainer
from brats_lightning.data.batches import PatchBatch
from tests.benchmarks.measure import Goal, Options, Row, close
from tests.benchmarks.workload import case_data, config, labelled_cases

STEPS = {96: 10, 48: 40}  # by the patch's side; whole intervals of logging
WARM_UP = 4  # steps that don't count
BARE, FED = "bare loop", "bare loop, the same feed"


def rows(options: Options) -> Iterator[Row]:
    labelled_cases(options)
    for side, steps in STEPS.items():
        run = Run(options, side, steps)
        batches = run.made_before()
        yield Row(
            f"trainer {side}",
            f"step of the trainer, batches made before, 4×{side}³, UNet 16–256",
            "s",
            {
                "ours": lambda run=run, batches=batches: run.trainer(train_dataloaders=batches),
                BARE: lambda run=run, batches=batches: run.bare(batches),
            },
            goals=[Goal(BARE, at_most=1.03)],
            check=lambda run=run, batches=batches: run.check(batches),
            repeats=max(7, options.repeats) if side == 96 else 3 * options.repeats,
            note=f"mean of {steps} steps behind {WARM_UP} that don't count; ours with the default callbacks, metrics "
            "and TensorBoard every 10 steps; both with the same loss, clipping, optimiser and schedule",
        )
    run = Run(options, 96, STEPS[96])
    batches = run.made_before()
    yield Row(
        "trainer fed",
        "step of the trainer with its feed, 4×96³, UNet 16–256",
        "s",
        {
            "ours": lambda: run.trainer(datamodule=run.data),
            FED: lambda: run.bare(run.feed()),
            BARE: lambda: run.bare(batches),
        },
        goals=[Goal(FED, at_most=1.03)],
        note=f"two workers read, the main process augments (light); the {BARE} has its batches made before: what it is "
        "faster by is the price of the feed where step and workers share the cores",
    )


class Run:
    """A training as ``conf/train.yaml`` configures it, and the same steps in a bare loop."""

    def __init__(self, options: Options, side: int, steps: int) -> None:
        self.total = WARM_UP + steps + 1  # a step ends where the next begins
        root, cache = options.scratch / "cases", options.scratch / "cache"
        overrides = [f"sampling.size=[{side},{side},{side}]", "data.batch_size=1", "data.patches_per_case=1000"]
        overrides += ["data.val_share=0", "data.test_share=0", "data.workers=2", "seed=0", "trainer.accelerator=cpu"]
        overrides += ["trainer.precision=bf16-mixed", f"trainer.max_steps={self.total}"]
        overrides += [f"paths.run_dir={options.scratch / 'trainer'}"]
        self.data = case_data(root, cache, *overrides)
        self.data.prepare_data()
        self.data.setup("fit")
        self.config = config("data=brats_mets", f"data.root={root}", f"paths.cache_dir={cache}", *overrides)
        torch.manual_seed(0)
        self.module = build_segmentation(self.config, self.data)
        self.network = copy.deepcopy(self.module.network)  # the bare loop's

    def trainer(self, **source: Any) -> float:
        """Seconds per step of a `fit`."""
        trainer = build_trainer(self.config)
        watch = Stopwatch()
        trainer.callbacks.append(watch)
        trainer.fit(self.module, **source)
        assert trainer.global_step == self.total, f"{trainer.global_step} steps for {self.total}"
        torch.use_deterministic_algorithms(False)  # a setting of the trainer, for the process; not of the bare loop
        return watch.seconds()

    def bare(self, batches: Iterable[PatchBatch]) -> float:
        """Seconds per step of the shortest loop that does the same."""
        optimizer = instantiate(self.config.optimizer)(self.network.parameters())
        schedule = instantiate(self.config.scheduler)(optimizer, lambda step: step / self.total)
        self.network.train()
        watch = Stopwatch()
        for batch in itertools.islice(batches, self.total):
            watch.lap()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.network(batch.image)
                loss = self.module.loss(logits, self.module.target.encode(batch.mask))["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.trainer.gradient_clip_val)
            optimizer.step()
            schedule.step()
        return watch.seconds()

    def feed(self) -> Iterator[PatchBatch]:
        """The batches that the trainer would get, by the same code."""
        self.data.trainer = None
        loader = self.data.train_dataloader()
        self.data.trainer = SimpleNamespace(training=True)
        for batch in loader:
            yield self.data.on_after_batch_transfer(batch, 0)

    def made_before(self) -> "Batches":
        """As many batches as steps, in memory, of which a few are different."""
        return Batches(list(itertools.islice(self.feed(), 4)), self.total)

    def check(self, batches: "Batches") -> str:
        """Both loops must learn the same weights."""
        self.trainer(train_dataloaders=batches)
        self.bare(batches)
        ours, bare = (
            torch.cat([p.detach().flatten() for p in network.parameters()])
            for network in (self.module.network, self.network)
        )
        return close(ours, bare, 1e-6, "weights after as many steps")


class Batches:
    """A few batches, over and over; a list would mean several loaders to Lightning."""

    def __init__(self, few: list[PatchBatch], total: int) -> None:
        self.few, self.total = few, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[PatchBatch]:
        return itertools.islice(itertools.cycle(self.few), self.total)


class Stopwatch(pl.Callback):
    """Mean seconds between the beginnings of steps."""

    def __init__(self) -> None:
        self.laps: list[float] = []

    def lap(self) -> None:
        """A step begins."""
        self.laps.append(time.perf_counter())

    def on_train_batch_start(self, *_: Any) -> None:
        self.lap()

    def seconds(self) -> float:
        """Of all steps but those of the warm-up and the last, whose end nothing marks."""
        counted = self.laps[WARM_UP:]
        return (counted[-1] - counted[0]) / (len(counted) - 1)
