"""Compares ``brats2026`` with the challenge's own program on random pairs: ``python -m tests.oracle.brats2026``.

The official package is installed into an environment of its own and run as a separate process on NIfTI files; nothing
of it is imported here. Prints the worst absolute difference of each column and exits with 1 if one exceeds 1e-6.
"""

import argparse
import csv
import math
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import nibabel as nib
import numpy as np

from brats_lightning.core.labels import LabelScheme
from brats_lightning.metrics.official import score_case
from tests.metrics.metric_pairs import random_pair

PACKAGES = ("brats-evaluation==0.0.10", "panoptica==2.1.7", "numpy<2.3")
SCHEME = LabelScheme(("netc", "snfh", "et", "rc"))
TOLERANCE = 1e-6


def official_python(folder: Path) -> Path:
    """The interpreter of an environment with the official package; made once."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ready = folder / "installed.txt"
    if not ready.exists() or ready.read_text().split() != list(PACKAGES):
        print(f"installing {', '.join(PACKAGES)} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        ready.write_text("\n".join(PACKAGES))
    return python


def write_pairs(folder: Path, pairs: int, seed: int) -> list[str]:
    """Writes the pairs as the challenge names them, every twentieth without a prediction; returns the cases."""
    rng = np.random.default_rng(seed)
    cases = []
    for index in range(pairs):
        case = f"BraTS-MET-{index:05d}-000"
        reference, prediction, spacing = random_pair(rng, classes=4)
        for name, mask in (("references", reference), ("predictions", prediction)):
            if name == "references" or index % 20 != 19:
                image = nib.Nifti1Image(mask, np.diag([*spacing, 1.0]))
                nib.save(image, folder / name / f"{case}.nii.gz")
        cases.append(case)
    return cases


def official_scores(python: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Runs the official evaluation and its parser; case → ``column_region`` → value."""
    summary, table = folder / "summary.json", folder / "scores.csv"
    masks = ("--ref_path", folder / "references", "--pred_path", folder / "predictions")
    steps = (
        ("evaluation", "--config", "mets", *masks, "--summary_json", summary),
        ("metrics_parser", "mets", "--json_path", summary, "--output_csv_path", table),
    )
    for module, *arguments in steps:
        command = [python, "-W", "ignore", "-m", f"brats_evaluation.{module}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            sys.exit(f"the official {module} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    with table.open(newline="") as file:
        rows = {row.pop("subject_id").removesuffix(".nii.gz"): row for row in csv.DictReader(file)}
    return {case: {key: float(value or "nan") for key, value in row.items()} for case, row in rows.items()}


def our_scores(folder: Path, case: str) -> dict[str, float]:
    """The same columns from this project."""
    image = nib.load(folder / "references" / f"{case}.nii.gz")
    path = folder / "predictions" / f"{case}.nii.gz"
    prediction = np.asarray(nib.load(path).dataobj) if path.exists() else None
    spacing = tuple(float(value) for value in image.header.get_zooms())
    scores = score_case(np.asarray(image.dataobj), prediction, spacing, SCHEME, "brats2026")
    return {f"{column}_{region}": value for region, row in scores.items() for column, value in row.items()}


def difference(ours: float, theirs: float) -> float:
    """Absolute difference; two NaN agree, one NaN is infinitely wrong."""
    if math.isnan(ours) or math.isnan(theirs):
        return 0.0 if math.isnan(ours) and math.isnan(theirs) else math.inf
    return abs(ours - theirs)


def main() -> int:
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "brats_lightning" / "brats-evaluation-0.0.10"
    )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--environment", type=Path, default=cache, help="folder of the official program's environment")
    arguments = parser.parse_args()
    python = official_python(arguments.environment.absolute())
    worst: dict[str, tuple[float, str]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("references", "predictions"):
            (folder / part).mkdir()
        cases = write_pairs(folder, arguments.pairs, arguments.seed)
        official = official_scores(python, folder)
        for case in cases:
            ours = our_scores(folder, case)
            if set(ours) != set(official[case]):
                sys.exit(f"{case}: the columns differ: {sorted(set(ours) ^ set(official[case]))}")
            for column, value in ours.items():
                column_of_all = column.rpartition("_")[0]
                found = (difference(value, official[case][column]), f"{case} {column}")
                worst[column_of_all] = max(worst.get(column_of_all, (-1.0, "")), found)
    for column, (error, where) in worst.items():
        print(f"{column:24s} {error:.3g}" + (f"  at {where}" if error > TOLERANCE else ""))
    total = max(error for error, _ in worst.values())
    print(f"{len(cases)} pairs, {len(SCHEME.regions)} regions: worst difference {total:.3g}")
    return int(total > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
