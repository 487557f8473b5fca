"""The plain values of configs: by dotted keys, in which of them two differ, and as YAML files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from brats_lightning.runtime.files import write_text


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a plain container that is not a mapping, or is an empty one."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from leaves(value, f"{path}.{name}" if path else str(name))
    elif path:
        yield path, node


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return result


def within(name: str, parents: Sequence[str]) -> bool:
    """Whether a dotted name is one of ``parents`` or lies in one."""
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys with another value, sorted; a missing one means the same as null."""
    return [key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key)]


def path_below(value: Any, folder: str) -> str | None:
    """What follows ``folder`` in a path into it; None for any other value."""
    return value.removeprefix(folder) if isinstance(value, str) and f"{value}/".startswith(f"{folder}/") else None


def abbreviated(values: Sequence[Any]) -> Any:
    """A number for each level or (z, y, x) of each, as short as a config can say it: a number where all agree."""
    short = [value[0] if isinstance(value, Sequence) and len(set(value)) == 1 else value for value in values]
    if isinstance(short[0], int) and all(value == short[0] for value in short):
        return short[0]
    return [list(value) if isinstance(value, Sequence) else value for value in short]


def listed(value: Any) -> list[str]:
    """The texts of a setting that takes one or several."""
    return [str(value)] if isinstance(value, str) else [str(item) for item in value]


def read_yaml(file: Path) -> Any:
    """The content of a file in plain containers, with its references to other values as they stand."""
    return OmegaConf.to_container(OmegaConf.load(file))


def write_yaml(file: Path, content: Any, comment: str = "") -> None:
    """Write plain containers to a file, as a whole, below lines of a comment."""
    write_text(file, comment + OmegaConf.to_yaml(OmegaConf.create(content)))
