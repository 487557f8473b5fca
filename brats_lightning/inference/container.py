"""What a container runs: every case below one folder is predicted, each into a mask of its own in another folder.

    python -m brats_lightning.inference.container PACKAGE --input /input --output /output

``PACKAGE`` is a folder that ``python -m brats_lightning.package`` has made. Nothing is written but the output and a
temporary folder.
"""

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brats_lightning.data.cases import Case
from brats_lightning.data.layouts.brats import find_inputs
from brats_lightning.runtime.files import make_folder, remove_leftovers, write_json, write_text

SETTINGS, ENSEMBLE, SUMS = "settings.yaml", "ensemble.yaml", "SHA256SUMS"  # files of a package


@dataclass
class Outcome:
    """What became of a folder of cases.

    Attributes:
        seconds: of each case, as far as known: not of those that a killed process predicted.
        masks: how many cases have a mask of this package, of an earlier start of it, too.
        failed: cases without one.
        strange: folders and files beside the cases' folders in which no case was found.
        total: seconds from start to end.
        peak: the most bytes of memory that a process had at one time.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    masks: int = 0
    failed: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    total: float = 0.0
    peak: int = 0

    @property
    def complete(self) -> bool:
        """Whether every folder has its mask."""
        return not self.failed and not self.strange


def write_sums(package: Path) -> None:
    """List the SHA-256 of every checkpoint and setting of a package, as the program ``sha256sum`` does."""
    files = [package / SETTINGS, package / ENSEMBLE, *sorted((package / "checkpoints").iterdir())]
    write_text(package / SUMS, "".join(f"{_sha256(file)}  {file.relative_to(package)}\n" for file in files))


def changed(package: Path) -> list[str]:
    """Files of a package that are not as they were when it was made, each with what is wrong."""
    found = []
    for line in (package / SUMS).read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        file = package / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif _sha256(file) != expected:
            found.append(f"{name} has changed")
    return found


def predict_all(package: Path, inputs: Path, output: Path) -> Outcome:
    """Predict every case, whatever becomes of the others.

    ``predict`` itself goes on after a faulty case. Where it ends before its end, killed for want of memory for example,
    it is started again, and skips what it has predicted. If it got no further, the first case without a mask is
    predicted by itself and, if that fails, too, given up.

    Args:
        package: folder with the settings and checkpoints.
        inputs: a folder with a folder for each case, of any name.
        output: folder for the masks, ``<case>.nii.gz``.

    Raises:
        ValueError: there is no case.
    """
    began = time.monotonic()
    cases = find_inputs(inputs)
    outcome = Outcome(strange=_strange(inputs, cases))
    make_folder(output)
    rest = [case.id for case in cases]
    predicted: set[str] = set()  # as predict says, which refuses masks that others made
    with tempfile.TemporaryDirectory() as scratch:

        def ends(*chosen: str) -> bool:
            """Whether ``predict`` comes to its end, and tells what is wrong with cases that it cannot predict."""
            summary = _predict(package, inputs, output, chosen, Path(scratch))
            remove_leftovers(output, older_than=0)  # of a killed one
            if summary is not None:
                outcome.seconds |= {name: case["seconds"] for name, case in summary["cases"].items()}
                predicted.update(summary["cases"], summary["existing"])
            return summary is not None

        while rest:
            left = _without_mask(rest, output)
            if ends(*rest) or not left:
                break
            if _without_mask(rest, output) == left:
                first = left[0]
                ended = ends(first)  # now beside no other case, nor while the mask of the one before is written
                if _without_mask([first], output):
                    rest.remove(first)
                    if not ended:
                        print(f"{first}: given up, since predict ended at it", file=sys.stderr, flush=True)
    outcome.masks = len(predicted)
    outcome.failed = [case.id for case in cases if case.id not in predicted]
    outcome.total = round(time.monotonic() - began, 1)
    outcome.peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return outcome


def _without_mask(cases: Sequence[str], output: Path) -> list[str]:
    return [case for case in cases if not (output / f"{case}.nii.gz").exists()]


def _predict(package: Path, inputs: Path, output: Path, cases: Sequence[str], scratch: Path) -> dict[str, Any] | None:
    """Run ``predict`` on some cases; its summary, or None if it did not come to its end."""
    split, summary = scratch / "split.json", scratch / "summary.json"
    write_json(split, {"train": [], "val": [], "test": list(cases)})
    summary.unlink(missing_ok=True)
    command = [sys.executable, "-m", "brats_lightning.predict"]
    command += ["--config-dir", str(package.resolve()), "--config-name", Path(SETTINGS).stem]
    command += [f"ckpt={package.resolve() / ENSEMBLE}", f"input={inputs}", f"output={output}", "part=test"]
    command += [f"split={split}", f"summary={summary}", f"hydra.run.dir={scratch / 'run'}", "hydra.output_subdir=null"]
    subprocess.run(command, check=False)
    return json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else None


def _strange(inputs: Path, cases: Sequence[Case]) -> list[str]:
    """What lies in the folder and holds no case."""
    files = [file.absolute().relative_to(inputs.absolute()) for case in cases for file in case.files.values()]
    known = {file.parts[0] for file in files}
    return sorted(path.name for path in inputs.iterdir() if path.name not in known and not path.name.startswith("."))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def main() -> None:
    """The command. Its exit code is 1 if a case has no mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder with the settings and checkpoints")
    parser.add_argument("--input", type=Path, default=Path("/input"), help="folder with a folder for each case")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="folder for the masks")
    parser.add_argument("--summary", type=Path, help="JSON file for the seconds of each case and the memory")
    chosen = parser.parse_args()
    try:
        if faults := changed(chosen.package):
            raise ValueError(f"the package {chosen.package} is damaged: {', '.join(faults)}")
        outcome = predict_all(chosen.package, chosen.input, chosen.output)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    if chosen.summary is not None:
        write_json(chosen.summary, vars(outcome))
    print(f"{outcome.masks} masks after {outcome.total:.0f} s")
    if not outcome.complete:
        without = [f"no mask of {case}" for case in outcome.failed] + [f"no case in {name}" for name in outcome.strange]
        raise SystemExit("error: " + ", ".join(without))


if __name__ == "__main__":
    main()
