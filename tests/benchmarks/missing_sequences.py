"""What a missing sequence costs, for networks trained with and without sequence dropout.

    python -m tests.benchmarks.missing_sequences data.root=DIR --test CASE CASE --steps 1500 --seeds 3 --output DIR

Each network trains on the cases that are not in ``--test`` with T2w and FLAIR optional, and predicts the test cases as
they are and without each of the two. Printed is the mean Dice of WT, TC and ET, and what is lost without a sequence, a
mean over seeds and cases with a bootstrap interval of 95 % over the pairs of seed and case. Further ``key=value`` are
overrides of every training. What was trained before is not trained again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np

from brats_lightning.core.labels import BRATS_METS, apply_label_map, in_classes
from brats_lightning.data.cases import Case
from brats_lightning.data.layouts.brats import find_cases

OPTIONAL = ("t2w", "t2f")
ARMS = {"without dropout": 0.0, "with dropout": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="data.root=DIR and others")
    parser.add_argument("--test", nargs="+", required=True, metavar="CASE", help="cases that no network trains on")
    parser.add_argument("--steps", type=int, default=1500, help="of each training, default %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="networks of each kind, default %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time, one thread each")
    parser.add_argument("--output", type=Path, default=Path("outputs/missing_sequences"), help="default %(default)s")
    arguments = parser.parse_args()
    root = dict(override.split("=", 1) for override in arguments.overrides)["data.root"]
    cases = {case.id: case for case in find_cases(root) if case.mask}
    tested = [cases[name] for name in arguments.test]
    output = arguments.output.resolve()
    inputs = {missing: _inputs(output / f"in-{missing}", tested, missing) for missing in (None, *OPTIONAL)}
    split = output / "split.json"
    split.write_text(json.dumps({"train": [name for name in cases if name not in arguments.test]}))

    def run(job: tuple[str, int]) -> dict[str | None, list[float]]:
        arm, seed = job
        folder = output / f"{arm.replace(' ', '_')}-{arguments.steps}-{seed}"
        if not (folder / "checkpoints/last.ckpt").is_file() or not (folder / "metrics.json").is_file():
            _run("train", folder, *_settings(arm, seed, arguments.steps, split, folder), *arguments.overrides)
        found = {}
        for missing, given in inputs.items():
            masks = folder / f"masks-{missing}"
            _run("predict", folder, f"ckpt={folder}/checkpoints/last.ckpt", f"input={given}", f"output={masks}")
            found[missing] = [_dice(masks / f"{case.id}.nii.gz", case) for case in tested]
        return found

    jobs = [(arm, seed) for seed in range(arguments.seeds) for arm in ARMS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = dict(zip(jobs, pool.map(run, jobs), strict=True))
    for arm in ARMS:
        values = {m: np.array([results[arm, seed][m] for seed in range(arguments.seeds)]) for m in inputs}
        print(f"{arm}: Dice with all sequences {_interval(values[None])}")
        for missing in OPTIONAL:
            print(f"    lost without {missing}: {_interval(values[None] - values[missing])}")
    plain, dropped = ([results[arm, seed] for seed in range(arguments.seeds)] for arm in ARMS)
    for missing in OPTIONAL:
        losses = [np.array([np.subtract(r[None], r[missing]) for r in runs]) for runs in (plain, dropped)]
        print(f"dropout lowers the loss without {missing} by {_interval(losses[0] - losses[1])}")


def _settings(arm: str, seed: int, steps: int, split: Path, folder: Path) -> list[str]:
    return [
        *("data=brats_mets", "experiment=cpu_small", f"data.optional=[{','.join(OPTIONAL)}]", f"seed={seed}"),
        *(f"data.split_file={split}", f"augmentation.sequence_dropout={ARMS[arm]}", f"trainer.max_steps={steps}"),
        *("trainer.max_time=null", "test_on=null", f"hydra.run.dir={folder}", f"paths.cache_dir={folder.parent}/cache"),
    ]


def _run(command: str, folder: Path, *arguments: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{command}.log").open("a") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        full = [sys.executable, "-m", f"brats_lightning.{command}", *arguments]
        if subprocess.run(full, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"{command} failed; see {log.name}")


def _inputs(folder: Path, cases: Sequence[Case], missing: str | None) -> Path:
    """Links to the images of some cases, without one sequence."""
    for case in cases:
        (folder / case.id).mkdir(parents=True, exist_ok=True)
        for name, path in case.images.items():
            link = folder / case.id / path.name
            if name != missing and not link.is_symlink():
                link.symlink_to(path.resolve())
    return folder


def _dice(prediction: Path, case: Case) -> float:
    """Mean Dice of WT, TC and ET; a 4 of BraTS 2022 and older is ET."""
    label_map = {4: 3}
    assert case.mask is not None  # only such cases are taken
    truth = apply_label_map(np.asanyarray(nib.load(case.mask).dataobj).astype(np.int64), label_map)
    found = np.asanyarray(nib.load(prediction).dataobj)
    values = []
    for classes in BRATS_METS.regions.values():
        a, b = in_classes(truth, classes), in_classes(found, classes)
        total = int(a.sum()) + int(b.sum())
        values.append(2 * int((a & b).sum()) / total if total else 1.0)
    return float(np.mean(values))


def _interval(values: np.ndarray, draws: int = 10_000) -> str:
    """``mean [low, high]`` of the values of all seeds and cases."""
    flat = values.ravel()
    means = flat[np.random.default_rng(0).integers(len(flat), size=(draws, len(flat)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{flat.mean():.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
