"""Train a network and test its best checkpoint: ``python -m brats_lightning.train model=resunet loss=focal``."""

import difflib
import json
import logging
import math
import re
import secrets
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from omegaconf import DictConfig, OmegaConf

from brats_lightning.composition import entry_point

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from brats_lightning.data.datamodule import CaseData

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> dict[str, float]:
    """Fit, then test the best checkpoint.

    Args:
        cfg: a resolved config as ``conf/train.yaml`` composes it.

    Returns:
        All final scores by name, as they are written to ``<run folder>/metrics.json`` (where NaN is null): ``val/…`` of
        the last validation, ``best/<objective>`` of the best checkpoint, and ``test/…`` of that checkpoint.
    """
    import pytorch_lightning as pl

    from brats_lightning import composition, distributed
    from brats_lightning.memory import keep_freed_memory

    _check(cfg)
    keep_freed_memory()
    run_dir = Path(cfg.paths.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    cfg = _with_seed(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    config_file = run_dir / "config.yaml"
    first = distributed.is_first_process()
    if first:
        OmegaConf.save(cfg, config_file)
        log.info("run folder: %s · seed %d", run_dir, cfg.seed)
        log.info("data: %s", cfg.data.description)

    # Before other processes start, so that they find the cache filled.
    data = composition.build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    if first:
        data.split.save(run_dir / "split.json")
        log.info("%s", data.summary())
    model = composition.build_segmentation(cfg, data)
    known = [f"val/{name}" for name in model.score_names]
    if cfg.objective not in known:
        near = difflib.get_close_matches(cfg.objective, known, n=3, cutoff=0.4)
        raise ValueError(f"objective: there is no score {cfg.objective}; near are {', '.join(near) or known[0]}")
    trainer = composition.build_trainer(cfg)
    if first:
        count = sum(p.numel() for p in model.network.parameters()) / 1e6
        device = f"{trainer.world_size} × {trainer.strategy.root_device.type}"
        log.info("network: %s, %.2f M parameters, %s, %s", cfg.model._target_, count, device, trainer.precision)

    # Resuming into a folder of its own is what a new run does; its best.ckpt is the best since then.
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # no validation cases
    with distributed.other_processes(trainer, config_file), _exit_codes():
        trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
        scores: dict[str, SupportsFloat] = dict(trainer.callback_metrics)
        best, best_score = _best_checkpoint(trainer, run_dir / "checkpoints")
        if best_score is not None:
            scores[f"best/{cfg.objective}"] = best_score
        if cfg.test_on is not None:
            data.test_on = cfg.test_on
            trainer.test(model, datamodule=data, ckpt_path=str(best), weights_only=True, verbose=False)
            scores |= trainer.callback_metrics
        results = {name: float(value) for name, value in sorted(scores.items()) if "/" in name}
        if first:
            if cfg.test_on is not None:
                results |= _threshold_baseline(data)
            _report(results, cfg, trainer)
    return results


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Exit as a process does that a signal ends; Lightning exits with 0 after SIGTERM, as if all were done."""
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    try:
        yield
    except SIGTERMException:
        raise SystemExit(128 + signal.SIGTERM) from None
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from None
        raise


def _check(cfg: DictConfig) -> None:
    # What would otherwise surface after hours of preparation or training.
    from brats_lightning.labels import LabelScheme
    from brats_lightning.targets import make_target

    make_target(cfg.target, LabelScheme(tuple(cfg.data.labels)))
    if cfg.test_on not in ("test", "val", "train", None):
        raise ValueError(f"test_on must be test, val, train or null, got {cfg.test_on!r}")
    for key in ("ckpt_path", "weights"):
        if cfg[key] is not None and not Path(cfg[key]).is_file():
            raise ValueError(f"{key}: there is no {cfg[key]}; checkpoints lie in <run folder>/checkpoints")
    if cfg.seed is not None and not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be from 0 to {2**32 - 1}, or null, got {cfg.seed}")
    if cfg.objective_mode not in ("max", "min"):
        raise ValueError(f"objective_mode must be max or min, got {cfg.objective_mode!r}")


def _with_seed(cfg: DictConfig) -> DictConfig:
    import torch

    from brats_lightning import distributed

    if cfg.seed is not None:
        return cfg
    if cfg.ckpt_path is not None:  # the batches to come depend on the seed the run began with
        saved = torch.load(cfg.ckpt_path, map_location="cpu", weights_only=True)["config"]["seed"]
        return OmegaConf.merge(cfg, {"seed": saved})  # type: ignore[return-value]
    if distributed.started_from_outside():
        raise ValueError("processes started one by one cannot agree on a random seed: set seed=…")
    return OmegaConf.merge(cfg, {"seed": secrets.randbelow(2**31)})  # type: ignore[return-value]


def _best_checkpoint(trainer: "pl.Trainer", folder: Path) -> tuple[Path, float | None]:
    """``best.ckpt`` and its score; the last weights and None where nothing was validated."""
    callbacks: list[Any] = trainer.checkpoint_callbacks
    callback = next((c for c in callbacks if getattr(c, "monitor", None) is not None), None)
    if callback is not None and callback.best_model_score is not None:
        return Path(callback.best_model_path), float(callback.best_model_score)
    folder = Path(trainer.strategy.broadcast(str(folder)))
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    trainer.save_checkpoint(last, weights_only=False)
    if trainer.is_global_zero:
        log.warning("nothing was validated: best.ckpt is the last one")
        partial = best.with_suffix(".partial")
        shutil.copyfile(last, partial)
        partial.replace(best)
    trainer.strategy.barrier("best.ckpt")
    return best, None


def _threshold_baseline(data: "CaseData") -> dict[str, float]:
    from brats_lightning.baseline import best_threshold

    found = best_threshold(data.scored_cases("test"), data.scheme)
    return {} if found is None else {"test/t1c_threshold_dice_mean": found.dice_mean}


def _report(results: dict[str, float], cfg: DictConfig, trainer: "pl.Trainer") -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    run_dir = Path(cfg.paths.run_dir)
    final = {name: value if math.isfinite(value) else None for name, value in results.items()}
    partial = run_dir / ".metrics.json.partial"
    partial.write_text(json.dumps(final, indent=1) + "\n")
    partial.replace(run_dir / "metrics.json")
    if isinstance(trainer.logger, TensorBoardLogger):
        # Their own tags: a curve has no business ending in a point of another checkpoint.
        shown = {f"hparam/{n}": v for n, v in results.items() if n.startswith(("test/", "best/")) and math.isfinite(v)}
        parts = (
            "seed",
            "target",
            "data",
            "sampling",
            "augmentation",
            "copy_paste",
            "model",
            "loss",
            "optimizer",
            "scheduler",
            "trainer",
        )
        settings: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(parts)))
        trainer.logger.log_hyperparams(settings, shown, step=trainer.global_step)
        trainer.logger.save()
    if f"best/{cfg.objective}" in results:
        log.info("%-36s %.4f   (best.ckpt)", f"best/{cfg.objective}", results[f"best/{cfg.objective}"])
    lesions = [name.removeprefix("test/") for name in results if re.fullmatch("test/brats.*_mean", name)]
    for name in (
        "dice_mean",
        "dice_et",
        "dice_tc",
        "dice_wt",
        *lesions,
        "iou_mean",
        "accuracy",
        "t1c_threshold_dice_mean",
    ):
        if f"test/{name}" in results:
            log.info("%-36s %.4f   (%s cases, best.ckpt)", f"test/{name}", results[f"test/{name}"], cfg.test_on)
    log.info("all scores: %s · curves: tensorboard --logdir %s", run_dir / "metrics.json", run_dir)


def objective_value(cfg: DictConfig, results: dict[str, float]) -> float | None:
    """What a sweep optimises: the best checkpoint's objective, NaN being the worst value there is."""
    value = results.get(f"best/{cfg.objective}", results.get(cfg.objective))
    if value is None:
        return None
    return (-math.inf if cfg.objective_mode == "max" else math.inf) if math.isnan(value) else value


def _run(cfg: DictConfig) -> float | None:
    return objective_value(cfg, train(cfg))


def main() -> None:
    """The command ``brats-train``."""
    from brats_lightning import distributed

    if distributed.started_from_outside() and not distributed.is_first_process():
        # The run folder is the first process's; Hydra would make one for each.
        sys.argv += [f"hydra.run.dir={tempfile.mkdtemp()}", "hydra.output_subdir=null", "hydra/job_logging=none"]
    entry_point("train", _run)()


if __name__ == "__main__":
    main()
