"""Reading batches: in how many processes, in which order, and what happens when a reader dies or hangs."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_all_start_methods
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from brats_lightning.runtime import signals

Key = tuple[int, int]  # epoch and batch within it


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made.

    Args:
        batch_size: patches per batch and process.
        patches_per_case: patches drawn of each training case per epoch.
        workers: processes that read; 0 reads in the training process.
        timeout: seconds after which a batch that does not come is an error; 0 waits for ever.
    """

    batch_size: int = 2
    patches_per_case: int = 8
    workers: int = 2
    timeout: int = 600

    def __post_init__(self) -> None:
        if min(self.batch_size, self.patches_per_case) < 1 or min(self.workers, self.timeout) < 0:
            raise ValueError(
                "data.batch_size and data.patches_per_case must be at least 1, data.workers and data.loader_timeout at "
                f"least 0, got {self.batch_size}, {self.patches_per_case}, {self.workers}, {self.timeout}"
            )


class BatchKeys(Sampler[Key]):
    """Keys of the batches that are left of the current epoch, counted from the start of training.

    Args:
        steps: batches per epoch.
        done: batches trained so far, of all epochs; so a resumed run continues with the next batch.
    """

    def __init__(self, steps: int, done: Callable[[], int]) -> None:
        self.steps, self.done = steps, done

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Key]:
        epoch, first = divmod(self.done(), self.steps)
        return ((epoch, batch) for batch in range(first, self.steps))


class LoaderError(ValueError):
    """Batches cannot be read."""


class Loader(DataLoader):
    """A loader that a signal can interrupt while it waits, and whose workers leave signals to this process."""

    def __init__(self, dataset: Dataset, settings: LoaderSettings, pin_memory: bool, **options: Any) -> None:
        several: dict[str, Any] = {}
        if settings.workers:
            start = get_all_start_methods()[
                0
            ]  # named, since in a job of the joblib launcher the default cannot start any
            several = {"timeout": settings.timeout, "worker_init_fn": _begin_worker, "multiprocessing_context": start}
        self.waited = 0.0  # seconds that training spent waiting for batches
        super().__init__(
            dataset, batch_size=None, num_workers=settings.workers, pin_memory=pin_memory, **several, **options
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            begin = time.perf_counter()
            try:
                with signals.waiting():
                    batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                failure = loader_failure(error)
                # Of a worker that dies while it hands over a batch only the broken connection is seen.
                if failure is None and isinstance(error, OSError | EOFError) and self.num_workers:
                    failure = _died(repr(error))
                if failure is not None:
                    raise failure from error
                raise
            self.waited += time.perf_counter() - begin
            yield batch


def _begin_worker(number: int) -> None:  # noqa: ARG001
    signals.leave_signals_to_parent()


def loader_failure(error: BaseException) -> LoaderError | None:
    """What a torch DataLoader's error means to a user; None for any other error."""
    text = str(error)
    if "Caught " in text and " in DataLoader worker process" in text:  # the worker's traceback, its message at the end
        if isinstance(error, MemoryError):
            return _died("out of memory")
        lines = text.splitlines()
        ours = (number for number, line in enumerate(lines) if re.match(r"brats_lightning\.[\w.]+: ", line))
        start = next(ours, None)
        return None if start is None else LoaderError("\n".join(lines[start:]).split(": ", 1)[1])
    if "DataLoader timed out" in text:
        return LoaderError(
            f"no batch came for as long as data.loader_timeout allows ({text}): the data may be on a disk that hangs, "
            "or the workers lack shared memory; see `df -h /dev/shm`, or set data.workers=0"
        )
    if "DataLoader worker" in text:
        return _died(text.splitlines()[0].rstrip(" ."))
    return None


def _died(what: str) -> LoaderError:
    return LoaderError(
        f"a process that reads batches died ({what}): most often it ran out of memory; set data.workers lower, 0 reads "
        "in the training process"
    )


class PatchLoader(Loader):
    """A loader that resumes in mid-epoch: all its state is the number of batches trained, which the trainer keeps."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save; its presence tells Lightning that the loader is resumable."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
