"""Does one spacing help where cases differ in it? One network, trained on a mix of three grids with and without it.

    python -m tests.benchmarks.spacings --cases DIR --steps 2000 --seeds 3 [override of train …]

A training case is resampled to one of the three grids, a test case to each of them, in turn and by patient. Both arms
have the same cases, steps and seeds; they differ in `data.preprocessing.spacing` alone. Scores are computed in the grid
of each case. Without ``--cases`` phantoms are used. A run that is finished is not repeated.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from omegaconf import OmegaConf

from brats_lightning.config.resolvers import register_resolvers
from brats_lightning.core.labels import BRATS_METS
from brats_lightning.data.cases import Case, CaseError, examine
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.nifti import write_nifti
from brats_lightning.data.preprocessing import brain_box, working_mask
from brats_lightning.runtime.files import write_json
from brats_lightning.synthetic.phantom import PhantomSettings, make_phantoms, phantom_folder
from tests.benchmarks.arena.report import case_table, difference_cell, interval_note, mean_of, number, paired_difference
from tests.benchmarks.arena.runs import PROJECT, score_cases

# (z, y, x) in mm: SRI24's, and two that are common in native space.
GRIDS = ((1.0, 1.0, 1.0), (1.5, 0.859, 0.859), (1.0, 0.5, 0.5))
ARMS = {"as they are": "data.preprocessing.spacing=null", "one spacing": "data.preprocessing.spacing=median"}
SCORES = {"Dice": "dice_mean", "lesion Dice": "brats2024/lesion_dice_mean"}
RESAMPLES = 2000


def make_mix(
    cases: Sequence[Case], root: Path, test_share: float, label_map: dict[int, int] | None
) -> dict[str, list[str]]:
    """Write the cases below ``root`` on the three grids, cropped to the brain; their split.

    Version ``g`` of a patient's ``k``-th case is the timepoint ``3k + g`` of a new patient.

    Raises:
        CaseError: a case is at fault.
    """
    patients = sorted({case.patient for case in cases})
    tested = np.random.default_rng(0).permutation(patients)[: max(1, round(test_share * len(patients)))].tolist()
    if len(tested) == len(patients):
        raise ValueError(f"{len(patients)} patient(s) in --cases: at least two are needed, to train and to test")
    split: dict[str, list[str]] = {"train": [], "test": []}
    seen = dict.fromkeys(patients, 0)
    for case in cases:
        chosen = list(range(len(GRIDS))) if case.patient in tested else [len(split["train"]) % len(GRIDS)]
        for grid in chosen:
            name = f"MIX-{patients.index(case.patient):05d}-{len(GRIDS) * seen[case.patient] + grid:03d}"
            if not (root / name).is_dir():
                write_version(case, GRIDS[grid], root / name, label_map)
            split["test" if case.patient in tested else "train"].append(name)
        seen[case.patient] += 1
    return split


def write_version(
    case: Case, spacing: Sequence[float], folder: Path, label_map: dict[int, int] | None, scheme: Any = BRATS_METS
) -> None:
    """A case at another spacing (z, y, x), complete or not at all."""
    found = examine(case, scheme, label_map, tolerance=0.1)
    if found.problems:
        raise CaseError(found.problems)
    assert found.mask is not None
    transform = brain_box([*found.images.values(), found.mask]).resample(spacing)
    volumes = {name: np.rint(transform.sample(v.values, v.start)) for name, v in found.images.items()}
    volumes = {name: values.astype(np.int16) for name, values in volumes.items()}
    volumes["seg"] = working_mask(found.mask, transform, scheme)
    z, y, x = transform.spacing
    partial = folder.with_name(f".{folder.name}")
    for name, values in volumes.items():
        image = nib.Nifti1Image(values.T, np.diag([-x, -y, z, 1]))
        partial.mkdir(parents=True, exist_ok=True)
        write_nifti(partial / f"{folder.name}-{name}.nii.gz", image, level=1)
    partial.rename(folder)


def run(folder: Path, split: Path, cases: Path, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Train, predict the test cases and score them in their own grids; case → score → value."""
    scores = folder / "scores.json"
    if not scores.exists():
        command = [sys.executable, "-m", "brats_lightning.train", "data=brats_mets", f"data.root={cases}"]
        command += [f"data.split_file={split}", f"seed={seed}", f"hydra.run.dir={folder}", "test_on=null"]
        command += [f"paths.cache_dir={folder.parents[1]}/cache", "logger=none", *overrides]
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").exists() or not (folder / "checkpoints/best.ckpt").exists():
            path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
            with (folder / "log.txt").open("w") as log:
                done = subprocess.run(
                    command, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=subprocess.STDOUT
                )
            if done.returncode:
                raise SystemExit(f"error: a training failed; all of it is in {folder / 'log.txt'}")
        cfg: Any = OmegaConf.load(folder / "config.yaml")
        write_json(scores, score_cases(cfg, folder / "checkpoints/best.ckpt", folder / "masks"))
    return json.loads(scores.read_text())


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each grid, and for all, the scores of both arms and their paired difference with its interval."""
    first, second = ARMS
    lines = []
    for title, score in SCORES.items():
        lines += [f"| {title}, grid (z × y × x in mm) | cases | {first} | {second} | difference |", "|---" * 5 + "|"]
        for number_of_grid, spacing in [*enumerate(GRIDS), (None, None)]:
            arms = {arm: [_of_grid(r, number_of_grid) for r in results if r["contestant"] == arm] for arm in ARMS}
            cases = list(arms[first][0]["scores"])
            patients = [case.rpartition("-")[0] for case in cases]
            difference = paired_difference(
                case_table(arms[second], score), case_table(arms[first], score), patients, RESAMPLES
            )
            cells = ["all" if spacing is None else " × ".join(f"{s:g}" for s in spacing), str(len(cases))]
            cells += [*(number(mean_of(arms[arm], score)) for arm in ARMS), difference_cell(*difference)]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    seeds = len({result["seed"] for result in results})
    tested = len({case.rpartition("-")[0] for case in results[0]["scores"]})
    note = f"{second} minus {first}, {interval_note(tested)}; {seeds} seed(s), averaged first"
    return "\n".join([*lines, note]) + "\n"


def _of_grid(result: dict[str, Any], grid: int | None) -> dict[str, Any]:
    scores = {
        case: values
        for case, values in result["scores"].items()
        if grid is None or int(case.rpartition("-")[2]) % len(GRIDS) == grid
    }
    return result | {"scores": scores}


def as_label_map(text: str) -> dict[int, int]:
    """``4:3,5:0`` → ``{4: 3, 5: 0}``."""
    return {int(old): int(new) for old, new in (pair.split(":") for pair in text.split(","))}


def main(arguments: Sequence[str] | None = None) -> str:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="folder of labelled cases with BraTS names; none: phantoms")
    parser.add_argument("--label-map", type=as_label_map, help="label in their masks → class index, e.g. 4:3")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each training")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each arm")
    parser.add_argument("--test-share", type=float, default=0.4, help="fraction of the patients that are tested")
    parser.add_argument("--experiment", default="cpu_small", help="recipe")
    parser.add_argument("--output", type=Path, default=Path("outputs/spacings"), help="folder of all files")
    parser.add_argument("overrides", nargs="*", help="overrides of train for both arms, e.g. model.stem=2")
    options = parser.parse_args(arguments)
    output = options.output.absolute()
    register_resolvers()
    if options.cases is None:
        settings = PhantomSettings(cases=20, shape=(64, 72, 56))
        options.cases = make_phantoms(phantom_folder(output / "phantoms", settings), settings)
    cases = [case for case in find_cases(options.cases, setting="--cases") if case.mask is not None]
    split = make_mix(cases, output / "cases", options.test_share, options.label_map)
    write_json(output / "split.json", split)
    fixed = [f"experiment={options.experiment}", f"trainer.max_steps={options.steps}", "trainer.max_time=null"]
    fixed += ["trainer.val_check_interval=1000000", *options.overrides]
    results = []
    for seed in range(options.seeds):
        for arm, override in ARMS.items():
            folder = output / "runs" / f"{arm.replace(' ', '_')}_{seed}"
            scores = run(folder, output / "split.json", output / "cases", seed, [*fixed, override])
            results.append({"contestant": arm, "seed": seed, "scores": scores})
            dice = mean_of(results[-1:], "dice_mean")
            print(f"{arm}, seed {seed}: Dice {'–' if math.isnan(dice) else f'{dice:.3f}'}", flush=True)
    text = table(results)
    (output / "table.md").write_text(text)
    print(text)
    return text


if __name__ == "__main__":
    main()
