"""The command line before Hydra reads it: what the shell made of it, and paths, which Hydra's grammar often refuses."""

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

# The flags of Hydra's command line; all other options of a command are key=value.
_FLAGS = (
    *("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-r", "--run"),
    *("-m", "--multirun", "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name"),
    *("-cd", "--config-dir", "--experimental-rerun", "-i", "--info"),
)
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


def shell_faults(arguments: Sequence[str]) -> list[str]:
    """What the shell split or expanded because it lacks quotes, each with the form to type."""
    faults = []
    if any("\r" in argument for argument in arguments):
        faults.append("the command has carriage returns: its script has line ends of Windows; dos2unix removes them")
    for number, argument in enumerate(arguments):
        key, sign, value = argument.partition("=")
        before, after = arguments[number - 1 : number], arguments[number + 1 : number + 2]
        if argument.startswith("=") or (sign and not value and bare_words(after)):
            words = [*(before if not key else []), argument, *(after if not value else [])]
            faults.append(f"{' '.join(words)}: no spaces around =: {''.join(words)}")
        elif argument.endswith(":") and not sign and bare_words(after):
            faults.append(f"{argument} {after[0]}: options are key=value: {argument[:-1]}={after[0]}")
        elif sign and not key.startswith("-") and value.startswith(("[", "{")) and not _closed(value):
            joined = (" ".join(arguments[number:end]) for end in range(number + 2, len(arguments) + 1))
            whole = next((text for text in joined if _closed(text.partition("=")[2])), None)
            split = f"the shell split {whole} at its spaces; quote it: {shlex.quote(whole)}" if whole else None
            faults.append(split or f"{argument}: a bracket is not closed")
    for key, group in itertools.groupby(arguments, lambda argument: argument.partition("=")[0]):
        values = [argument.partition("=")[2] for argument in group]
        if len(values) > 1 and all(re.fullmatch(r"[^:/]+:[^:/]+", value) for value in values):
            whole = shlex.quote(f"{key}={{{','.join(values)}}}")
            faults.append(f"the shell made {len(values)} arguments of {key}={{…}}; quote it: {whole}")
    return faults


def _closed(value: str) -> bool:
    """Whether all brackets are closed; those inside quotes count too, which a value of a setting hardly has."""
    return all(value.count(opening) <= value.count(closing) for opening, closing in ("[]", "{}"))


def unknown_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Arguments with dashes that Hydra does not know, each as it stands and as key=value: ``--lr 1`` and ``lr=1``."""
    found = {}
    for argument, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, sign, value = argument.partition("=")
        name = flag.lstrip("-")
        long = flag.startswith("--")  # which may be shortened
        known = not re.match("--?[A-Za-z]", flag) or any(f == flag or (long and f.startswith(flag)) for f in _FLAGS)
        if not known and sign:
            found[argument] = f"{name}={value}"
        elif not known:
            follows = after and "=" not in after and not after.startswith("-")
            found[f"{flag} {after}" if follows else flag] = f"{name}={after if follows else '…'}"
    return found


def needs_quotes(argument: str) -> str | None:
    """The override with quotes that make Hydra accept it, to be pasted into a shell; None if quotes don't help."""
    quoted = _quoted(argument)
    broken = any(_BROKEN.match(part) for part in _refused_parts(argument.partition("=")[2]))
    return None if quoted == argument or broken or not _parsed(quoted) else shlex.quote(quoted)


def quote(text: str) -> str:
    """A value in quotes, which Hydra accepts whatever its content."""
    # Inside quotes Hydra takes backslashes literally, except before a quote and at the end.
    return '"' + text.replace('"', '\\"') + '"'


def values_of_flag(arguments: Sequence[str], *names: str) -> list[str]:
    """The values of a flag with dashes: of ``--flag value`` and ``--flag=value``."""
    found = []
    for argument, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, sign, value = argument.partition("=")
        if flag in names:
            found.append(value if sign else after)
    return found


def config_dirs(hydra: Any) -> list[str]:
    """The folders that a command line added by ``--config-dir``, by Hydra's own config of that command."""
    return [source["path"] for source in hydra["runtime"]["config_sources"] if source["provider"] == "command-line"]


def command_text(name: str, *arguments: str) -> str:
    """The command ``name`` of this program as it is typed."""
    return shlex.join(["python", "-m", f"brats_lightning.{name}", *arguments])


def key_of(override: str) -> str:
    """What an override sets: ``a.b`` of ``+a.b=1``."""
    return override.lstrip("+~").split("=", 1)[0]


def typed(value: Any) -> str:
    """A plain value of a config, without spaces or quotes in it, as it is typed: ``[t1c,t2f]``, ``{4:3}``, ``null``."""
    return "null" if value is None else re.sub("[' ]", "", str(value))


def unquoted(value: str) -> str:
    """A value without the quotes around it, as Hydra reads it."""
    return value[1:-1].replace('\\"', '"') if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


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
