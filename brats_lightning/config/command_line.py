"""Paths on the command line: Hydra's grammar refuses many valid file names and doesn't know the home folder."""

import os
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

_BROKEN = re.compile(r"[\"'\[{(]|\w+\(")  # the start of a list, a mapping, a function call or a quoted text


class NoHomeFolder(ValueError):
    """A path starts with ``~``, and the account has no home folder."""


def expanded(path: str) -> str:
    """A path with a leading ``~`` replaced by the home folder; any other text is left as it is.

    Raises:
        NoHomeFolder: the account has none.
    """
    if path != "~" and not path.startswith("~/"):
        return path
    if (found := os.path.expanduser(path)) == path:  # noqa: PTH111
        raise NoHomeFolder(f"{path}: this account has no home folder, and HOME is not set; give the whole path")
    return found


def with_quoted_paths(arguments: Sequence[str]) -> list[str]:
    """A command line on which Hydra accepts every path, with a leading ``~`` replaced by the home folder.

    Values that Hydra refuses and that can only be paths are quoted (`needs_quotes` is for all others); the meaning of
    what Hydra accepts doesn't change.
    """
    return [_with_home(argument) for argument in map(_quoted_if_path, arguments)]


def bare_words(arguments: Sequence[str]) -> list[str]:
    """Arguments that are neither key=value nor a flag nor a flag's value, which Hydra refuses."""
    takes_value = re.compile("-(?!m$|-multirun$)[^=]*").fullmatch
    pairs = zip(("", *arguments), arguments, strict=False)
    return [word for before, word in pairs if re.fullmatch("(?![-~])[^=]*|~/[^=]*", word) and not takes_value(before)]


def needs_quotes(argument: str) -> str | None:
    """The override with quotes that make Hydra accept it, to be pasted into a shell; None if quotes don't help."""
    quoted = _quoted(argument)
    broken = any(_BROKEN.match(part) for part in _refused_parts(argument.partition("=")[2]))
    return None if quoted == argument or broken or not _parsed(quoted) else shlex.quote(quoted)


def quote(text: str) -> str:
    """A value in quotes, which Hydra accepts whatever its content."""
    # Inside quotes Hydra takes backslashes literally, except before a quote and at the end.
    return '"' + text.replace('"', '\\"') + '"'


def _quoted_if_path(argument: str) -> str:
    value = argument.partition("=")[2]
    return _quoted(argument) if all(map(_is_path, _refused_parts(value))) else argument


def _quoted(argument: str) -> str:
    """An override with quotes around each part of its value that Hydra refuses."""
    key, sign, value = argument.partition("=")
    if not sign or argument.startswith("-") or _parsed(argument):
        return argument
    opened, parts, closed = _parts(value)
    return f"{key}={opened}{','.join(part if _parsed(f'key={part}') else quote(part) for part in parts)}{closed}"


def _refused_parts(value: str) -> list[str]:
    return [part for part in _parts(value)[1] if not _parsed(f"key={part}")]


def _parts(value: str) -> tuple[str, list[str], str]:
    """Opening bracket, elements and closing bracket of a list; of a single value the brackets are empty."""
    if os.path.exists(value):  # noqa: PTH110  # Path.exists refuses very long values
        return "", [value], ""
    brackets = ("[", "]") if value.startswith("[") and value.endswith("]") else ("", "")
    return brackets[0], value[1:-1].split(",") if brackets[0] else value.split(","), brackets[1]


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~")) or os.path.exists(text)  # noqa: PTH110


def _parsed(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _with_home(argument: str) -> str:
    """Replaces the ``~`` of a single quoted value; `resolved` does it later for values in lists and in files."""
    key, sign, value = argument.partition("=")
    if sign and not argument.startswith("-") and value[:2] in ('"~', "'~"):
        return f"{key}={value[0]}{os.path.expanduser(value[1:-1])}{value[-1]}"  # noqa: PTH111
    return argument
