"""What is worked on: a folder of cases that everybody reads, and our own data module on it."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import nibabel as nib
import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.build import build_data
from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.core.labels import MODALITIES
from brats_lightning.data.cases import Case
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.synthetic.phantom import PhantomSettings, make_phantoms, phantom_folder
from tests.benchmarks.measure import Options

if TYPE_CHECKING:
    from brats_lightning.data.datamodule import CaseData

AT_MOST = 5  # cases that are worked on; more only take longer
Result = TypeVar("Result")


def labelled_cases(options: Options) -> list[Case]:
    """The first cases with all modalities and a mask, linked below the scratch folder under the names of today.

    A mask with the label 4 of BraTS 2022 and older is written anew with 3, so that nobody needs a label map.
    """
    root = options.scratch / "cases"
    if not root.is_dir():
        found = [case for case in find_cases(options.cases) if case.mask and set(case.images) == set(MODALITIES)]
        partial = options.scratch / "cases.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for case in found[:AT_MOST]:
            folder = partial / case.id
            folder.mkdir(parents=True)
            for name, path in case.images.items():
                (folder / f"{case.id}-{name}.nii.gz").symlink_to(path.resolve())
            _take_mask(case.mask, folder / f"{case.id}-seg.nii.gz")
        partial.rename(root)
    return find_cases(root)


def _take_mask(path: Path | None, target: Path) -> None:
    image = nib.load(path)
    mask = np.asanyarray(image.dataobj)
    if 4 not in mask:
        target.symlink_to(Path(path).resolve())
        return
    nib.save(nib.Nifti1Image(np.where(mask == 4, 3, mask).astype(np.uint8), image.affine), target)


def config(*overrides: str) -> DictConfig:
    """``conf/train.yaml`` with overrides, as the command line composes it."""
    register_resolvers()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [*overrides, "hydra/job_logging=none"], return_hydra_config=True)
    from hydra.core.hydra_config import HydraConfig

    OmegaConf.set_struct(cfg, False)
    cfg.hydra.runtime.output_dir, cfg.hydra.runtime.choices = ".", {"model": "model", "loss": "loss"}
    HydraConfig.instance().set_config(cfg)  # resolvers look there
    cfg.pop("hydra")
    return resolved(cfg)


def case_data(root: Path, cache: Path, *overrides: str) -> "CaseData":
    """Our data module on a folder of cases, in training."""
    cfg = config("data=brats_mets", f"data.root={root}", f"paths.cache_dir={cache}", "data.workers=0", *overrides)
    data = build_data(cfg)
    data.trainer = SimpleNamespace(training=True)  # what it asks of a trainer as a batch is transferred
    return data


def tiny_cases(scratch: Path, count: int) -> Path:
    """A folder of ``count`` cases: hard links to twelve tiny phantoms, each a patient of its own."""
    root = scratch / f"tiny-{count}"
    if root.is_dir():
        return root
    settings = PhantomSettings(cases=12, shape=(40, 48, 32))
    phantoms = find_cases(make_phantoms(phantom_folder(scratch, settings), settings))
    partial = scratch / f"tiny-{count}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for i in range(count):
        case = f"BraTS-MET-{10001 + i}-000"
        folder = partial / case
        folder.mkdir(parents=True)
        for name, path in phantoms[i % len(phantoms)].files.items():
            os.link(path, folder / f"{case}-{name}.nii.gz")
    partial.rename(root)
    return root


def bytes_below(folder: Path) -> int:
    """Size of all files."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def elsewhere(function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of a module's function, computed in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def probed_training(options: Options, root: Path, *overrides: str, step: int = 1) -> dict[str, float]:
    """A training of tiny patches, ended after ``step`` steps: see `Probe`, but with the ``seconds`` since its start.

    What it prints goes to ``probed.log`` in the scratch folder.
    """
    file = options.scratch / "probe.json"
    file.unlink(missing_ok=True)
    probe = f"+callbacks.probe={{_target_:tests.benchmarks.probe.Probe,file:{file},step:{step}}}"
    command = [sys.executable, "-m", "brats_lightning.train", "data=brats_mets", f"data.root={root}", probe]
    command += [f"paths.cache_dir={options.scratch / 'tiny-cache'}", f"hydra.run.dir={options.scratch / 'run'}"]
    command += ["sampling.size=[32,32,32]", "trainer.accelerator=cpu", "seed=0", *overrides]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with (options.scratch / "probed.log").open("w") as log:
        start = time.time()
        subprocess.run(command, cwd=options.scratch, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    values = json.loads(file.read_text())
    return {"seconds": values["time"] - start, "memory": values["memory"], "worker": values["worker"]}
