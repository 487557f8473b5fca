"""Train a network and test its best checkpoint: ``python -m brats_lightning.train model=resunet loss=focal``."""

import atexit
import difflib
import logging
import math
import os
import re
import secrets
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.entry_point import entry_point
from brats_lightning.config.outcomes import Ending, forget_outcome, record_ending, value_of, write_scores
from brats_lightning.config.repeat import repeated
from brats_lightning.config.resume import announce_resume, expand, going_on, in_own_folder
from brats_lightning.config.values import leaves
from brats_lightning.runtime.files import make_folder, remove_leftovers, write_text
from brats_lightning.runtime.locks import claimed
from brats_lightning.runtime.workers import end_with_parent
from brats_lightning.training import processes

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from brats_lightning.data.datamodule import CaseData
    from brats_lightning.training.module import Segmentation

log = logging.getLogger(__name__)

_JOIN = "import sys; from brats_lightning.train import join; join(sys.argv[1])"
# The groups whose choices a table of runs shows.
_CHOICES = ("model", "loss", "data", "sampling", "augmentation", "optimizer")
# Settings that make no difference to a score.
_INDIFFERENT = ("paths.", "hydra.", "logger.", "callbacks.", "data.root", "data.workers", "data.cache")
# The final scores that are printed, in this order.
_PRINTED = ["best/.*", "test/dice_mean", "test/dice_(et|tc|wt|rc)", "test/brats.*_mean", "test/iou_mean"]
_PRINTED += ["test/accuracy", "test/t1c_threshold_dice_mean"]


def train(cfg: DictConfig) -> dict[str, float]:
    """Fit, then test the best checkpoint.

    Args:
        cfg: a resolved config as ``conf/train.yaml`` composes it.

    Returns:
        All final scores by name, as ``<run folder>/metrics.json`` has them (with null for NaN): ``val/…`` of the last
        validation, ``best/<objective>`` of the best checkpoint, and ``test/…`` of that checkpoint.
    """
    import pytorch_lightning as pl

    from brats_lightning.config.build import build_segmentation, build_trainer, with_spacing
    from brats_lightning.config.checkpoint import read_checkpoint
    from brats_lightning.runtime.memory import keep_freed_memory
    from brats_lightning.training.baseline import best_threshold_dice
    from brats_lightning.training.callbacks.outdated_scores import OutdatedScores
    from brats_lightning.training.trackers import followed

    _check(cfg)
    trainer = build_trainer(cfg)
    saved = None if cfg.ckpt_path is None else read_checkpoint(cfg.ckpt_path, "ckpt_path")
    cfg = with_spacing(_with_seed(cfg, saved), saved and saved["config"])
    keep_freed_memory()
    run_dir = make_folder(cfg.paths.run_dir)
    trainer.callbacks.append(OutdatedScores(partial(forget_outcome, run_dir)))  # type: ignore[attr-defined]
    first = processes.is_first_process()
    if first:
        _begin(cfg, saved)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = _prepared_data(cfg, saved, first)  # before the other processes start, which then find the cache filled
    model = build_segmentation(cfg, data)
    _check_objective(cfg.objective, model)
    if first:
        data.check_shared_memory(trainer.num_devices)
        _introduce(cfg, trainer, model)
    others = [sys.executable, "-c", _JOIN, str(run_dir / "config.yaml")]
    with processes.exit_codes(), processes.other_processes(trainer, others), followed(trainer):
        scores = _fit_and_test(cfg, saved, trainer, model, data)
        results = {name: float(value) for name, value in sorted(scores.items()) if "/" in name}
        if first:
            if cfg.test_on and (dice := best_threshold_dice(data.scored_cases("test"), data.scheme)) is not None:
                results["test/t1c_threshold_dice_mean"] = dice
            _report(results, cfg, trainer)
    return results


def _check(cfg: DictConfig) -> None:
    # Finds early what would otherwise fail after hours of preprocessing or training.
    from brats_lightning.config.build import build_network, build_optimizer, build_part, settings_of
    from brats_lightning.core.labels import LabelScheme
    from brats_lightning.core.targets import make_target

    make_target(cfg.target, LabelScheme(tuple(cfg.data.labels)), extra=cfg.get("target_extra"))
    for key, target in leaves(OmegaConf.to_container(cfg)):
        if key.endswith("._target_"):
            with settings_of(key.removesuffix("._target_")):
                get_object(target)
    if cfg.test_on not in ("test", "val", "train", None):
        raise ValueError(f"test_on must be test, val, train or null, got {cfg.test_on!r}")
    if cfg.resume is not None and cfg.ckpt_path is None:
        raise ValueError("resume works on the command line only, before a config is composed; set ckpt_path instead")
    if cfg.seed is not None and not 0 <= cfg.seed < 2**32:
        raise ValueError(f"seed must be from 0 to {2**32 - 1}, or null, got {cfg.seed}")
    if cfg.objective_mode not in ("max", "min"):
        raise ValueError(f"objective_mode must be max or min, got {cfg.objective_mode!r}")
    build_optimizer(cfg)
    for part in ("sampling", "augmentation", "copy_paste", "inference", "postprocessing"):
        build_part(part, cfg[part])
    build_network(cfg)


def _check_objective(objective: str, model: "Segmentation") -> None:
    known = [f"val/{name}" for name in model.score_names]
    if objective not in known:
        near = difflib.get_close_matches(objective, known, n=3, cutoff=0.4)
        raise ValueError(f"objective: there is no score {objective}; did you mean {' or '.join(near) or known[0]}?")


def _with_seed(cfg: DictConfig, saved: Mapping[str, Any] | None) -> DictConfig:
    if cfg.seed is not None:
        return cfg
    if saved is None and processes.started_from_outside():
        raise ValueError("processes that a launcher starts cannot agree on a random seed: set seed=…")
    # The remaining batches of a resumed run depend on the seed it began with.
    seed = secrets.randbelow(2**31) if saved is None else saved["config"]["seed"]
    return OmegaConf.merge(cfg, {"seed": seed})  # type: ignore[return-value]


def _begin(cfg: DictConfig, saved: Mapping[str, Any] | None) -> None:
    from brats_lightning.config.build import describe_data
    from brats_lightning.training.provenance import record_start

    if saved is not None:
        announce_resume(cfg, saved)
    write_text(Path(cfg.paths.run_dir) / "config.yaml", OmegaConf.to_yaml(cfg))
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    record_start(Path(cfg.paths.run_dir), cfg.seed, overrides)
    log.info("run folder: %s · seed %d", cfg.paths.run_dir, cfg.seed)
    log.info("data: %s", describe_data(cfg))


def _introduce(cfg: DictConfig, trainer: "pl.Trainer", model: "Segmentation") -> None:
    """Say what trains, on what and for how long."""
    from brats_lightning.runtime.device import describe_device

    count = sum(p.numel() for p in model.network.parameters()) / 1e6
    channels = f"{', '.join(cfg.data.modalities)} → {', '.join(cfg.data.labels)}"
    log.info("network: %s, %.2f M parameters, %s", cfg.model._target_, count, channels)
    hardware = describe_device(trainer.strategy.root_device)
    log.info("hardware: %d × %s, %s", trainer.world_size, hardware, trainer.precision)
    limits = {"steps": trainer.max_steps, "epochs": trainer.max_epochs or -1}
    ends = [f"{number:.0f} {name}" for name, number in limits.items() if number > 0]
    ends += [f"{cfg.trainer.max_time} (DD:HH:MM:SS)"] if cfg.trainer.get("max_time") else []
    length = f"for {' or '.join(ends)}" if ends else "until you stop it"
    log.info("training: %s; then %s", length, f"a test on the {cfg.test_on} cases" if cfg.test_on else "no test")


def _prepared_data(cfg: DictConfig, saved: Mapping[str, Any] | None, first: bool) -> "CaseData":
    from brats_lightning.config.build import build_data
    from brats_lightning.data.splits import PARTS, Split
    from brats_lightning.training.provenance import record_data

    split = None if saved is None else saved.get("split")  # missing if the module was trained without our data
    data = build_data(cfg, split and Split(*(tuple(split[part]) for part in PARTS)))
    data.compare_checksums = first
    data.prepare_data()
    data.setup("fit")
    data.test_on = cfg.test_on or "test"
    if first:
        data.split.save(Path(cfg.paths.run_dir) / "split.json")
        record_data(Path(cfg.paths.run_dir), cfg.data.description, data)
        log.info("%s", data.summary())
    return data


def _fit_and_test(
    cfg: DictConfig, saved: Mapping[str, Any] | None, trainer: "pl.Trainer", model: "Segmentation", data: "CaseData"
) -> dict[str, SupportsFloat]:
    from brats_lightning.training.best import best_checkpoint, take_if_better
    from brats_lightning.training.callbacks.pruning import check_pruned

    # With ckpt_path a run resumes into a new folder, whose best.ckpt is the best since then.
    warnings.filterwarnings("ignore", message="The dirpath has changed")
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # no validation cases
    trainer.fit(model, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
    check_pruned(trainer)
    scores: dict[str, SupportsFloat] = dict(trainer.callback_metrics)
    best = best_checkpoint(trainer, Path(cfg.paths.run_dir) / "checkpoints")
    if saved is not None and saved["global_step"] == trainer.global_step and data.split.val:
        # The run had stopped during its last validation or later; Lightning skips it as all steps are done.
        trainer.validate(model, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True, verbose=False)
        scores = dict(trainer.callback_metrics)
        best = take_if_better(Path(cfg.ckpt_path), float(scores.get(cfg.objective, math.nan)), best, cfg.objective_mode)
    if best.score is not None:
        scores[f"best/{cfg.objective}"] = best.score
    if cfg.test_on is not None:
        trainer.test(model, datamodule=data, ckpt_path=str(best.path), weights_only=True, verbose=False)
        scores |= trainer.callback_metrics
    return scores


def _report(results: dict[str, float], cfg: DictConfig, trainer: "pl.Trainer") -> None:
    from brats_lightning.training.trackers import trackers

    run_dir = Path(cfg.paths.run_dir)
    write_scores(run_dir, results)
    printed = [name for pattern in _PRINTED for name in results if re.fullmatch(pattern, name)]
    logged = {name: results[name] for name in printed if name not in trainer.callback_metrics}  # the rest has been
    for logger in trainer.loggers:
        logger.log_metrics(logged, trainer.global_step)
    scores = {name: results[name] for name in printed if math.isfinite(results[name])}
    for tracker in trackers(trainer):
        tracker.add_outcome(_columns(cfg), scores, str(run_dir / "checkpoints/best.ckpt"))
    for name in printed:
        cases = "" if name.startswith("best/") else f"{cfg.test_on} cases, "
        log.info("%-36s %.4f   (%sbest.ckpt)", name, results[name], cases)
    log.info("all scores: %s", run_dir / "metrics.json")
    reached, threshold = (results.get(f"test/{name}") for name in ("dice_mean", "t1c_threshold_dice_mean"))
    if reached is not None and threshold is not None and not reached >= threshold:
        log.warning(
            "the network is worse than the best single threshold on T1c, which needs no training: mean Dice %.4f, not"
            " %.4f. Train longer, or look at the pictures in TensorBoard", reached, threshold,
        )  # fmt: skip


def _columns(cfg: DictConfig) -> dict[str, Any]:
    """What tells this run apart in a table of runs: its choices, and what else its command line sets."""
    columns: dict[str, Any] = {}
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        choices = hydra.runtime.choices  # none in a repetition of a run, whose config is complete
        columns = {group: choices[group] for group in _CHOICES if group in choices}
        given = (override.lstrip("+").split("=", 1) for override in hydra.overrides.task if "=" in override)
        keys = (key for key, _ in given if "." in key and not key.startswith(_INDIFFERENT))
        columns |= {key: str(OmegaConf.select(cfg, key)) for key in keys}
    return columns | {"lr": OmegaConf.select(cfg, "optimizer.lr"), "seed": cfg.seed}


def objective_value(cfg: DictConfig, results: dict[str, float]) -> float | None:
    """The value a sweep optimises: the best checkpoint's objective, with NaN replaced by the worst value."""
    value = value_of(results, cfg.objective)
    return _worst(cfg) if value is not None and math.isnan(value) else value


def _worst(cfg: DictConfig) -> float:
    return -math.inf if cfg.objective_mode == "max" else math.inf


def _run(cfg: DictConfig) -> float | None:
    from brats_lightning.training.callbacks.finite import NotFinite
    from brats_lightning.training.callbacks.pruning import Pruned

    end_with_parent()  # a worker of the joblib launcher, which would train on without it
    folder, cfg = make_folder(cfg.paths.run_dir), going_on(cfg)
    if not processes.is_first_process():
        with suppress(Pruned):  # the first one reports it
            return objective_value(cfg, train(cfg))
        return _worst(cfg)
    with claimed(folder / ".lock", f"the run folder {folder}"):
        remove_leftovers(folder / "checkpoints", older_than=0)  # of a killed process: no other one is running
        forget_outcome(folder, scores=cfg.ckpt_path is None)  # those of a finished run stay until there are new ones
        try:
            results = train(cfg)
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                _say_what_is_next(cfg)
            return objective_value(cfg, results)
        except NotFinite as error:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                raise
            log.error("%s", error)
            record_ending(folder, Ending.DIVERGED, str(error))
        except Pruned as end:
            log.info("%s; its checkpoints stay", end)
            record_ending(folder, Ending.PRUNED, str(end))
            write_scores(folder, end.scores)
        return _worst(cfg)


def _say_what_is_next(cfg: DictConfig) -> None:
    from brats_lightning.config.next_commands import next_commands

    try:
        commands = next_commands(cfg)
    except (OSError, ValueError) as error:  # its data may have gone meanwhile, which does not undo the run
        log.warning("next commands: %s", error)
        return
    print("\nNext:")  # by itself, to be copied
    for purpose, command in commands:
        print(f"  # {purpose}\n  {command}")


def join(config: str) -> None:
    """Train as a further process of a job, by the config file that the job's first process has written."""
    from brats_lightning.config.resolvers import register_resolvers
    from brats_lightning.training.callbacks.finite import NotFinite
    from brats_lightning.training.callbacks.pruning import Pruned

    end_with_parent(os.getppid())
    register_resolvers()
    with suppress(NotFinite, Pruned):  # which all processes raise, and the first one reports
        train(OmegaConf.load(config))  # type: ignore[arg-type]


def _command_line(given: Sequence[str]) -> list[str]:
    """The arguments with ``resume=RUN`` expanded; only the first of several processes has a run folder."""
    arguments = repeated(expand(in_own_folder(given)))
    if processes.started_from_outside() and not processes.is_first_process():  # or Hydra makes a folder for each
        nowhere = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, nowhere, ignore_errors=True)
        arguments += [f"hydra.run.dir={nowhere}", "hydra.output_subdir=null", "hydra/job_logging=none"]
    return arguments


main = partial(entry_point, "train", _run, _worst, _command_line)

if __name__ == "__main__":
    main()
