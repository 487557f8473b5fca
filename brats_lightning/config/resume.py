"""Resuming a run: its own settings and newest checkpoint, and which settings may change."""

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.command_line import config_dirs, key_of, quote, unquoted, values_of_flag
from brats_lightning.config.run_folder import named_folder
from brats_lightning.config.values import differing, leaves, read_yaml, within, write_yaml

log = logging.getLogger(__name__)

_WORD = "resume="
_RECORD = "resumed.yaml"  # the overrides of the last resumption; those the run began with are in .hydra

# Settings that may change when a run resumes from a checkpoint; all others decide what is learned or scored.
_FREE = (
    *("ckpt_path", "weights", "weights_mode", "resume", "name", "test_on", "paths", "logger", "callbacks", "trainer"),
    *("optimizer.lr", "inference.batch_size"),
    *("data.root", "data.background", "data.description", "data.masks", "data.verify", "data.on_bad_case"),
    *("data.workers", "data.cache_workers", "data.loader_timeout"),
    *("data.source.root", "data.source.parent", "data.source.background", "data.source.masks"),
)
_NOT_FREE = ("callbacks.average", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val")


class ResumeError(ValueError):
    """A run that cannot be resumed, or not with these settings."""


def _is_requeued() -> bool:
    """Whether this is a job of SLURM that ran before: after a preemption, a time limit or the failure of a node."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def going_on(cfg: DictConfig) -> DictConfig:
    """The config of a requeued job with the newest checkpoint of its own folder; any other config as it is."""
    if not _is_requeued():
        return cfg
    try:
        checkpoint = newest_checkpoint(Path(cfg.paths.run_dir))
    except ResumeError as error:
        log.warning("the job was requeued and starts anew: %s", error)
        return cfg
    return OmegaConf.merge(cfg, {"ckpt_path": str(checkpoint), "weights": None})  # type: ignore[return-value]


def in_own_folder(arguments: Sequence[str]) -> list[str]:
    """The command line, unless its run would replace another's record and checkpoints.

    That of a requeued job resumes the run in its ``hydra.run.dir``.

    Raises:
        ResumeError: ``hydra.run.dir`` holds checkpoints of another run.
    """
    folder = named_folder(arguments)
    resumes = {"resume", "ckpt_path", "-m", "--multirun"} & {argument.split("=", 1)[0] for argument in arguments}
    if folder is None or resumes or not any((folder / "checkpoints").glob("*.ckpt")):
        return list(arguments)
    if not _is_requeued():
        raise ResumeError(f"{folder} holds a run: continue it with resume={folder}, or choose another hydra.run.dir")
    return [*arguments, f"resume={quote(str(folder))}"]


def expand(arguments: Sequence[str]) -> list[str]:
    """The command line with ``resume=RUN`` replaced by the run's own overrides, its folder and its newest checkpoint.

    Overrides given beside it replace the run's own of the same key. Relative paths start where the run was started: the
    process changes to that folder.

    Raises:
        ResumeError: a folder of no run, or one without any readable checkpoint.
    """
    asked = [argument for argument in arguments if argument.startswith(_WORD)]
    if not asked or asked[-1] in (_WORD, f"{_WORD}null"):
        return list(arguments)
    if {"-m", "--multirun"} & set(arguments):
        raise ResumeError(f"{asked[-1]} resumes a single run; it cannot be part of a multirun")
    run = Path(unquoted(asked[-1].removeprefix(_WORD))).expanduser().absolute()
    if not (run / ".hydra/overrides.yaml").is_file():
        if run.suffix == ".ckpt" and (run.parents[1] / ".hydra").is_dir():
            raise ResumeError(f"{asked[-1]} is a file of a run; give the folder of the run: resume={run.parents[1]}")
        what = "is not a run folder" if run.is_dir() else "does not exist" if not run.exists() else "is a file"
        raise ResumeError(f"{asked[-1]}: {run} {what}; give the folder that holds checkpoints/ and .hydra/")
    checkpoint = newest_checkpoint(run)
    resumed = run / _RECORD
    before = read_yaml(resumed if resumed.is_file() else run / ".hydra/overrides.yaml")
    hydra = read_yaml(run / ".hydra/hydra.yaml")["hydra"]
    beside = [text for text in arguments if "=" in text and not text.startswith(("-", _WORD))]
    flags = [argument for argument in arguments if argument not in (*beside, *asked)]
    if not values_of_flag(flags, "--config-dir", "-cd"):
        flags += [f"--config-dir={folder}" for folder in config_dirs(hydra)]
    if not values_of_flag(flags, "--config-name", "-cn"):
        flags.append(f"--config-name={hydra['job']['config_name']}")
    replaced = {key_of(argument) for argument in beside} | {"ckpt_path", "weights", "resume"}
    kept = [override for override in before if key_of(override) not in replaced]
    kept += [override for override in hydra["overrides"]["hydra"] if key_of(override) == "hydra.searchpath"]
    if (started := Path(hydra["runtime"]["cwd"])).is_dir():
        os.chdir(started)
    here = [f"ckpt_path={quote(str(checkpoint))}", f"resume={quote(str(run))}", f"hydra.run.dir={quote(str(run))}"]
    added = {key_of(override) for override in before if override.startswith("+")}
    beside = [f"++{text}" if key_of(text) in added and text[0] not in "+~" else text for text in beside]
    return [*flags, *kept, *beside, *here, "hydra.output_subdir=null"]


def announce_resume(cfg: DictConfig, saved: Mapping[str, Any]) -> None:
    """Log the settings that a resumed run changes, and record its overrides for the next resumption.

    Raises:
        ResumeError: settings differ from the checkpoint's that must be the same.
    """
    now: Any = OmegaConf.to_container(cfg)
    changed = compare(saved["config"], now, Path(cfg.ckpt_path))
    log.info("resuming at step %d from %s", saved["global_step"], cfg.ckpt_path)
    for line in changed:
        log.info("changed: %s", line)
    if cfg.resume is not None and HydraConfig.initialized():
        record(Path(cfg.resume), list(HydraConfig.get().overrides.task))


def record(run: Path, overrides: Sequence[str]) -> None:
    """Keep the overrides of a resumed run, as Hydra was given them, for its next resumption."""
    lasting = [override for override in overrides if key_of(override) not in ("ckpt_path", "resume")]
    write_yaml(run / _RECORD, lasting)


def newest_checkpoint(run: Path) -> Path:
    """The intact checkpoint of a run with the most steps.

    Raises:
        ResumeError: there is none.
    """
    from brats_lightning.config.checkpoint import CheckpointError, read_checkpoint

    found, unreadable = [], []
    for path in sorted((run / "checkpoints").glob("*.ckpt"), key=lambda path: path.name != "last.ckpt"):
        try:
            step = read_checkpoint(path, "resume")["global_step"]
            with zipfile.ZipFile(path) as archive:
                if broken := archive.testzip():
                    raise CheckpointError(f"{path} is damaged: {broken}")
        except (CheckpointError, zipfile.BadZipFile, KeyError, OSError) as error:
            unreadable.append(f"{path.name}: {error}")
        else:
            found.append((step, path))
    if not found:
        why = "\n  ".join(["", *unreadable]) or " there is none"
        raise ResumeError(f"resume: no checkpoint in {run / 'checkpoints'} can be resumed from:{why}")
    return max(found, key=lambda pair: pair[0])[1]


def compare(saved: Mapping[str, Any], now: Mapping[str, Any], origin: Path) -> list[str]:
    """The settings that a resumed run changes, as lines ``key: before → now``.

    Args:
        saved: the config of the checkpoint ``origin``.
        now: the config of the resumed run.
        origin: for messages.

    Raises:
        ResumeError: settings differ that must be the same; it names all of them.
    """
    old, new = dict(leaves(saved)), dict(leaves(now))
    absent = "(not set)"
    lines = {key: f"{key}: {old.get(key, absent)} → {new.get(key, absent)}" for key in differing(old, new)}
    if refused := [line for key, line in lines.items() if not within(key, _FREE) or within(key, _NOT_FREE)]:
        raise ResumeError(
            f"a resumed run must have the same settings as {origin}, but these differ:\n  "
            + "\n  ".join(refused)
            + "\nUse those of the checkpoint (resume=RUN does), or start a new run from its weights: "
            + f"weights={origin} data.split_from={origin.parent.parent}"
        )
    quiet = ("paths", "ckpt_path", "resume", "name", "callbacks", "logger")
    return [line for key, line in lines.items() if not within(key, quiet)]
