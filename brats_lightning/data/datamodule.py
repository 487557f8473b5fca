"""The LightningDataModule: cases through the cache to batches of patches, and to whole volumes."""

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from brats_lightning.core.labels import IGNORE, LabelScheme
from brats_lightning.data.augment.copy_paste import CopyPaste
from brats_lightning.data.augment.pipeline import Augmentation
from brats_lightning.data.batches import AUGMENTATION, PatchBatch, PatchBatches, WholeCase, WholeCases
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.cases import Case, CaseError, Problem, masks_apart, without_mask
from brats_lightning.data.loading import BatchKeys, Loader, LoaderError, LoaderSettings, PatchLoader
from brats_lightning.data.normalisation import Normaliser
from brats_lightning.data.sampling.patches import PatchSampler
from brats_lightning.data.splits import Split, SplitError, SplitSettings

log = logging.getLogger(__name__)


class CaseData(pl.LightningDataModule):
    """Cases of one source, preprocessed in the cache, split by patient.

    Args:
        source: lists the cases.
        cache: where they are kept preprocessed.
        normaliser: quantised intensities to network input.
        scheme: the classes.
        split: who trains, validates and tests; a `Split` is the saved one of a resumed run.
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
        normaliser: Normaliser,
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
        self.source, self.cache, self.normaliser, self.scheme = source, cache, normaliser, scheme
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
            labelled, self.normaliser.sources, workers=self.cache_workers, check=self.compare_checksums
        )
        self.problems = filled.problems
        remarks = [f"{case.id}: {remark}" for case in filled.cases for remark in case.remarks]
        if remarks:
            log.warning("%s%s", "; ".join(remarks[:5]), " …; preprocess lists all" * (len(remarks) > 5))
        if self.problems and self.on_bad_case == "error":
            raise CaseError(self.problems)
        self._prepared = True

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Open the cache and split the cases; every process."""
        if self.cases:
            return
        self._found = self.source()
        labelled = [case for case in self._found if case.mask is not None]
        cached = (self.cache.read(case, self.normaliser.sources, need_mask=True) for case in labelled)
        self.cases = {case.id: case for case in cached if case is not None}
        if not self.cases:
            bare = without_mask(self._found)
            raise SplitError(
                f"none of the {len(self._found)} cases has a usable reference mask: there is nothing to train on"
                + (f"; {bare}; name them <case>-seg.nii.gz, or give their folder: data.masks=DIR" if bare else "")
            )
        if isinstance(self.split_settings, Split):
            self.split, self.newcomers = self.split_settings.of(self.cases)
        else:
            self.split = self._dealt(self.split_settings)
        for part in (self.sampler, self.copy_paste):
            if part is not None:
                part.prepare(self._train_cases)

    def _dealt(self, settings: SplitSettings) -> Split:
        stated = {case.id: case.part for case in self._found if case.part and case.id in self.cases}
        return settings.split({case.id: case.patient for case in self.cases.values()}, stated)

    def folds(self, count: int) -> list[Split]:
        """The splits of all folds; after `setup` with the settings of one of them.

        Raises:
            SplitError: too few patients, or a split file with fewer folds.
        """
        settings = self.split_settings
        assert isinstance(settings, SplitSettings)  # not a resumed run's
        return [self._dealt(replace(settings, fold=fold)) for fold in range(count)]

    @property
    def _train_cases(self) -> list[CachedCase]:
        return [self.cases[name] for name in self.split.train]

    @property
    def partly_labelled(self) -> bool:
        """Whether masks may have voxels of unknown class."""
        return IGNORE in (self.cache.label_map or {}).values()

    def summary(self) -> str:
        """How many cases there are and how they are used, in one line."""
        split = self.split
        parts = f"{len(split.train)} train, {len(split.val)} val, {len(split.test)} test"
        left_out = [f"{len({p.case for p in self.problems})} faulty (skipped)"] if self.problems else []
        if self.newcomers:
            names = ", ".join(self.newcomers[:10]) + ", …" * (len(self.newcomers) > 10)
            left_out += [f"{len(self.newcomers)} that came since this run began and are not in its split ({names})"]
        left_out += [bare] if (bare := without_mask(self._found)) else []
        lacking = [
            f"{count} without {name}"
            for name in self.normaliser.optional
            if (count := sum(name not in case.modalities for case in self.cases.values()))
        ]
        if partly := sum(case.partly_labelled for case in self.cases.values()):
            lacking.append(f"{partly} partly labelled")
        left = f"left out: {', '.join(left_out)}" if left_out else ""
        words = (f"cases: {parts}", ", ".join(lacking), masks_apart(self._found), left)
        return "; ".join(filter(None, words))

    def identities(self) -> dict[str, dict[str, Any]]:
        """Case → what it is recognised by, of all that can be used.

        That is its ``part`` of the split, None of a newcomer; the ``bytes`` of its raw files; and CRC-32 of the cached
        ``image`` and ``mask``, in hexadecimal digits.
        """
        part_of = {name: part for part, names in asdict(self.split).items() for name in names}
        files = {case.id: set(case.files.values()) for case in self._found}  # a file may hold several sequences
        return {
            name: {"part": part_of.get(name), "bytes": sum(path.stat().st_size for path in files[name])}
            | {array: f"{case.arrays[array].crc32:08x}" for array in ("image", "mask")}
            for name, case in sorted(self.cases.items())
        }

    def scored_cases(self, stage: str) -> list[CachedCase]:
        """The cases that ``val`` or ``test`` scores, in order."""
        part = self.test_on if stage == "test" else stage
        return [self.cases[name] for name in getattr(self.split, part)]

    def balanced_class_weights(self) -> list[float]:
        """Weight of each class, the background first: 1/√(fraction of the known training voxels), summing to 1.

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
        batches = PatchBatches(
            self._train_cases,
            self.sampler,
            self.normaliser,
            self.loader,
            self.seed,
            *self._process,
            copy_paste=self.copy_paste,
            sequence_dropout=self.augmentation.sequence_dropout if self.augmentation else 0.0,
        )

        trainer = self.trainer

        def done() -> int:
            # Not those begun, of which the last may be unfinished.
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
        if not (cases := self.scored_cases(stage)):
            return []
        return Loader(WholeCases(cases, self.normaliser, *self._process), self.loader, self._pinned)

    @property
    def _process(self) -> tuple[int, int]:
        """The number of this process, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _pinned(self) -> bool:
        """Whether batches go to a GPU, which copies faster from page-locked memory."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def check_shared_memory(self, processes: int, shm: Path = Path("/dev/shm")) -> None:
        """Check that what the workers have ready fits into shared memory: without room they would wait for ever.

        Args:
            processes: that train on this machine, each with its own workers.
            shm: the file system that is shared memory.

        Raises:
            LoaderError: it does not fit.
        """
        if not self.loader.workers or self.sampler is None or not shm.is_dir():
            return
        channels = len(self.normaliser.sources)
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

    def on_after_batch_transfer(self, batch: PatchBatch | WholeCase, dataloader_idx: int) -> PatchBatch | WholeCase:  # noqa: ARG002
        """Quantised intensities to network input and, in training, augmentation; on the device."""
        if isinstance(batch, WholeCase):
            return replace(batch, image=self.normaliser(batch.image[None], batch.normalisation[None])[0])
        image, mask = self.normaliser(batch.image, batch.normalisation), batch.mask
        if self.augmentation is not None and self.trainer is not None and self.trainer.training:
            for patch, spacing in enumerate(batch.spacing):
                one, draws = slice(patch, patch + 1), torch.Generator().manual_seed(batch.seed_for(AUGMENTATION, patch))
                self.augmentation(image[one], mask[one], draws, [spacing])  # in place
            for channel in self.normaliser.presences:  # which intensity changes have treated like a scan
                image[:, channel] = image[:, channel] > 0
        return replace(batch, image=image, mask=mask)
