"""The program and the packages it needs, as wheels in a folder: an environment is made from them without a network."""

import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from brats_lightning.runtime.environment import installed

_PROGRAM = "brats-lightning"
_CHECKOUT = Path(__file__).resolve().parents[2]


class WheelError(ValueError):
    """Wheels that are not there, or that pip could not get."""


def copy_wheels(source: Path, folder: Path) -> None:
    """Copy all wheels of a folder, one of which must be this program's.

    Raises:
        WheelError: it is not among them.
    """
    if not list(source.glob("brats_lightning-*.whl")):
        remedy = f"fill it with: python -m pip wheel --wheel-dir {source} {_CHECKOUT}"
        raise WheelError(f"wheels: there is no brats_lightning-….whl in {source}; {remedy}")
    for wheel in sorted(source.glob("*.whl")):
        shutil.copyfile(wheel, folder / wheel.name)


def fetch_wheels(folder: Path, torch: str, packages: Sequence[str] = (), index: str | None = None) -> None:
    """Let pip fill a folder with the wheels of this program and all that it needs, in the versions installed here.

    They suit a Python of this version on the processor of this machine.

    Args:
        folder: to fill.
        torch: ``cuda`` for the build that PyPI has, ``cpu`` for the one without CUDA, both in the version installed
            here, or a requirement as pip takes it.
        packages: further requirements, or files of wheels.
        index: of packages, which pip searches besides those it is configured for.

    Raises:
        WheelError: this is no Linux on x86-64, there is no pip, or pip fails.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        found = f"{platform.system()} on {platform.machine()}"
        raise WheelError(f"the image is for Linux on x86_64, and this is {found}; give a folder of its wheels=DIR")
    with tempfile.TemporaryDirectory() as scratch:
        versions = Path(scratch) / "versions.txt"
        known = {name: version for name, version in installed().items() if name not in (_PROGRAM, "torch")}
        versions.write_text("".join(f"{name}=={version}\n" for name, version in known.items()))
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(folder)]
        command += ["--constraint", str(versions), *(["--extra-index-url", index] if index else [])]
        done = subprocess.run([*command, _program(), _torch(torch), *packages], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise WheelError("pip cannot make the wheels:\n  " + "\n  ".join(lines[-10:]))


def distributions(modules: Iterable[str]) -> list[str]:
    """Requirements, ``NAME==VERSION``, of the packages that these modules are imported from.

    Raises:
        WheelError: a module that no installed package has.
    """
    known = importlib.metadata.packages_distributions()
    found = set()
    for module in modules:
        if module not in known:
            remedy = "make a wheel of it, and give packages=[FILE.whl]"
            raise WheelError(f"{module} is code of a checkpoint, and belongs to no installed package; {remedy}")
        found |= {f"{name}=={importlib.metadata.version(name)}" for name in known[module]}
    return sorted(found)


def _program() -> str:
    """The program, as pip takes it: the checkout, or the release that is installed."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        return str(_CHECKOUT)
    return f"{_PROGRAM}=={importlib.metadata.version(_PROGRAM)}"


def _torch(wanted: str) -> str:
    """The requirement for PyTorch."""
    release = importlib.metadata.version("torch").partition("+")[0]
    return {"cuda": f"torch==={release}", "cpu": f"torch=={release}+cpu"}.get(wanted, wanted)
