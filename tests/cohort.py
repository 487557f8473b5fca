"""A folder of phantoms with everything that BraTS-METS has had since 2025, and its faults."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

from brats_lightning.data.cases import Case
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.synthetic.phantom import PhantomSettings, make_phantoms

SETTINGS = PhantomSettings(
    cases=40,
    shape=(32, 36, 36),
    lesions=2,
    seed=2,
    resection_cavity=0.15,
    spacings=((1, 1, 1), (0.859, 0.859, 1.5), (0.5, 0.5, 1)),
    without_t2w=0.2,
    unlabelled=0.13,
    empty=0.1,
)
CORRECTED, FAULTY = 2, 3


def make_cohort(root: Path) -> dict[str, list[str]]:
    """``root/cases``, and ``root/masks`` with corrected masks; the ids of the corrected and of the faulty cases.

    Faulty are a truncated T1c, a mask with the label 6 and a shifted FLAIR.
    """
    cases = find_cases(make_phantoms(root / "cases", SETTINGS, workers=0))
    labelled = [case for case in cases if case.mask is not None]
    chosen = {"corrected": labelled[:CORRECTED], "faulty": labelled[CORRECTED : CORRECTED + FAULTY]}
    (root / "masks").mkdir()
    for case in chosen["corrected"]:
        shutil.copy(case.files["seg"], root / "masks" / f"{case.id}-seg.nii.gz")
        rewrite(case, "seg", np.zeros_like)  # what it replaces is seen to be unused
    truncated, labels, shifted = chosen["faulty"]
    content = truncated.files["t1c"].read_bytes()
    truncated.files["t1c"].write_bytes(content[: len(content) // 2])
    rewrite(labels, "seg", lambda mask: np.where(np.arange(mask.size).reshape(mask.shape) == 9, 6, mask))
    rewrite(shifted, "t2f", lambda image: image, shift=5)
    return {kind: [case.id for case in some] for kind, some in chosen.items()}


def rewrite(case: Case, name: str, change, shift: float = 0) -> None:
    """Replace a file's voxels, or move it by ``shift`` mm."""
    image = nib.load(case.files[name])
    affine = image.affine.copy()
    affine[0, 3] += shift
    values = change(np.asarray(image.dataobj)).astype(image.get_data_dtype())
    nib.Nifti1Image(values, affine).to_filename(case.files[name])
