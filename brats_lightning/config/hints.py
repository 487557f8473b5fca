"""What a refused command line may have meant."""

import difflib
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.command_line import bare_words, needs_quotes
from brats_lightning.config.resolvers import leaves, missing


def print_hints(conf: Path, config_name: str, arguments: Sequence[str]) -> None:
    """Print on stderr which arguments lack a key, which values lack quotes and which options may be misspelt."""
    for word in bare_words(arguments):
        cfg = _composed(conf, config_name, arguments)
        wanted = [f"{key}={word}" for key in (missing(cfg) if cfg else ()) if key not in _options(arguments)]
        meant = f"; did you mean {' or '.join(wanted)}?" if wanted else ""
        print(f"{word}: options are key=value{meant}", file=sys.stderr)
    for argument in arguments:
        if (quoted := needs_quotes(argument)) is not None:
            print(f"{argument}: quote the value, inside the shell's quotes: {quoted}", file=sys.stderr)
    for option, near in near_misses(conf, config_name, arguments):
        print(f"{option}: did you mean {near}?", file=sys.stderr)


def near_misses(conf: Path, config_name: str, arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Unknown options, each with the choices of its group that have it, or with the most similar known option."""
    if (known := _keys(conf, config_name, arguments)) is None:
        return []
    near = []
    for name in [name for name in _options(arguments) if name not in known]:
        group = name.partition(".")[0]
        choices = [file.stem for file in sorted((conf / group).glob("*.yaml"))]
        having = [c for c in choices if name in (_keys(conf, config_name, [*arguments, f"{group}={c}"]) or ())]
        if having:
            near.append((name, f"it with {group}={' or '.join(having)}"))
        else:
            near += [(name, found) for found in difflib.get_close_matches(name, known, n=1)]
    return near


def _keys(conf: Path, config_name: str, arguments: Sequence[str]) -> set[str] | None:
    """All groups, and all dotted keys with the given choices of groups; None if Hydra refuses these."""
    if (cfg := _composed(conf, config_name, arguments)) is None:
        return None
    paths = (accumulate(key.split("."), "{}.{}".format) for key, _ in leaves(OmegaConf.to_container(cfg)))
    return {*_groups(conf), *(key for path in paths for key in path)}


def _composed(conf: Path, config_name: str, arguments: Sequence[str]) -> DictConfig | None:
    """The config with the given choices of groups; None if Hydra refuses one, which its own message explains."""
    groups = _groups(conf)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            return compose(config_name, [text for name, text in _options(arguments).items() if name in groups])
    except Exception:
        return None


def _groups(conf: Path) -> set[str]:
    return {folder.relative_to(conf).as_posix() for folder in conf.rglob("*") if folder.is_dir()}


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """The arguments that set an existing option, by its name."""
    given = (text for text in arguments if "=" in text and not text.startswith(("-", "+", "~", "hydra")))
    return {argument.split("=", 1)[0]: argument for argument in given}
