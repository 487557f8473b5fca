"""Training a run again from its own config: ``--config-dir RUN --config-name config``.

That config is resolved and says nothing of Hydra: paths in it lead into the folder of the run. The command line is
completed so that the repetition has a folder of its own, with the seed and the split of the run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brats_lightning.config.command_line import key_of, quote, values_of_flag
from brats_lightning.config.values import leaves, path_below, read_yaml, within

_NAME = "config"
_SPLIT = ("split_from", "folds", "fold")  # of `data`: other ways to the split that is taken from the run
_HYDRA = {  # of conf/train.yaml
    "+hydra": "default",
    "hydra.job.name": "train",
    "+hydra.callbacks.sweep_table._target_": "brats_lightning.config.sweep.SweepTable",
}


def repeated(arguments: Sequence[str]) -> list[str]:
    """The command line of a repetition, completed; any other one as it is.

    What lay in the folder of the run is placed in the new one. A run that was resumed is repeated from its beginning;
    one that began with the checkpoint of another begins with it again. Settings on the command line win.
    """
    folders = values_of_flag(arguments, "--config-dir", "-cd")
    names = values_of_flag(arguments, "--config-name", "-cn")
    if not folders or not names:
        return list(arguments)
    run = Path(folders[0]).expanduser().absolute()
    file = run / f"{_NAME}.yaml"
    if names[0] not in (_NAME, file.name) or not file.is_file():
        return list(arguments)
    saved = read_yaml(file)
    if not saved.get("paths", {}).get("run_dir"):  # a user's own config of that name
        return list(arguments)
    if not (run / "split.json").is_file():
        raise ValueError(
            f"{run} has no split.json: the run ended before it had dealt its cases, and cannot be repeated"
        )
    own = {key: _moved(value, saved["paths"]["run_dir"]) for key, value in leaves(saved)}
    settings = {key: value for key, value in own.items() if value is not None}
    settings |= _HYDRA | {"paths.run_dir": quote("${hydra:runtime.output_dir}"), "resume": "null"}
    given = [key_of(argument) for argument in arguments]
    if saved["ckpt_path"] is None or own["ckpt_path"]:  # the checkpoint of another run has its split
        settings["ckpt_path"] = "null"
        if not {f"data.{key}" for key in _SPLIT} & set(given):  # else it is split in another way
            settings |= {f"data.{key}": "null" for key in _SPLIT} | {"data.split_file": quote(str(run / "split.json"))}
    added = [f"{key}={value}" for key, value in settings.items() if not within(key.lstrip("+"), given)]
    return [*arguments, *added]


def _moved(value: Any, old: str) -> str | None:
    """The quoted reference that replaces a path into the old folder; None for any other value."""
    rest = path_below(value, old)
    return None if rest is None else quote("${paths.run_dir}" + rest)
