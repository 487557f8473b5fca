"""Configs: where the YAML files are, and the values in them that follow from other values."""

import math
import re
from collections.abc import Callable, Sequence
from operator import eq, mul
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from brats_lightning.config.command_line import expanded
from brats_lightning.config.run_folder import new_folder
from brats_lightning.config.values import leaves
from brats_lightning.runtime.workers import cpu_count


def config_dir() -> Path:
    """The checkout's ``conf`` if the package lies in one, else the copy inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


def register_resolvers() -> None:
    """Make the functions known to OmegaConf that YAML files use, as in ``${channel_count:…}``."""
    functions: dict[str, Callable[..., Any]] = {
        "channel_count": len,
        "output_count": _output_count,
        "expanded": expanded,
        "equal": eq,
        "product": mul,
        "cpu_count": cpu_count,
        "process_count": _process_count,
        "gpu_count": _gpu_count,
        "patch_size": _patch_size,
        "volume_scaled": _volume_scaled,
        "direction": {"max": "maximize", "min": "minimize"}.__getitem__,
        "nnunet_label_map": _nnunet_label_map,
        "datalist_label_map": _datalist_label_map,
    }
    # One folder for each config, however often it is asked for.
    folders: dict[str, Callable[..., Any]] = {"new_folder": new_folder, "sweep_folder": _sweep_folder}
    for name, function in (functions | folders).items():
        OmegaConf.register_new_resolver(name, function, replace=True, use_cache=name in folders)


def _sweep_folder(parent: str, name: str | None, time: str) -> str:
    """The folder of a sweep: the same at each start for a study with a name, otherwise a new one."""
    return f"{parent}/{name}" if name else new_folder(f"{parent}/{time}")


def _volume_scaled(value: float, side: int, size: Sequence[int]) -> float:
    """A value meant for patches of ``side``³ voxels, scaled in proportion to patches of another size (z, y, x)."""
    return value * math.prod(size) / side**3


def _output_count(labels: Sequence[str], target: str, extra: Sequence[str] | None = None) -> int:
    """Output channels of a network: the classes and the background, or the regions, as many as the labels, and more."""
    return len(labels) + (target == "classes") + len(extra or ())


def _process_count(devices: int | str | Sequence[int]) -> int:
    """Processes on a machine of a cluster: one for each of the trainer's devices, which this machine may not have."""
    count = len(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else devices
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"launcher=slurm requests what the trainer needs: set trainer.devices=N, got {devices}")
    return count


def _gpu_count(accelerator: str, processes: int) -> int | None:
    """GPUs that a job requests on a machine."""
    return None if accelerator == "cpu" else processes


def _patch_size(sampling: DictConfig) -> list[int]:
    """The largest patch (z, y, x) a sampler draws: its size, or its deepest block of slices."""
    if "size" in sampling:
        return list(sampling.size)
    deepest = max(sampling.depth) - max(sampling.depth) % (sampling.multiple_of or 1)  # 0 is refused by the sampler
    return [deepest, *sampling.in_plane]


def _nnunet_label_map(root: str, labels: Sequence[str]) -> dict[int, int] | None:
    from brats_lightning.data.layouts.nnunet import nnunet_label_map

    return nnunet_label_map(root, labels)


def _datalist_label_map(root: str, labels: Sequence[str]) -> dict[int, int] | None:
    from brats_lightning.data.layouts.datalist import datalist_label_map

    return datalist_label_map(root, labels)


def resolved(cfg: DictConfig) -> DictConfig:
    """A copy with all references and a leading ``~/`` resolved, which another process in another folder reads the same.

    Raises:
        ValueError: a mandatory value was not given, or there is no home folder.
        CaseError, FileNotFoundError: a value follows from a file of the data set, which is faulty or not there.
    """
    if absent := missing(cfg):
        raise ValueError("these values must be given on the command line: " + " ".join(f"{key}=…" for key in absent))
    try:
        return OmegaConf.create(_with_home(OmegaConf.to_container(cfg, resolve=True)))
    except OmegaConfBaseException as error:
        from brats_lightning.data.cases import CaseError

        cause: BaseException | None = error
        while isinstance(cause, OmegaConfBaseException):  # which wraps what a resolver raises, and hides its words
            cause = cause.__context__
        if isinstance(cause, CaseError | FileNotFoundError):
            raise cause from None
        raise


def _with_home(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _with_home(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_with_home(value) for value in node]
    return expanded(node) if isinstance(node, str) else node


# A value that must be given unless another one stands for it, as the root of a data set for a folder of inputs.
_OR_MISSING = re.compile(r"\$\{oc\.select:([\w.]+),\?\?\?\}")


def missing(cfg: DictConfig) -> list[str]:
    """Keys of the mandatory values that were not given, without those that refer to them."""
    values = dict(leaves(OmegaConf.to_container(cfg)))
    stands_in = {key: match[1] for key, value in values.items() if (match := _OR_MISSING.fullmatch(str(value)))}
    return [key for key, value in values.items() if value == "???" or stands_in.get(key, key) not in values]
