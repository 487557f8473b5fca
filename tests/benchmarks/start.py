"""What one waits for before anything happens: help, a mistyped option, the first step."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.measure import Goal, Options, Row, timed
from tests.benchmarks.workload import probed_training, tiny_cases

TRAIN = [sys.executable, "-m", "brats_lightning.train"]


def rows(options: Options) -> Iterator[Row]:
    peers: dict[str, Callable[[], float]] = {
        "nnUNetv2_train -h": _command([str(Path(sys.executable).with_name("nnUNetv2_train")), "-h"], options),
        "import monai": _command([sys.executable, "-c", "import monai"], options),
    }
    limits: dict[str, Callable[[], float]] = {
        "limit: import hydra": _command([sys.executable, "-c", "import hydra"], options),
    }
    yield Row(
        "help",
        "train --help",
        "s",
        {"ours": _command([*TRAIN, "--help"], options), **peers, **limits},
        goals=[Goal(at_most=1.5)],
        check=lambda: _said([*TRAIN, "--help"], options, 0, "augmentation:"),
        note="whole process, files in the page cache",
    )
    mistyped = [*TRAIN, "model=unett"]
    yield Row(
        "config error",
        "train model=unett",
        "s",
        {"ours": _command(mistyped, options, code=1), **limits},
        goals=[Goal(at_most=2)],
        check=lambda: _said(mistyped, options, 1, "did you mean model=unet?"),
    )
    root = tiny_cases(options.scratch, 10)
    probed_training(options, root)  # fills the cache
    yield Row(
        "first step",
        "train to the end of the first step, warm cache",
        "s",
        {
            "ours": lambda: probed_training(options, root)["seconds"],
            "limit: import torch": _command([sys.executable, "-c", "import torch"], options),
            "limit: import pytorch_lightning": _command([sys.executable, "-c", "import pytorch_lightning"], options),
        },
        goals=[Goal(at_most=10)],
        note="default network, patches 32³, two workers, ten cases",
    )


def _run(command: list[str], options: Options) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=options.scratch, env=environment(), capture_output=True, text=True)


def environment() -> dict[str, str]:
    """Of a process that may import these benchmarks."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def _command(command: list[str], options: Options, code: int = 0) -> Callable[[], float]:
    def run() -> None:
        done = _run(command, options)
        assert done.returncode == code, done.stderr

    return timed(run)


def _said(command: list[str], options: Options, code: int, words: str) -> str:
    done = _run(command, options)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert words in said, said
    return "message as expected"
