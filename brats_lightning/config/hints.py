"""What a refused option may have meant; looked up only after Hydra has refused it."""

import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from brats_lightning.config.command_line import needs_quotes


def print_hints(conf: Path, config_name: str, arguments: Sequence[str]) -> None:
    """Print to stderr which values lack quotes, and which known options are near those that a command does not know.

    Args:
        conf: folder of the configs.
        config_name: of the command's.
        arguments: of its command line.
    """
    for argument in arguments:
        if (quoted := needs_quotes(argument)) is not None:
            print(f"{argument}: quote the value, inside the shell's quotes: {quoted}", file=sys.stderr)
    for option, near in near_misses(conf, config_name, arguments):
        print(f"{option}: did you mean {near}?", file=sys.stderr)


def near_misses(conf: Path, config_name: str, arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Unknown options, each with the choices of its group that have it, or else the nearest known one."""

    def composed(*choices: str) -> set[str]:
        with initialize_config_dir(str(conf), version_base="1.3"):
            return set(_keys(OmegaConf.to_container(compose(config_name, [*choices]))))

    groups = {folder.relative_to(conf).as_posix() for folder in conf.rglob("*") if folder.is_dir()}
    told = [argument for argument in arguments if "=" in argument and not argument.startswith(("-", "+", "~", "hydra"))]
    names = [argument.split("=", 1)[0] for argument in told]
    chosen = [argument for argument, name in zip(told, names, strict=True) if name in groups]
    GlobalHydra.instance().clear()
    try:
        known = groups | composed(*chosen)
        near = []
        for name in (name for name in names if name not in known):
            group = name.partition(".")[0]
            files = [file.stem for file in sorted((conf / group).glob("*.yaml"))]
            if having := [choice for choice in files if name in composed(*chosen, f"{group}={choice}")]:
                near.append((name, f"it with {group}={' or '.join(having)}"))
            elif found := difflib.get_close_matches(name, known, n=1):
                near.append((name, found[0]))
        return near
    except Exception:  # Hydra has said what is wrong with a choice
        return []


def _keys(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            key = f"{path}.{name}" if path else str(name)
            yield key
            yield from _keys(value, key)
