"""The commands that come after a training, with its own paths."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.build import cases_of
from brats_lightning.config.command_line import command_text, config_dirs, typed
from brats_lightning.data.splits import read_split

# Sources whose cases other commands find by the folder alone: they have BraTS's file names.
_BY_FOLDER = ("brats_lightning.data.layouts.brats.", "brats_lightning.synthetic.")
_LABELS = ["labels", "label_map", "ignore_label"]  # of `data`, which evaluate needs where they are not the default


def next_commands(cfg: DictConfig) -> list[tuple[str, str]]:
    """(what for, command) of what usually follows the run of a resolved config, on its test cases if there are any."""
    run = Path(cfg.paths.run_dir)
    cases_of = read_split(run / "split.json", "split")
    part = next(part for part in ("test", "val", "train") if cases_of[part])
    ckpt, split, masks = run / "checkpoints/best.ckpt", f"split={run / 'split.json'}", run / "masks"
    chosen = [split, *([f"part={part}"] if part != "test" else [])]
    curves = [("curves and pictures", shlex.join(["tensorboard", "--logdir", str(run)]))]
    curves = curves if "tensorboard" in (cfg.logger or {}) else []
    tune = [("better post-processing", command_text("tune", f"ckpt={ckpt}"))]
    if (cases := _data_set(cfg)) is None:
        return [*curves, *tune]
    if by_folder := not cases:
        cases = [f"input={(folder := _folder(cfg))}"]
    references = [f"references={folder}", *_label_settings(cfg)] if by_folder else cases
    scores = [f"predictions={masks}", *references, *chosen, f"output={run / 'scores'}"]
    return [
        *curves,
        (f"masks of the {part} cases", command_text("predict", f"ckpt={ckpt}", *cases, *chosen, f"output={masks}")),
        ("their scores, with a report", command_text("evaluate", *scores)),
        *tune,
    ]


def _folder(cfg: DictConfig) -> str:
    """With all cases in it: the data set's own, for synthetic cases the one in which they were made."""
    if cfg.data.source._target_.startswith(_BY_FOLDER[0]):
        return str(cfg.data.root)
    return os.path.commonpath([path.parent for case in cases_of(cfg) for path in case.files.values()])


def _data_set(cfg: DictConfig) -> Sequence[str] | None:
    """The run's own options of its data set, by which other commands find it, too; none where the folder is enough.

    None where they are not known: a run that is repeated has a complete config instead.
    """
    if cfg.data.source._target_.startswith(_BY_FOLDER) and cfg.data.masks is None:
        return []
    hydra: Any = HydraConfig.get()
    if "data" not in hydra.runtime.choices:
        return None
    given = [text for text in hydra.overrides.task if text.startswith("data.")]
    return [*(f"--config-dir={folder}" for folder in config_dirs(hydra)), f"data={hydra.runtime.choices.data}", *given]


def _label_settings(cfg: DictConfig) -> list[str]:
    """Label settings that are not the default."""
    default = {"labels": ["netc", "snfh", "et"], "label_map": None, "ignore_label": None}
    own: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg.data, _LABELS))
    return [f"data.{name}={typed(value)}" for name, value in own.items() if value != default[name]]
