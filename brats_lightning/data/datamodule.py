"""The LightningDataModule: cases through the cache to batches of patches, and to whole volumes."""

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from brats_lightning.core.labels import LabelScheme
from brats_lightning.data.augment.copy_paste import CopyPaste
from brats_lightning.data.augment.pipeline import Augmentation
from brats_lightning.data.cache.store import Cache, CachedCase
from brats_lightning.data.cases import Case, CaseError, Problem, masks_apart, without_mask
from brats_lightning.data.loading import BatchKeys, Key, Loader, LoaderError, LoaderSettings, PatchLoader
from brats_lightning.data.normalisation import Standardiser
from brats_lightning.data.sampling.patches import PatchSampler, read_patch
from brats_lightning.data.splits import Split, SplitError, SplitSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PatchBatch:
    """Patches of one training step. As read, ``image`` holds uint16 codes of the source modalities, which halves what
    travels; after the transfer it is the standardised, augmented network input.
    """

    image: Shaped[Tensor, "b c z y x"]
    mask: UInt8[Tensor, "b z y x"]
    numbers: Float[Tensor, "b m 4"]  # see Standardiser
    spacing: list[tuple[float, float, float]]  # (z, y, x) in mm of each patch
    cases: list[str]  # whose patches these are
    seed: tuple[int, ...]  # of this batch's augmentation

    def to(self, device: torch.device, **kwargs: Any) -> "PatchBatch":
        """On another device; copies need not be waited for from pinned memory."""
        kwargs = {"non_blocking": True, **kwargs}
        return replace(
            self,
            image=self.image.to(device, **kwargs),
            mask=self.mask.to(device, **kwargs),
            numbers=self.numbers.to(device, **kwargs),
        )

    def pin_memory(self) -> "PatchBatch":
        """In page-locked memory, for DataLoader."""
        return _page_locked(self)


@dataclass(frozen=True)
class Volume:
    """One whole case for validation or test, on the working grid.

    ``counted`` is False for a repetition that only fills up a process's share, so that all take equally many steps.
    """

    image: Shaped[Tensor, "c z y x"]
    mask: UInt8[Tensor, "z y x"]
    numbers: Float[Tensor, "m 4"]
    case: CachedCase
    counted: bool

    def to(self, device: torch.device, **kwargs: Any) -> "Volume":
        """On another device."""
        return replace(
            self,
            image=self.image.to(device, **kwargs),
            mask=self.mask.to(device, **kwargs),
            numbers=self.numbers.to(device, **kwargs),
        )

    def pin_memory(self) -> "Volume":
        """In page-locked memory, for DataLoader."""
        return _page_locked(self)


Pinned = TypeVar("Pinned", PatchBatch, Volume)


def _page_locked(batch: Pinned) -> Pinned:
    return replace(batch, **{name: getattr(batch, name).pin_memory() for name in ("image", "mask", "numbers")})


class PatchBatches(Dataset[PatchBatch]):
    """Batch number ``b`` of epoch ``e``, the same whichever worker reads it and whenever.

    An epoch goes ``patches_per_case`` times through the shuffled cases (or draws as many by the sampler's weights);
    batches that cannot be filled at its end are dropped, unless there is not even one.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        sampler: PatchSampler,
        standardiser: Standardiser,
        loader: LoaderSettings,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        copy_paste: CopyPaste | None = None,
    ) -> None:
        self.cases, self.sampler, self.standardiser, self.loader = cases, sampler, standardiser, loader
        self.copy_paste = copy_paste
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        patches = len(self.cases) * self.loader.patches_per_case
        return max(1, patches // (self.loader.batch_size * self.world_size))

    def __getitem__(self, key: Key | int) -> PatchBatch:
        # Lightning's overfit_batches asks by number alone: the same batches in every epoch.
        epoch, batch = key if isinstance(key, tuple) else (0, key)
        size = self.loader.batch_size
        order = self._cases_of(epoch)
        first = (batch * self.world_size + self.rank) * size
        chosen = [self.cases[order[(first + i) % len(order)]] for i in range(size)]
        # All processes draw the same size, each its own places.
        shape = self.sampler.draw_size(np.random.default_rng((self.seed, epoch, batch)))
        seed = (self.seed, epoch, batch, self.rank)
        rng = np.random.default_rng((*seed, 0))

        images = np.empty((size, len(self.standardiser.sources), *shape), dtype=np.uint16)
        masks = np.empty((size, *shape), dtype=np.uint8)
        for case, image, mask in zip(chosen, images, masks, strict=True):
            start = self.sampler.draw_start(case, shape, rng)
            read_patch(case.image(), start, shape, out=image, channels=case.channels(self.standardiser.sources))
            read_patch(case.mask(), start, shape, out=mask)
        if self.copy_paste is not None:  # draws of its own: the patches are the same with and without it
            rng = np.random.default_rng((*seed, 2))
            for case, image, mask in zip(chosen, images, masks, strict=True):
                self.copy_paste(image, mask, case, self.standardiser.sources, rng)
        numbers = np.stack([self.standardiser.numbers(case.intensities) for case in chosen])
        return PatchBatch(
            torch.from_numpy(images),
            torch.from_numpy(masks),
            torch.from_numpy(numbers),
            [case.spacing for case in chosen],
            [case.id for case in chosen],
            seed,
        )

    def _cases_of(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            weights = self.sampler.case_weights(self.cases)
            n = len(self.cases)
            if weights is None:
                order = np.concatenate([rng.permutation(n) for _ in range(self.loader.patches_per_case)])
            else:
                order = rng.choice(n, size=n * self.loader.patches_per_case, p=weights)
            self._order = epoch, order
        return self._order[1]


def mixed_seed(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Volumes(Dataset[Volume]):
    """Whole cases, every ``world_size``-th one from ``rank`` on; each is counted once over all processes."""

    def __init__(
        self, cases: Sequence[CachedCase], standardiser: Standardiser, rank: int = 0, world_size: int = 1
    ) -> None:
        self.cases, self.standardiser = cases, standardiser
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self.cases) // self.world_size)

    def __getitem__(self, index: int) -> Volume:
        position = index * self.world_size + self.rank
        case = self.cases[position % len(self.cases)]
        channels = case.channels(self.standardiser.sources)
        return Volume(
            torch.from_numpy(read_patch(case.image(), (0, 0, 0), case.shape, channels=channels)),
            torch.from_numpy(read_patch(case.mask(), (0, 0, 0), case.shape)),
            torch.from_numpy(self.standardiser.numbers(case.intensities)),
            case,
            counted=position < len(self.cases),
        )


class CaseData(pl.LightningDataModule):
    """Cases of one source, preprocessed in the cache, split by patient.

    Args:
        source: lists the cases.
        cache: where they are kept preprocessed.
        standardiser: codes to network input.
        scheme: the classes.
        split: who trains, validates and tests; a `Split` is that of the run that is gone on with.
        on_bad_case: ``error`` lists all faults and stops, ``skip`` leaves faulty cases out.
        loader: how batches are made.
        sampler: which patch; only for training.
        augmentation: of the training batches, on the device.
        copy_paste: of lesions of other training cases into the patches, as they are read.
        cache_workers: processes that fill the cache.
        seed: of the batches and their augmentation.
    """

    def __init__(
        self,
        source: Callable[[], list[Case]],
        cache: Cache,
        standardiser: Standardiser,
        scheme: LabelScheme,
        split: SplitSettings | Split,
        on_bad_case: str = "error",
        loader: LoaderSettings | None = None,
        sampler: PatchSampler | None = None,
        augmentation: Augmentation | None = None,
        copy_paste: CopyPaste | None = None,
        cache_workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if on_bad_case not in ("error", "skip"):
            raise ValueError(f"data.on_bad_case must be error or skip, got {on_bad_case!r}")
        self.source, self.cache, self.standardiser, self.scheme = source, cache, standardiser, scheme
        self.split_settings, self.on_bad_case = split, on_bad_case
        self.loader = loader or LoaderSettings()
        self.sampler, self.augmentation, self.copy_paste, self.seed = sampler, augmentation, copy_paste, seed
        self.cache_workers = cache_workers
        self.test_on = "test"
        self.compare_checksums = True  # once for all processes is enough
        self.cases: dict[str, CachedCase] = {}
        self.problems: list[Problem] = []
        self._found: list[Case] = []
        self.split = Split((), (), ())
        self.newcomers: list[str] = []
        self._prepared = False

    # ---- cases

    def prepare_data(self) -> None:
        """Fill the cache; one process per machine.

        Raises:
            CaseError: there are faulty cases, and ``on_bad_case`` is ``error``.
        """
        if self._prepared:
            return
        labelled = [case for case in self.source() if case.mask is not None]
        filled = self.cache.fill(
            labelled, self.standardiser.sources, workers=self.cache_workers, check=self.compare_checksums
        )
        self.problems = filled.problems
        remarks = [f"{case.id}: {remark}" for case in filled.cases for remark in case.remarks]
        if remarks:
            log.warning("%s%s", "; ".join(remarks[:5]), " …; preprocess lists all" * (len(remarks) > 5))
        if self.problems and self.on_bad_case == "error":
            raise CaseError(self.problems)
        self._prepared = True

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Open the cache and share the cases out; every process."""
        if self.cases:
            return
        self._found = self.source()
        labelled = [case for case in self._found if case.mask is not None]
        wanted = self.standardiser.sources
        cached = [self.cache.read(case, wanted, need_mask=True) for case in labelled]
        self.cases = {case.id: case for case in cached if case is not None}
        if not self.cases:
            bare = without_mask(self._found)
            raise SplitError(
                f"none of the {len(self._found)} cases has a usable reference mask: there is nothing to train on"
                + (f"; {bare}; name them <case>-seg.nii.gz, or give their folder: data.masks=DIR" if bare else "")
            )
        usable = list(self.cases.values())
        if isinstance(self.split_settings, Split):
            self.split, self.newcomers = self.split_settings.of(usable)
        else:
            self.split = self.split_settings.split(usable)
        for part in (self.sampler, self.copy_paste):
            if part is not None:
                part.prepare(self._train_cases)

    @property
    def _train_cases(self) -> list[CachedCase]:
        return [self.cases[name] for name in self.split.train]

    def summary(self) -> str:
        """How many cases there are and what becomes of them, in one line."""
        split = self.split
        parts = f"{len(split.train)} train, {len(split.val)} val, {len(split.test)} test"
        left_out = [f"{len({p.case for p in self.problems})} faulty (skipped)"] if self.problems else []
        if self.newcomers:
            names = ", ".join(self.newcomers[:10]) + ", …" * (len(self.newcomers) > 10)
            left_out += [f"{len(self.newcomers)} that came since this run began and are not in its split ({names})"]
        left_out += [bare] if (bare := without_mask(self._found)) else []
        words = (f"cases: {parts}", masks_apart(self._found), f"left out: {', '.join(left_out)}" if left_out else "")
        return "; ".join(filter(None, words))

    def scored_cases(self, stage: str) -> list[CachedCase]:
        """The cases that ``val`` or ``test`` scores, in order."""
        part = self.test_on if stage == "test" else stage
        return [self.cases[name] for name in getattr(self.split, part)]

    def balanced_class_weights(self) -> list[float]:
        """Weight of each class, the background first: 1/√(share of the training voxels), summing to 1.

        The root tempers what would otherwise be a ratio of thousands between a rare class and the background.
        """
        voxels = np.sum([case.class_voxels for case in self._train_cases], axis=0, dtype=np.float64)
        weights = 1 / np.sqrt(np.maximum(voxels, 1))
        return [float(weight) for weight in weights / weights.sum()]

    # ---- batches

    def train_dataloader(self) -> DataLoader:
        """Batches of patches, the same for the same seed however many workers read them."""
        if self.sampler is None:
            raise ValueError("this data module was built without a sampler and cannot train")
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        batches = PatchBatches(
            self._train_cases,
            self.sampler,
            self.standardiser,
            self.loader,
            self.seed,
            rank=rank,
            world_size=world_size,
            copy_paste=self.copy_paste,
        )

        def done() -> int:
            # Of those begun the last may not have come to its end.
            return trainer.fit_loop.epoch_loop.batch_progress.total.processed if trainer else 0  # type: ignore[attr-defined]

        keys = BatchKeys(len(batches), done)
        return PatchLoader(batches, self.loader, self._pinned, sampler=keys, persistent_workers=self.loader.workers > 0)

    def val_dataloader(self) -> DataLoader | list:
        """Whole validation cases, one at a time."""
        return self._whole_cases("val")

    def test_dataloader(self) -> DataLoader | list:
        """Whole cases of the split ``test_on``, one at a time."""
        return self._whole_cases("test")

    def _whole_cases(self, stage: str) -> DataLoader | list:
        cases = self.scored_cases(stage)
        if not cases:
            return []
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Loader(Volumes(cases, self.standardiser, rank, world_size), self.loader, self._pinned)

    @property
    def _pinned(self) -> bool:
        """Whether batches go to a GPU, which copies faster from page-locked memory."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def check_shared_memory(self, processes: int, shm: Path = Path("/dev/shm")) -> None:
        """Whether what the workers have ready fits into shared memory: without room they would wait for ever.

        Args:
            processes: that train on this machine, each with its own workers.
            shm: the file system that is shared memory.

        Raises:
            LoaderError: it does not fit.
        """
        if not self.loader.workers or self.sampler is None or not shm.is_dir():
            return
        channels = len(self.standardiser.sources)
        voxels = math.prod(self.sampler.largest) * self.loader.batch_size
        scored = {*self.split.val, *getattr(self.split, self.test_on)}
        largest = max((math.prod(self.cases[name].shape) for name in scored), default=0)
        # Two bytes a voxel and channel and one of the mask; torch has each worker keep two batches ready.
        needed = 2 * self.loader.workers * processes * (voxels + largest) * (2 * channels + 1)
        if needed > (free := shutil.disk_usage(shm).free):
            raise LoaderError(
                f"data.workers={self.loader.workers} may need {needed / 2**20:.0f} MiB of shared memory, {shm} has "
                f"{free / 2**20:.0f} MiB free: give it more (docker run --shm-size=2g), or set data.workers=0"
            )

    def on_after_batch_transfer(self, batch: PatchBatch | Volume, dataloader_idx: int) -> PatchBatch | Volume:  # noqa: ARG002
        """Codes to network input and, in training, augmentation; on the device."""
        if isinstance(batch, Volume):
            image = self.standardiser(batch.image[None], batch.numbers[None])[0]
            return replace(batch, image=image)
        image, mask = self.standardiser(batch.image, batch.numbers), batch.mask
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            draws = torch.Generator().manual_seed(mixed_seed(*batch.seed, 1))
            image, mask = self.augmentation(image, mask, draws, batch.spacing)
        return replace(batch, image=image, mask=mask)
