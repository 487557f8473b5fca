"""Tiny cases in the BraTS-MET layout."""

from pathlib import Path

import nibabel as nib
import numpy as np

LPS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
RAS = np.array([[1.0, 0, 0, 0], [0, 1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])
SHAPE = (12, 14, 10)


def brain(seed: int = 0, shape: tuple[int, int, int] = SHAPE, dtype: type = np.int16) -> np.ndarray:
    """Noise of 1 … 999 in a box, 0 around it."""
    image = np.zeros(shape, dtype)
    inner = tuple(slice(2, n - 2) for n in shape)
    image[inner] = np.random.default_rng(seed).integers(1, 1000, image[inner].shape)
    return image


def lesions(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """An ET core of 8 voxels with one of NETC in 12 of SNFH, and a single ET voxel."""
    mask = np.zeros(shape, np.uint8)
    mask[4:6, 4:9, 4:6] = 2
    mask[4:6, 4:6, 4:6] = 3
    mask[4, 4, 4] = 1
    mask[8, 10, 6] = 3
    return mask


def save(path: Path, array: np.ndarray, affine: np.ndarray = LPS) -> Path:
    """Write a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(array, affine).to_filename(path)
    return path


def write_case(root: Path, case: str = "BraTS-MET-00001-000", affine: np.ndarray = LPS, **files: object) -> Path:
    """Its folder. ``t1n=array`` … ``seg=array`` replace a file's default, None leaves it out."""
    seed = sum(case.encode())
    arrays: dict[str, object] = {m: brain(seed + i) for i, m in enumerate(("t1n", "t1c", "t2w", "t2f"))}
    arrays["seg"] = lesions()
    for name, array in (arrays | files).items():
        if array is not None:
            save(root / case / f"{case}-{name}.nii.gz", array, affine)
    return root / case


def touch(root: Path, *names: str) -> None:
    """Make empty files below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
