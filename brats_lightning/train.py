"""Train a network and test its best checkpoint: ``python -m brats_lightning.train model=resunet loss=focal``."""

import difflib
import json
import logging
import math
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder, remove_leftovers, replace_file, write_text
from brats_lightning.runtime.locks import claimed

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from brats_lightning.data.datamodule import CaseData

log = logging.getLogger(__name__)

_JOIN = "import sys; from brats_lightning.train import join; join(sys.argv[1])"


def train(cfg: DictConfig) -> dict[str, float]:
    """Fit, then test the best checkpoint.

    Args:
        cfg: a resolved config as ``conf/train.yaml`` composes it.

    Returns:
        All final scores by name, as they are written to ``<run folder>/metrics.json`` (where NaN is null): ``val/…`` of
        the last validation, ``best/<objective>`` of the best checkpoint, and ``test/…`` of that checkpoint.
    """
    import pytorch_lightning as pl

    from brats_lightning.config.build import build_data, build_segmentation, build_trainer
    from brats_lightning.config.checkpoint import CheckpointError, read_checkpoint
    from brats_lightning.data.splits import Split
    from brats_lightning.runtime.memory import keep_freed_memory
    from brats_lightning.training import processes

    _check(cfg)
    keep_freed_memory()
    run_dir = make_folder(cfg.paths.run_dir)
    config_file = run_dir / "config.yaml"
    first = processes.is_first_process()
    saved = None if cfg.ckpt_path is None else read_checkpoint(cfg.ckpt_path, "ckpt_path")
    cfg = _with_seed(cfg, saved)
    if saved is not None and "split" not in saved:
        raise CheckpointError(
            f"ckpt_path: {cfg.ckpt_path} was written by an earlier version, without its split; start a new run from "
            f"its weights: weights={cfg.ckpt_path}"
        )
    if first and saved is not None:
        _say_what_goes_on(cfg, saved)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    if first:
        write_text(config_file, OmegaConf.to_yaml(cfg))
        log.info("run folder: %s · seed %d", run_dir, cfg.seed)
        log.info("data: %s", cfg.data.description)

    # Before other processes start, so that they find the cache filled.
    data = build_data(cfg, None if saved is None else Split.from_dict(saved["split"]))
    data.compare_checksums = first
    data.prepare_data()
    data.setup("fit")
    if first:
        data.split.save(run_dir / "split.json")
        log.info("%s", data.summary())
    model = build_segmentation(cfg, data)
    known = [f"val/{name}" for name in model.score_names]
    if cfg.objective not in known:
        near = difflib.get_close_matches(cfg.objective, known, n=3, cutoff=0.4)
        raise ValueError(f"objective: there is no score {cfg.objective}; near are {', '.join(near) or known[0]}")
    trainer = build_trainer(cfg)
    data.test_on = cfg.test_on or "test"
    if first:
        data.check_shared_memory(trainer.num_devices)
        count = sum(p.numel() for p in model.network.parameters()) / 1e6
        device = f"{trainer.world_size} × {trainer.strategy.root_device.type}"
        log.info("network: %s, %.2f M parameters, %s, %s", cfg.model._target_, count, device, trainer.precision)

    # Resuming into a folder of its own is what a new run does; its best.ckpt is the best since then.
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # no validation cases
    with _exit_codes(), processes.other_processes(trainer, [sys.executable, "-c", _JOIN, str(config_file)]):
        trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
        scores: dict[str, SupportsFloat] = dict(trainer.callback_metrics)
        best, best_score = _best_checkpoint(trainer, run_dir / "checkpoints")
        if saved is not None and saved["global_step"] == trainer.global_step and data.split.val:
            # The run was ended in its last validation, or later; with all steps done Lightning leaves it out.
            trainer.validate(model, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True, verbose=False)
            scores = dict(trainer.callback_metrics)
            best, best_score = _better(cfg, scores, best, best_score)
        if best_score is not None:
            scores[f"best/{cfg.objective}"] = best_score
        if cfg.test_on is not None:
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
    """Exit as a process does that a signal ends, and say in one line why batches stopped coming."""
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    from brats_lightning.data.loading import LoaderError, loader_failure
    from brats_lightning.runtime import signals

    with signals.listening():
        try:
            yield
        except (SIGTERMException, signals.Interrupted) as error:
            signum = getattr(error, "signum", None) or signals.received() or signal.SIGTERM
            raise SystemExit(128 + signum) from None
        except (RuntimeError, LoaderError) as error:
            failure = error if isinstance(error, LoaderError) else loader_failure(error)
            if failure is None:
                raise
            if signum := signals.received():  # sent to the group: a reader just begun heard it before it was ready to
                raise SystemExit(128 + signum) from None
            raise failure from error


def _check(cfg: DictConfig) -> None:
    # What would otherwise surface after hours of preparation or training.
    from brats_lightning.config.checkpoint import read_checkpoint
    from brats_lightning.core.labels import LabelScheme
    from brats_lightning.core.targets import make_target

    make_target(cfg.target, LabelScheme(tuple(cfg.data.labels)))
    if cfg.test_on not in ("test", "val", "train", None):
        raise ValueError(f"test_on must be test, val, train or null, got {cfg.test_on!r}")
    for key in ("ckpt_path", "weights"):
        if cfg[key] is not None:
            read_checkpoint(cfg[key], key)
    if cfg.resume is not None and cfg.ckpt_path is None:
        raise ValueError("resume is a word of the command line, replaced before a config is composed; set ckpt_path")
    if cfg.seed is not None and not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be from 0 to {2**32 - 1}, or null, got {cfg.seed}")
    if cfg.objective_mode not in ("max", "min"):
        raise ValueError(f"objective_mode must be max or min, got {cfg.objective_mode!r}")


def _with_seed(cfg: DictConfig, saved: Mapping[str, Any] | None) -> DictConfig:
    from brats_lightning.training import processes

    if cfg.seed is not None:
        return cfg
    if saved is not None:  # the batches to come depend on the seed the run began with
        return OmegaConf.merge(cfg, {"seed": saved["config"]["seed"]})  # type: ignore[return-value]
    if processes.started_from_outside():
        raise ValueError("processes started one by one cannot agree on a random seed: set seed=…")
    return OmegaConf.merge(cfg, {"seed": secrets.randbelow(2**31)})  # type: ignore[return-value]


def _say_what_goes_on(cfg: DictConfig, saved: Mapping[str, Any]) -> None:
    """Refuse what a resumed run may not change, name what it does, and keep it for the next time."""
    from hydra.core.hydra_config import HydraConfig

    from brats_lightning.config.resume import compare, record

    now: Any = OmegaConf.to_container(cfg)
    changed = compare(saved["config"], now, Path(cfg.ckpt_path))
    log.info("going on at step %d with %s", saved["global_step"], cfg.ckpt_path)
    for line in changed:
        log.info("from here on %s", line)
    if cfg.resume is not None and HydraConfig.initialized():
        record(Path(cfg.resume), list(HydraConfig.get().overrides.task))


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
        replace_file(best, lambda temporary: shutil.copyfile(last, temporary), durable=True)
    trainer.strategy.barrier("best.ckpt")
    return best, None


def _better(
    cfg: DictConfig, scores: Mapping[str, SupportsFloat], best: Path, best_score: float | None
) -> tuple[Path, float | None]:
    """The best checkpoint and its score after a validation that came when the fit had ended."""
    from brats_lightning.training import processes

    score = float(scores.get(cfg.objective, math.nan))
    sign = 1 if cfg.objective_mode == "max" else -1
    if math.isnan(score) or (best_score is not None and sign * best_score >= sign * score):
        return best, best_score
    target = best.with_name("best.ckpt")
    if processes.is_first_process():
        replace_file(target, lambda temporary: shutil.copyfile(cfg.ckpt_path, temporary), durable=True)
    return target, score


def _threshold_baseline(data: "CaseData") -> dict[str, float]:
    from brats_lightning.training.baseline import best_threshold

    found = best_threshold(data.scored_cases("test"), data.scheme)
    return {} if found is None else {"test/t1c_threshold_dice_mean": found.dice_mean}


def _report(results: dict[str, float], cfg: DictConfig, trainer: "pl.Trainer") -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    run_dir = Path(cfg.paths.run_dir)
    final = {name: value if math.isfinite(value) else None for name, value in results.items()}
    write_text(run_dir / "metrics.json", json.dumps(final, indent=1) + "\n")
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
    return _worst(cfg) if value is not None and math.isnan(value) else value


def _worst(cfg: DictConfig) -> float:
    return -math.inf if cfg.objective_mode == "max" else math.inf


def _run(cfg: DictConfig) -> float | None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from brats_lightning.config.sweep import forget_outcome, record_failure
    from brats_lightning.training import processes
    from brats_lightning.training.callbacks.finite import NotFinite

    folder = make_folder(cfg.paths.run_dir)
    if not processes.is_first_process():
        return objective_value(cfg, train(cfg))
    with claimed(folder / ".lock", f"the run folder {folder}"):
        remove_leftovers(folder / "checkpoints", older_than=0)  # of a process that was killed: nobody else is at work
        forget_outcome(folder)
        try:
            return objective_value(cfg, train(cfg))
        except NotFinite as error:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                raise
            log.error("%s", error)
            record_failure(folder, str(error), diverged=True)
            return _worst(cfg)


def join(config: str) -> None:
    """Train as one of the processes of a job that another one began.

    Args:
        config: YAML of the resolved config that every process trains.
    """
    from brats_lightning.config.resolvers import register_resolvers
    from brats_lightning.training.processes import end_with

    end_with(os.getppid())
    register_resolvers()
    train(OmegaConf.load(config))  # type: ignore[arg-type]


def main() -> None:
    """The command ``brats-train``."""
    from brats_lightning.config.resume import ResumeError, expand
    from brats_lightning.training import processes

    try:
        sys.argv[1:] = expand(sys.argv[1:])
    except ResumeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    if processes.started_from_outside() and not processes.is_first_process():
        # The run folder is the first process's; Hydra would make one for each.
        sys.argv += [f"hydra.run.dir={tempfile.mkdtemp()}", "hydra.output_subdir=null", "hydra/job_logging=none"]
    entry_point("train", _run, failed=_worst)()


if __name__ == "__main__":
    main()
