"""Configs: where the YAML files are, and what the words in them mean that follow from other values."""

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.command_line import expanded
from brats_lightning.runtime.files import make_folder
from brats_lightning.runtime.workers import cpu_count


def config_dir() -> Path:
    """The checkout's ``conf`` if the package lies in one, else the copy inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


def register_resolvers() -> None:
    """Make the counts that follow from other values known to OmegaConf."""
    OmegaConf.register_new_resolver("channel_count", len, replace=True)
    OmegaConf.register_new_resolver("output_count", _output_count, replace=True)
    OmegaConf.register_new_resolver("expanded", expanded, replace=True)
    OmegaConf.register_new_resolver("equal", lambda one, other: one == other, replace=True)
    OmegaConf.register_new_resolver("cpu_count", cpu_count, replace=True)
    OmegaConf.register_new_resolver("new_folder", _new_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("patch_size", _patch_size, replace=True)
    OmegaConf.register_new_resolver("volume_scaled", _volume_scaled, replace=True)
    OmegaConf.register_new_resolver("direction", {"max": "maximize", "min": "minimize"}.__getitem__, replace=True)


_new_folders: dict[str, str] = {}  # as asked for → as made, in this process


def _new_folder(path: str) -> str:
    """A folder of that name that nobody had before, with a number behind it if need be; made at once.

    Of two runs that start within a second each gets its own. Asked again, it is the same one.
    """
    if path not in _new_folders:
        for number in itertools.count(1):
            folder = Path(path if number == 1 else f"{path}-{number}").expanduser()
            try:
                make_folder(folder.parent)
                with suppress(FileExistsError):
                    folder.mkdir()
                    break
            except OSError as error:  # Hydra would print the way through its code
                print(f"error: the run folder: {error}; or set paths.outputs=DIR", file=sys.stderr)
                raise SystemExit(1) from None
        _new_folders[path] = str(folder)
    return _new_folders[path]


def _volume_scaled(value: float, side: int, size: Sequence[int]) -> float:
    """A value meant for patches of ``side``³ voxels, in proportion for those of another size (z, y, x)."""
    return value * math.prod(size) / side**3


def _output_count(labels: Sequence[str], target: str) -> int:
    """Channels a network returns: classes with the background; or regions, of which there are as many as labels."""
    return len(labels) + (target == "classes")


def _patch_size(sampling: DictConfig) -> list[int]:
    """The largest patch (z, y, x) a sampler draws: its size, or its deepest block of slices."""
    if "size" in sampling:
        return list(sampling.size)
    deepest = max(sampling.depth) - max(sampling.depth) % (sampling.multiple_of or 1)  # 0 is refused by the sampler
    return [deepest, *sampling.in_plane]


def resolved(cfg: DictConfig) -> DictConfig:
    """A copy without interpolations, ``~/`` being the home folder: it means the same in another process and folder.

    Raises:
        ValueError: a mandatory value was not given, or there is no home folder.
    """
    if absent := missing(cfg):
        raise ValueError("these values must be given on the command line: " + " ".join(f"{key}=…" for key in absent))
    return OmegaConf.create(_with_home(OmegaConf.to_container(cfg, resolve=True)))


def _with_home(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _with_home(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_with_home(value) for value in node]
    return expanded(node) if isinstance(node, str) else node


def missing(cfg: DictConfig) -> list[str]:
    """Keys of the mandatory values that were not given; what refers to them is not listed again."""
    return [key for key, value in leaves(OmegaConf.to_container(cfg)) if value == "???"]


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all in a plain container that is no mapping, or an empty one."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    elif path:
        yield path, node
