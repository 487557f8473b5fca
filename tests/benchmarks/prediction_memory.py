"""Memory of a prediction of large cases, by an ensemble and by one network."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.benchmarks.measure import Goal, Options, Row
from tests.benchmarks.start import environment
from tests.tiny_models import voxelwise

SHAPE = (512, 512, 176)
LABELS = ("netc", "snfh", "et", "rc")

_PROGRAM = """
from brats_lightning.predict import main
from brats_lightning.runtime.memory import peak_memory
main()
print(peak_memory())
"""


def rows(options: Options) -> Iterator[Row]:
    scratch = options.scratch / "large"
    root = _cases(scratch / "in")
    files = [_member(scratch / f"{number}.ckpt", number) for number in range(5)]

    def peak(count: int) -> float:
        settings = [f"ckpt=[{','.join(map(str, files[:count]))}]", f"input={root}", f"output={scratch}/out"]
        settings += ["device=cpu", "precision=32", "inference.overlap=0"]
        command = [sys.executable, "-c", _PROGRAM, *settings, "overwrite=true", f"paths.outputs={scratch}/outputs"]
        done = subprocess.run(command, env=environment(), check=True, capture_output=True, text=True)
        return int(done.stdout.splitlines()[-1]) / 2**30

    yield Row(
        "prediction memory",
        "memory of a prediction by five networks",
        "GiB",
        {"ours": lambda: peak(5), "by one network": lambda: peak(1)},
        goals=[Goal(at_most=6)],
        repeats=1,
        note="peak RSS of `predict` on a CPU in 32 bits; two cases of 512×512×176 voxels, four sequences, four classes",
    )


def _cases(root: Path) -> Path:
    """Two cases of random voxels, one block of which is bright; stored without compression, which takes minutes."""
    generator = np.random.default_rng(0)
    for case in ("case-001", "case-002"):
        (root / case).mkdir(parents=True, exist_ok=True)
        for sequence in ("t1n", "t1c", "t2w", "t2f"):
            image = generator.integers(1, 500, SHAPE, np.int16)
            image[200:220, 200:220, 80:90] = 1000
            file = root / case / f"{case}-{sequence}.nii"
            nib.Nifti1Image(image, np.diag([-0.5, -0.5, 1, 1])).to_filename(file)
            file.rename(file.with_name(f"{file.name}.gz"))
    return root


def _member(path: Path, number: int) -> Path:
    """ET where all sequences are bright."""
    weight = [[0.0] * 4, [0.0] * 4, [0.0] * 4, [10.0] * 4, [0.0] * 4]
    bias = [0.0, -50.0, -50.0, -30.0 - number, -50.0]
    settings = {"modalities": ["t1n", "t1c", "t2w", "t2f"], "window": [128, 128, 128]}
    return voxelwise(path, weight, bias, labels=LABELS, **settings)
