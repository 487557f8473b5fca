"""Check and measure the program on a GPU, in minutes:  python -m tests.benchmarks.gpu [--device cpu] [PART …]

Each part runs in a process of its own, for as long as its share of the time allows; a row counts as soon as it is
measured. What was left out is said. With ``--device cpu`` all of it runs at a small size, so that nothing is tried for
the first time on a GPU. The table lies in <output>/<device>/table.md. The exit code is 1 if a part failed or a value is
too large.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tests.benchmarks.gpu.part import Rows, Size
from tests.benchmarks.measure import describe_machine

ROOT = Path(__file__).resolve().parents[3]
LEAST = 10  # seconds without which no part is begun


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        title: heading of its table.
        share: of the time: it may take what is left, in proportion to the shares of the parts still to come.
        function: ``module.name`` beside this file, called with the size, the rows and a folder; empty for the tests.
    """

    title: str
    share: int
    function: str = ""


PARTS = {
    "tests": Part("Tests marked `gpu`", 90),
    "agreement": Part("CPU and device: largest difference", 60, "agreement.compare"),
    "phantoms": Part("Phantoms", 60, "training.prepare"),
    "steps": Part("A step of the networks alone: forward, backward, AdamW; bf16", 90, "networks.steps"),
    "trainer": Part("A step of the trainer with its feed", 90, "training.steps"),
    "feed": Part("Feed", 60, "training.feed"),
    "volumes": Part("A whole volume, windows with overlap 0.5, bf16", 80, "networks.volumes"),
}
TOTAL = {"cuda": 470, "cpu": 1200}  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; default all")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default %(default)s")
    parser.add_argument("--seconds", type=float, help=f"for all parts, default {TOTAL}")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu-check"), help="default %(default)s")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the process of a single part
    arguments = parser.parse_args()
    total = arguments.seconds or TOTAL[arguments.device]
    chosen = arguments.parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    output = arguments.output.resolve() / arguments.device
    scratch = output / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    if arguments.here:
        _run_here(chosen[0], Size.of(arguments.device), output, scratch)
        return
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU; --device cpu checks at a small size that everything runs")
    end = time.monotonic() + total
    remarks = {}
    for place, name in enumerate(chosen):
        share = PARTS[name].share / sum(PARTS[later].share for later in chosen[place:])
        remarks[name] = _run(name, arguments.device, share * (end - time.monotonic()), output)
    table, failed = report(arguments.device, {name: Rows(output / f"{name}.jsonl") for name in chosen}, remarks)
    (output / "table.md").write_text(table)
    print(table)
    print(f"{output / 'table.md'}; {total - (end - time.monotonic()):.0f} s in all")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _run(name: str, device: str, limit: float, output: Path) -> str:
    """Run a part in its own process, for some seconds; a remark on how it ended, empty if well."""
    rows, log = output / f"{name}.jsonl", output / f"{name}.log"
    rows.unlink(missing_ok=True)
    if limit < LEAST:
        return "left out: no time was left"
    print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
    if PARTS[name].function:
        command = [sys.executable, "-m", "tests.benchmarks.gpu", name, "--here", "--device", device]
        command += ["--output", str(output.parent)]
    else:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(device),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    said = log.read_text().strip().splitlines()
    last = said[-1].strip() if said else "no output"
    if code is None:
        return f"stopped after {limit:.0f} s"
    if code:
        return f"FAILED ({last}); see {log}"
    return "" if PARTS[name].function else last


def _environment(device: str) -> dict[str, str]:
    # Beside other work, several threads of a CPU wait for the slowest.
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")} if device == "cpu" else {}
    return os.environ | threads | {"BRATS_DEVICE": device}


def _end(process: subprocess.Popen) -> None:
    """With its own processes, which form a group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _run_here(name: str, size: Size, output: Path, scratch: Path) -> None:
    import torch

    from brats_lightning.runtime.memory import keep_freed_memory

    keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    module, _, function = PARTS[name].function.partition(".")
    work: Callable[[Size, Rows, Path], None] = getattr(import_module(f"tests.benchmarks.gpu.{module}"), function)
    work(size, Rows(output / f"{name}.jsonl"), scratch)


def report(device: str, rows: dict[str, Rows], remarks: dict[str, str]) -> tuple[str, list[str]]:
    """The Markdown of all parts, and the names of those that failed."""
    size = Size.of(device)
    lines = [
        f"{_hardware(device)}; patches and windows {size.patch}³, {size.batch} at a time; volume "
        f"{'×'.join(map(str, size.volume))}; channels of the networks"
        + (" as in the recipes" if size.thinner == 1 else f" divided by {size.thinner}")
    ]
    failed = []
    for name, part in rows.items():
        found = part.read()
        columns = list(dict.fromkeys(column for _, cells in found for column in cells))
        lines += ["", f"**{PARTS[name].title}**", ""]
        if found:
            lines += ["| | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
            for what, cells in found:
                lines.append(f"| {what} | " + " | ".join(str(cells.get(column, "")) for column in columns) + " |")
        if remarks[name]:
            lines += ["", remarks[name]]
        if "FAILED" in remarks[name] or any(cell.failed for _, cells in found for cell in cells.values()):
            failed.append(name)
    return "\n".join(lines) + "\n", failed


def _hardware(device: str) -> str:
    import torch

    from brats_lightning.runtime.device import describe_device

    machine, named = describe_machine(), ("torch", "monai", "nnunetv2")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name in named)
    beside = f", {machine['processor']}, {machine['cores']} cores" if device == "cuda" else f": {machine['processor']}"
    return f"{describe_device(torch.device(device))}{beside}; {versions}"


if __name__ == "__main__":
    main()
