"""Pack trained networks for an image: ``python -m brats_lightning.package ckpt=A output=DIR``."""

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.build import build_part
from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder

log = logging.getLogger(__name__)


def package(cfg: DictConfig) -> dict[str, Any]:
    """Write a package, whole or not at all, and try it if that is asked for.

    Args:
        cfg: a resolved config as ``conf/package.yaml`` composes it.

    Returns:
        ``folder``, and its ``bytes``; after a dry run also ``hours`` for ``cases``, ``seconds`` of each case, ``peak``,
        the most bytes that a process had in memory, and the ``limits`` that held.

    Raises:
        CheckpointError: a checkpoint that cannot be used.
        WheelError: wheels that are not there, or that pip cannot get.
        CaseError: the dry run left cases without a mask, or with a faulty one; the package stays.
        ValueError: settings that cannot be, an output that is not empty, or a dry run that ended early.
    """
    from brats_lightning.config.checkpoint import load_ensemble
    from brats_lightning.config.packaging import foreign_modules, write_package
    from brats_lightning.config.postprocessing import trained_postprocessing
    from brats_lightning.runtime.device import check_settings
    from brats_lightning.runtime.memory import as_bytes

    check_settings(cfg.device, cfg.devices, cfg.precision)
    output, memory = Path(cfg.output), as_bytes("memory", cfg.memory)
    for name, folder in (("output", output), ("masks", None if cfg.masks is None else Path(cfg.masks))):
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{name}: {folder} is not empty; choose another folder, or remove it")
    if cfg.cases < 1:
        raise ValueError(f"cases must be 1 or more, got {cfg.cases}")
    chosen = build_part("postprocessing", cfg.get("postprocessing"))
    looked_at: Any = OmegaConf.merge(cfg, {"device": "cpu", "precision": 32})  # whatever the image runs on
    ensemble = load_ensemble(looked_at)
    rules = (chosen or trained_postprocessing(ensemble.models, tuple(cfg.trust))).decoding(ensemble.decode)
    log.info("post-processing%s: %s", "" if chosen else " as in training", rules.described())
    for line in rules.lacking(ensemble.scheme):
        log.warning(line)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=make_folder(output.parent)) as scratch:
        folder = make_folder(Path(scratch) / "package")
        write_package(cfg, folder, rules)
        _add_wheels(cfg, make_folder(folder / "wheels"), foreign_modules(ensemble, rules))
        folder.replace(output)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    log.info("%s: %.1f MB; build it with: docker build -t NAME %s", output, size / 1e6, output)
    result = {"folder": str(output), "bytes": size}
    return result if cfg.dry_run is None else result | _tried(cfg, output, ensemble.scheme.num_classes, memory)


def _add_wheels(cfg: DictConfig, folder: Path, modules: list[str]) -> None:
    from brats_lightning.runtime.wheels import copy_wheels, distributions, fetch_wheels

    if cfg.wheels is not None:
        copy_wheels(Path(cfg.wheels), folder)
        return
    log.info("pip collects the wheels")
    fetch_wheels(folder, cfg.torch, cfg.packages or distributions(modules), cfg.index)


def _tried(cfg: DictConfig, folder: Path, classes: int, memory: int) -> dict[str, Any]:
    from brats_lightning.inference.dry_run import dry_run

    with tempfile.TemporaryDirectory() as scratch:
        masks = Path(scratch) / "masks" if cfg.masks is None else make_folder(cfg.masks)
        found = dry_run(folder, Path(cfg.dry_run), masks, range(1, classes), cfg.cases, memory, cfg.devices)
    seconds = found.outcome.seconds
    log.info(
        "dry run with %s: %d cases, %.1f s each, at most %.1f GiB in memory; %d cases would take %.1f hours here",
        *(", ".join(found.limits) or "no limits", len(seconds), sum(seconds.values()) / len(seconds)),
        *(found.outcome.peak / 2**30, cfg.cases, found.hours),
    )
    if found.hours > cfg.hours:
        log.warning("that is more than hours=%g", cfg.hours)
    return {
        **{"hours": round(found.hours, 3), "cases": cfg.cases, "seconds": seconds},
        **{"peak": found.outcome.peak, "limits": list(found.limits)},
    }


main = partial(entry_point, "package", package)

if __name__ == "__main__":
    main()
