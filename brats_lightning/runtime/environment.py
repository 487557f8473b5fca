"""What a program runs with: its code, the installed packages and the machine."""

import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PATIENCE = 30  # seconds for a command of git, which may walk through a large folder
_PLAIN = ("--no-color", "--no-ext-diff", "--no-textconv")  # whatever the user's settings


@dataclass(frozen=True)
class Repository:
    """A git checkout: its commit, and how the files differ from it."""

    folder: Path
    commit: str
    changed: tuple[str, ...]  # files, also Python files that are not under version control
    diff: str  # as `git apply` takes it; binary files are only named


def repository(folder: Path) -> Repository | None:
    """The checkout around a folder; None where there is none, or no git, or git refuses. Nothing is written."""
    top, commit = (_git(folder, "rev-parse", *what) for what in (["--show-toplevel"], ["--verify", "HEAD"]))
    if top is None or commit is None:
        return None
    root = Path(top.strip())
    tracked = _git(root, "diff", "HEAD", "--name-only", "-z") or ""
    new = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py") or ""
    parts = [_git(root, "diff", "HEAD", *_PLAIN) or ""]
    untracked = [name for name in new.split("\0") if name]
    parts += [_git(root, "diff", *_PLAIN, "--no-index", "--", os.devnull, name) or "" for name in untracked]
    changed = sorted({*filter(None, tracked.split("\0")), *untracked})
    return Repository(root, commit.strip(), tuple(changed), "".join(parts))


def _git(folder: Path, *arguments: str) -> str | None:
    """What a command of git prints; None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=_PATIENCE,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},  # or git refreshes its index
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    differs = "--no-index" in arguments and done.returncode == 1
    return done.stdout.decode(errors="replace") if done.returncode == 0 or differs else None


def installed() -> dict[str, str]:
    """Name → version of every installed package, by name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:
            found.setdefault(re.sub("[-_.]+", "-", name).lower(), distribution.version)  # the first is imported
    return dict(sorted(found.items()))


def packages() -> dict[str, str]:
    """Name → version of Python and of every installed package."""
    return {"python": platform.python_version(), **installed()}


def hardware() -> dict[str, Any]:
    """The machine, in words and numbers: host, system, processor, usable cores, memory in GiB, GPUs."""
    import torch

    from brats_lightning.runtime.device import describe_device
    from brats_lightning.runtime.workers import cpu_count

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpus = range(torch.cuda.device_count())
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cpu_count(),
        "memory_gib": round(memory / 2**30),
        "gpus": [describe_device(torch.device("cuda", index)) for index in gpus],
        "cuda": torch.version.cuda,
    }


def _processor() -> str:
    """Its model; the platform's name where Linux does not say."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    match = re.search(r"^model name\s*: (.+)$", text, re.M)
    return match[1] if match else platform.processor() or platform.machine()
