"""From the cache to network-ready patches: the crop alone, then with nnU-Net's list of augmentations."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tests.benchmarks.measure import Goal, Options, Row, rate
from tests.benchmarks.peers import Monai, NnUnet
from tests.benchmarks.workload import case_data, labelled_cases

PATCH, BATCH = 128, 2
CROPS, AUGMENTED = 24, 64  # patches in a measurement; augmentation is random, so that a few would say little


def rows(options: Options) -> Iterator[Row]:
    cases = labelled_cases(options)
    monai, nnunet = Monai(options, cases), NnUnet(options, cases)
    monai.fill()
    nnunet.fill()
    yield _reading(options)
    for augment in (False, True):
        yield _row(options, augment, nnunet, monai)


def _reading(options: Options) -> Row:
    """What a worker does; the rest is done on the device."""
    ours = Ours(options, augment=False)
    codes, copies = torch.ones(4, PATCH, PATCH, PATCH, dtype=torch.uint16), 8
    used = torch.empty_like(codes)
    return Row(
        "patches read",
        "patches 128³×4, crop as 16-bit codes: a worker's part",
        "patches/s",
        {
            "ours": rate(lambda: [next(ours.batches) for _ in range(CROPS // BATCH)], CROPS),
            "limit: copy to a used buffer": rate(lambda: [used.copy_(codes) for _ in range(copies)], copies),
            "limit: copy to a new tensor": rate(lambda: [codes.clone() for _ in range(copies)], copies),
        },
        higher_is_better=True,
        threads=1,
    )


def _row(options: Options, augment: bool, nnunet: NnUnet, monai: Monai) -> Row:
    feeds = {
        "ours": Ours(options, augment),
        "nnU-Net v2": nnunet.loader(PATCH, BATCH, augment),
        "MONAI": Endless(monai.loader(PATCH, BATCH, augment)),
    }
    patches = AUGMENTED if augment else CROPS
    contenders = {name: rate(lambda feed=feed: _take(feed, patches), patches) for name, feed in feeds.items()}
    if not augment:
        source, target = torch.rand(4, PATCH, PATCH, PATCH), torch.empty(4, PATCH, PATCH, PATCH)
        contenders["limit: copy to a used buffer"] = rate(lambda: [target.copy_(source) for _ in range(8)], 8)
        contenders["limit: copy to a new tensor"] = rate(lambda: [source.clone() for _ in range(8)], 8)
    return Row(
        "patches augmented" if augment else "patches",
        "patches 128³×4, " + ("nnU-Net's augmentation" if augment else "crop only"),
        "patches/s",
        contenders,
        goals=[Goal("nnU-Net v2", at_least=3), Goal("MONAI", at_least=3 if augment else 7)],
        check=lambda: _check(feeds),
        higher_is_better=True,
        threads=1,
        note="one process, one thread, cache in memory; normalised float32 batches of 2, ours channels-last",
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


def _check(feeds: Mapping[str, Any]) -> str:
    """Patches are random; what doesn't depend on the draw must agree."""
    for name, feed in feeds.items():
        for _ in range(3):
            image, mask = _content(next(feed))
            assert image.shape == (BATCH, 4, PATCH, PATCH, PATCH), (name, image.shape)
            assert mask.shape == (BATCH, PATCH, PATCH, PATCH), (name, mask.shape)
            assert image.dtype == torch.float32, (name, image.dtype)
            assert bool(image.isfinite().all()), name
            assert set(mask.unique().tolist()) <= {-1, 0, 1, 2, 3}, name  # -1: nnU-Net's outside of the brain
    return "shape, type and labels equal, patches random; contents: see preprocessing"
