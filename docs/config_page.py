"""Writes reference/config.md, every group and key of ``conf/`` with its comment:  python docs/config_page.py."""

import re
from pathlib import Path
from typing import NamedTuple

CONF = Path(__file__).parents[1] / "conf"
PAGE = Path(__file__).with_name("reference") / "config.md"
INTRO = """# Configuration

Look up here what can be set on the command line: every group with its choices, and every key with its default value
and its meaning. The page is generated from the comments in `conf/` by `python docs/config_page.py`; edit the YAML
files, not the page.

- A **group** is a folder in `conf/`, and its files are the choices: `model=resunet`.
- A **key** is set by its full name, which is in the first column: `optimizer.lr=1e-3`. A key that is not listed is
  added with a plus: `+trainer.limit_train_batches=10`.
- A value `???` must be given. `null` switches a part off or leaves the choice to the program. `${…}` refers to another
  key.
- `python -m brats_lightning.train --help` lists the choices of all groups. With `--cfg job` instead, the command prints
  the configuration that its other arguments make, and does not run.
"""
KEY = re.compile(r"(?P<indent> *)(?P<key>[\w.]+|\"[^\"]*\"):(?: +(?P<value>[^#\s].*?))?(?: +# (?P<comment>.*))?")
COMMAND = re.compile(r"#\s*(.*?)(?:(?<!`)((?:\w+=\d+ )?(?:python -m|brats-\w+) .*?)(  .*)?)?")
ITEM = re.compile(r" *- (?:override )?(?P<choice>[^#]+?)(?: +# (?P<comment>.*))?")


class Line(NamedTuple):
    """A key with its value (empty for a mapping), or, without key, a comment of those that follow."""

    key: str
    value: str
    comment: str


def page(conf: Path = CONF) -> str:
    """The whole page."""
    parts = [INTRO, "## Commands\n"]
    parts += [section(path, "") for path in sorted(conf.glob("*.yaml"))]
    for folder in sorted(path for path in conf.rglob("*") if path.is_dir() and list(path.glob("*.yaml"))):
        group = folder.relative_to(conf).as_posix()
        parts.append(f"## {group}\n")
        parts += [section(path, group) for path in sorted(folder.glob("*.yaml"))]
    return "\n".join(parts)


def section(path: Path, group: str) -> str:
    """One file: what it is for, what it is based on, a table of its keys; a command's has no group."""
    text = path.read_text()
    header = re.match(r"(#.*\n)*", text)[0]  # type: ignore[index]
    prefix = group.replace("/", ".")
    if package := re.search(r"^# @package (\S+)\n", header, re.M):
        prefix = "" if package[1] == "_global_" else package[1]
    lines = text[len(header) :].splitlines()
    title = f"{group}={path.stem}" if group else path.stem
    parts = [f"### {title}\n", *_prose(re.sub(r"^# @package.*\n", "", header, flags=re.M)), *_defaults(lines, group)]
    if target := re.search(r"^_target_: ([\w.]+)", text, re.M):
        parts.append(f"Builds `{target[1]}`.\n")
    in_table = False
    shared = [match.groups() for line in lines if (match := re.match(r"  - (\w+)@([\w.]+)", line))]
    of_parts = [
        key
        for name, package in shared
        for key in _keys(path.with_stem(name).read_text().splitlines(), f"{prefix}.{package}", "")
        if key.key
    ]
    for line in [*_keys(lines, prefix, skipped="" if group else "hydra"), *of_parts]:
        if not line.key:
            parts.append(f"\n{_escaped(line.comment)}\n" if in_table else f"{_escaped(line.comment)}\n")
        elif not in_table:
            parts.append("| key | value | meaning |\n|---|---|---|")
        if line.key:
            value = f"`{line.value}`".replace("|", "\\|") if line.value else ""
            parts.append(f"| `{line.key}` | {value} | {_escaped(line.comment)} |")
        in_table = bool(line.key)
    return "\n".join(parts) + ("\n" if in_table else "")


def _prose(header: str) -> list[str]:
    """The comment at the top of a file as a paragraph, the commands in it as code at a line's end."""
    lines = []
    for line in header.splitlines():
        text, command, rest = COMMAND.fullmatch(line).groups("")  # type: ignore[union-attr]
        if lines and re.match(r"(hardware|memory|score)\b.*:", text):  # begins a new line, as does text after a command
            lines[-1] = lines[-1].rstrip() + "  "
        lines.append(_escaped(text) + (f"`{command}` {_escaped(rest.strip())}".rstrip() + "  " if command else ""))
    return ["\n".join(lines) + "\n"] if lines else []


def _escaped(text: str) -> str:
    """Text whose characters mean nothing to Markdown, inside a table or outside; code stays as it is."""
    prose_and_code = text.split("`")
    prose_and_code[::2] = [re.sub(r"([|*<\[\]]|\b_|_\b)", r"\\\1", part) for part in prose_and_code[::2]]
    return "`".join(prose_and_code)


def _defaults(lines: list[str], group: str) -> list[str]:
    """What the file is based on, and the groups it chooses."""
    items = [match for line in lines if line.startswith("  - ") and (match := ITEM.fullmatch(line))]
    choices = [item for item in items if not re.match(r"_self_|hydra|paths|\w+: \[\]", item["choice"])]
    bases = [f"`{item['choice']}`" for item in choices if not re.search("[:@]", item["choice"])]
    chosen = []
    for item in choices:
        name, colon, choice = item["choice"].partition(": ")
        if colon:
            name = name.removeprefix("/") if name.startswith("/") or not group else f"{group}/{name}"
            chosen.append(f"`{name}={choice}`" + (f" ({_escaped(item['comment'])})" if item["comment"] else ""))
    return [
        *([f"Based on {', '.join(bases)}: keys not listed here keep the values they have there.\n"] if bases else []),
        *([f"Groups: {', '.join(chosen)}.\n"] if chosen else []),
    ]


def _keys(lines: list[str], prefix: str, skipped: str) -> list[Line]:
    """The keys of a file by their full names, in its order; nothing of the blocks `defaults` and ``skipped``."""
    found: list[Line] = []
    parents: list[tuple[int, str]] = []
    inside_skipped = False
    for line in lines:
        if line.startswith("#"):
            found.append(Line("", "", line.removeprefix("# ")))
        if not (match := KEY.fullmatch(line)):
            continue
        indent, key = len(match["indent"]), match["key"].strip('"')
        if not indent:
            inside_skipped = key in ("defaults", skipped)
        parents = [parent for parent in parents if parent[0] < indent]
        value, comment = match["value"] or "", match["comment"] or ""
        name = ".".join([*filter(None, [prefix]), *(parent for _, parent in parents), key])
        if inside_skipped or key in ("_convert_", "_partial_"):
            continue
        if key == "_target_":
            if found and indent:  # of the block whose key came before
                found[-1] = found[-1]._replace(value=value.rpartition(".")[2])
            continue
        parents.append((indent, key))
        found.append(Line(name, value, comment))
    return [line for line in found if not line.key or line.value or line.comment]


if __name__ == "__main__":
    PAGE.write_text(page())
