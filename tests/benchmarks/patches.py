"""From the cache to patches: as a loader reads them, normalised, and with nnU-Net's list of augmentations."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from tests.benchmarks.measure import Goal, Options, Row, rate
from tests.benchmarks.peers import Monai, NnUnet
from tests.benchmarks.workload import case_data, labelled_cases

PATCH, BATCH = 128, 2
FED, READY, AUGMENTED = "patches read", "patches network-ready", "patches augmented"
LEAST = {FED: {}, READY: {"nnU-Net v2": 3, "MONAI": 7}, AUGMENTED: {"nnU-Net v2": 3, "MONAI": 3}}


def rows(options: Options) -> Iterator[Row]:
    cases = labelled_cases(options)
    monai, nnunet = Monai(options, cases), NnUnet(options, cases)
    monai.fill()
    nnunet.fill()
    for title in LEAST:
        yield _row(title, options, nnunet, monai)


def _row(title: str, options: Options, nnunet: NnUnet, monai: Monai) -> Row:
    augment = title == AUGMENTED
    ours = Ours(options, augment)
    feeds = {
        "ours": ours.batches if title == FED else ours,
        "nnU-Net v2": nnunet.loader(PATCH, BATCH, augment),
        "MONAI": Endless(monai.loader(PATCH, BATCH, augment)),
    }
    patches = 64 if augment else 24  # augmentation is random: few patches would say little
    contenders = {name: rate(lambda feed=feed: _take(feed, patches), patches) for name, feed in feeds.items()}
    if not augment:
        kind = torch.uint16 if title == FED else torch.float32
        source = torch.ones(4, PATCH, PATCH, PATCH).to(kind)
        used = torch.empty_like(source)
        contenders["limit: copy to a used buffer"] = rate(lambda: [used.copy_(source) for _ in range(8)], 8)
        contenders["limit: copy to a new tensor"] = rate(lambda: [source.clone() for _ in range(8)], 8)
    return Row(
        title,
        f"{title}, 128³×4",
        "patches/s",
        contenders,
        goals=[Goal(name, at_least=least) for name, least in LEAST[title].items()],
        check=lambda: _check(feeds, torch.uint16 if title == FED else torch.float32),
        higher_is_better=True,
        threads=1,
        note="one process, one thread, cache in memory, batches of 2; "
        + ("ours 16-bit, to be normalised on the device" if title == FED else "normalised float32"),
    )


class Ours:
    """Batches as the training loop gets them: read by the loader, then standardised and augmented."""

    def __init__(self, options: Options, augment: bool) -> None:
        size = f"sampling.size=[{PATCH},{PATCH},{PATCH}]"
        overrides = ["sampling=lesion", size, "sampling.ratio=0.33", f"data.batch_size={BATCH}", "data.val_share=0"]
        overrides += [
            "data.test_share=0",
            f"augmentation={'nnunet' if augment else 'none'}",
            "data.patches_per_case=1000",
        ]
        self.data = case_data(options.scratch / "cases", options.scratch / "cache", *overrides)
        self.data.prepare_data()
        self.data.setup("fit")
        self.data.trainer = None
        self.batches = Endless(self.data.train_dataloader())
        self.data.trainer = SimpleNamespace(training=True)  # what the transfer of a batch asks of a trainer

    def __next__(self) -> Any:
        return self.data.on_after_batch_transfer(next(self.batches), 0)


class Endless:
    """A loader, over and over."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.iterator = loader, iter(loader)

    def __next__(self) -> Any:
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.loader)
            return next(self.iterator)


def _take(feed: Any, patches: int) -> None:
    for _ in range(patches // BATCH):
        next(feed)


def _content(batch: Any) -> tuple[Any, Any]:
    """(image, mask) of anybody's batch."""
    if isinstance(batch, dict):
        image, mask = (batch["data"], batch["target"]) if "data" in batch else (batch["image"], batch["mask"])
        return image, mask[:, 0]
    return batch.image, batch.mask


def _check(feeds: Mapping[str, Any], ours: torch.dtype) -> str:
    """Patches are random; what doesn't depend on the draw must agree."""
    for name, feed in feeds.items():
        for _ in range(3):
            image, mask = _content(next(feed))
            assert image.shape == (BATCH, 4, PATCH, PATCH, PATCH), (name, image.shape)
            assert mask.shape == (BATCH, PATCH, PATCH, PATCH), (name, mask.shape)
            assert image.dtype == (ours if name == "ours" else torch.float32), (name, image.dtype)
            assert bool(image.float().isfinite().all()), name
            assert set(mask.unique().tolist()) <= {-1, 0, 1, 2, 3}, name  # -1: nnU-Net's outside of the brain
    return "shape, type and labels equal, patches random; contents: see preprocessing"
