"""Checkpoints written atomically."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from brats_lightning.runtime.files import make_folder, replace_file, unwritable


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the target, flushes to disk and renames.

    Lightning writes to ``/tmp`` and moves the file; between file systems that is a copy, which can stop half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; on an `UnwritableFile` the existing one stays."""
        if storage_options is not None:
            raise TypeError(f"checkpoints are local files without storage_options, got {storage_options}")
        path = Path(path)
        make_folder(path.parent)
        try:
            replace_file(path, lambda temporary: _save(checkpoint, temporary), durable=True)
        except RuntimeError as error:  # torch's writer, when the disk is full
            raise unwritable(path, error) from error


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(checkpoint, file)
