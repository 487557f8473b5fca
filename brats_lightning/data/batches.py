"""Batches of patches, and whole cases: what is read from the cache, in which order, by which random numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped, UInt8, UInt16
from torch import Tensor
from torch.utils.data import Dataset

from brats_lightning.core.geometry import Ints, read_box
from brats_lightning.core.labels import IGNORE
from brats_lightning.data.augment.copy_paste import CopyPaste
from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.loading import Key, LoaderSettings
from brats_lightning.data.normalisation import Normaliser
from brats_lightning.data.sampling.patches import PatchSampler

Batch = TypeVar("Batch", bound="_Batch")

REDRAWS = 10  # at most, of a patch in which nothing is labelled
Seed = tuple[int, int, int]  # the run's seed, the epoch, and the place of a patch among those of the epoch
# What random numbers are for. Those of a patch depend on its place, so that a batch is the same however many processes
# share it.
ORDER, SIZE, PLACES, AUGMENTATION, COPY_PASTE, DROPOUT, SEQUENCES = range(7)


@dataclass(frozen=True)
class _Batch:
    """As read, ``image`` holds quantised intensities of the source modalities, which halves what is copied to the
    device; after the transfer it is the network's input.
    """

    image: Shaped[Tensor, "*b c z y x"]
    mask: UInt8[Tensor, "*b z y x"]
    normalisation: Float[Tensor, "*b m 4"]  # see `normalisation_parameters`

    def to(self: Batch, device: torch.device, **kwargs: Any) -> Batch:
        """On another device; from pinned memory the copy is not waited for."""
        return self._each(lambda tensor: tensor.to(device, **{"non_blocking": True, **kwargs}))

    def pin_memory(self: Batch) -> Batch:
        """In page-locked memory, for DataLoader."""
        return self._each(Tensor.pin_memory)

    def _each(self: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(self, **{name: change(getattr(self, name)) for name in ("image", "mask", "normalisation")})


@dataclass(frozen=True)
class PatchBatch(_Batch):
    """Patches of one training step."""

    spacing: list[tuple[float, float, float]]  # (z, y, x) in mm of each patch
    cases: list[str]  # whose patches these are
    seeds: list[Seed]  # of each patch

    def seed_for(self, purpose: int, patch: int = 0) -> int:
        """A well-mixed 63-bit seed of a patch, another one for each purpose; that of the first is also the batch's."""
        return int(np.random.SeedSequence((*self.seeds[patch], purpose)).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class WholeCase(_Batch):
    """One whole case for validation or test, on the working grid."""

    case: CachedCase
    counted: bool  # False for a repeated case, which gives all processes equally many steps


class PatchBatches(Dataset[PatchBatch]):
    """The part of a process in batch number ``b`` of epoch ``e``, the same whichever worker reads it and whenever.

    All processes together read the patches that a single one would read with ``world_size`` times the batch size.

    An epoch goes ``patches_per_case`` times through the shuffled cases (or draws as many by the sampler's weights);
    batches that cannot be filled at its end are dropped, unless there is not even one. A patch loses each optional
    modality with the probability ``sequence_dropout``, as if its case lacked it. Of a partly labelled case a patch
    without any voxel of known class is drawn again.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        sampler: PatchSampler,
        normaliser: Normaliser,
        loader: LoaderSettings,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        copy_paste: CopyPaste | None = None,
        sequence_dropout: float = 0.0,
    ) -> None:
        self.cases, self.sampler, self.normaliser, self.loader = cases, sampler, normaliser, loader
        self.copy_paste, self.sequence_dropout = copy_paste, sequence_dropout
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        patches = len(self.cases) * self.loader.patches_per_case
        return max(1, patches // (self.loader.batch_size * self.world_size))

    def __getitem__(self, key: Key | int) -> PatchBatch:
        # Lightning's overfit_batches asks by number alone: the same batches in every epoch.
        epoch, batch = key if isinstance(key, tuple) else (0, key)
        size, sources = self.loader.batch_size, self.normaliser.sources
        order = self._cases_of(epoch)
        first = (batch * self.world_size + self.rank) * size
        seeds = [(self.seed, epoch, place) for place in range(first, first + size)]
        chosen = [self.cases[order[place % len(order)]] for _, _, place in seeds]
        # All processes draw the same size.
        shape = self.sampler.draw_size(np.random.default_rng((self.seed, epoch, batch, SIZE)))

        images = np.empty((size, len(sources), *shape), dtype=np.uint16)
        masks = np.empty((size, *shape), dtype=np.uint8)
        parameters = np.stack([self.normaliser.parameters(case.intensities) for case in chosen])
        for seed, case, *patch in zip(seeds, chosen, images, masks, parameters, strict=True):
            self._read(seed, case, *patch)
        return PatchBatch(
            torch.from_numpy(images),
            torch.from_numpy(masks),
            torch.from_numpy(parameters),
            [case.spacing for case in chosen],
            [case.id for case in chosen],
            seeds,
        )

    def _read(
        self,
        seed: Seed,
        case: CachedCase,
        image: UInt16[np.ndarray, "m z y x"],
        mask: UInt8[np.ndarray, "z y x"],
        parameters: Float32[np.ndarray, "m 4"],
    ) -> None:
        """Read one patch into arrays, of which ``parameters`` are its case's."""
        sources = self.normaliser.sources
        start = self._place(case, mask, np.random.default_rng((*seed, PLACES)))
        read_box(case.image(), start, mask.shape, out=image, channels=case.channels(sources))
        if self.copy_paste is not None:  # with its own random numbers: the patch is the same without it
            there = [channel for channel, name in enumerate(sources) if name in case.modalities]
            part = image if len(there) == len(sources) else image[there]
            rng = np.random.default_rng((*seed, COPY_PASTE))
            self.copy_paste(part, mask, case, [sources[channel] for channel in there], rng)
            if part is not image:
                image[there] = part
        if self.sequence_dropout:
            optional = np.array([sources.index(name) for name in self.normaliser.optional], int)
            drawn = np.random.default_rng((*seed, SEQUENCES)).random(len(optional))
            parameters[optional[drawn < self.sequence_dropout]] = 0

    def _place(self, case: CachedCase, mask: UInt8[np.ndarray, "z y x"], rng: np.random.Generator) -> Ints:
        """First voxel of a patch with something to learn, whose mask is read into ``mask``."""
        redraws = REDRAWS if case.partly_labelled else 0
        while True:
            start = self.sampler.draw_start(case, mask.shape, rng)
            read_box(case.mask(), start, mask.shape, out=mask)
            if not redraws or mask.min() < IGNORE:
                return start
            redraws -= 1

    def _cases_of(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch, 0, ORDER))
            weights = self.sampler.case_weights(self.cases)
            n = len(self.cases)
            if weights is None:
                order = np.concatenate([rng.permutation(n) for _ in range(self.loader.patches_per_case)])
            else:
                order = rng.choice(n, size=n * self.loader.patches_per_case, p=weights)
            self._order = epoch, order
        return self._order[1]


class WholeCases(Dataset[WholeCase]):
    """Whole cases, every ``world_size``-th one from ``rank`` on; each is counted once over all processes."""

    def __init__(self, cases: Sequence[CachedCase], normaliser: Normaliser, rank: int = 0, world_size: int = 1) -> None:
        self.cases, self.normaliser = cases, normaliser
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return -(-len(self.cases) // self.world_size)

    def __getitem__(self, index: int) -> WholeCase:
        position = index * self.world_size + self.rank
        case = self.cases[position % len(self.cases)]
        return WholeCase(
            torch.from_numpy(np.asarray(case.image()[case.channels(self.normaliser.sources)])),
            torch.from_numpy(np.array(case.mask())),
            torch.from_numpy(self.normaliser.parameters(case.intensities)),
            case,
            counted=position < len(self.cases),
        )
