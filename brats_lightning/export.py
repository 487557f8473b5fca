"""Write a trained network as an ONNX file: ``python -m brats_lightning.export ckpt=A output=FILE.onnx``."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder

log = logging.getLogger(__name__)


def export(cfg: DictConfig) -> dict[str, Any]:
    """Export the network of a checkpoint, compare it with torch's, and write it as a whole.

    Args:
        cfg: a resolved config as ``conf/export.yaml`` composes it.

    Returns:
        ``file``, and the rest of `brats_lightning.inference.onnx_file.Export`.

    Raises:
        CheckpointError: a checkpoint that cannot be used.
        ExportError: a network that cannot be exported, or an export that differs from it.
        ValueError: several checkpoints, or an output that is not named ``….onnx``.
    """
    from dataclasses import asdict

    from brats_lightning.config.checkpoint import load_model
    from brats_lightning.inference.onnx_file import export_onnx

    if not isinstance(cfg.ckpt, str):
        raise ValueError(f"ckpt: export takes one checkpoint, got {list(cfg.ckpt)}; export each network by itself")
    output = Path(cfg.output).expanduser()
    if output.suffix != ".onnx":
        raise ValueError(f"output must be a file named ….onnx, got {cfg.output}")
    window = None if cfg.window is None else OmegaConf.to_container(cfg.window)
    model = load_model(cfg.ckpt, tuple(cfg.trust), {"window": window})
    make_folder(output.parent)
    found = export_onnx(model, output, cfg.tolerance)
    log.info(
        "%s: %.1f MB, windows of %s voxels in batches of any size; its logits differ from torch's by up to %.1g",
        *(output, found.bytes / 1e6, "×".join(map(str, model.inference.window)), found.difference),
    )
    return {"file": str(output), **asdict(found)}


main = partial(entry_point, "export", export)

if __name__ == "__main__":
    main()
