"""Predicting one case: its images are read, its probabilities computed and its mask written."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from brats_lightning.data.cases import Case, Problem, examine, required, used_modalities
from brats_lightning.data.nifti import Header, image_like, write_nifti
from brats_lightning.data.probabilities import Probabilities
from brats_lightning.inference.ensemble import Ensemble
from brats_lightning.inference.windows import Advance

log = logging.getLogger(__name__)


def infer(
    case: Case, ensemble: Ensemble, tolerance: float, advance: Advance | None = None
) -> Probabilities | list[Problem]:
    """Probabilities of one case, or what is wrong with its images; only the images that are needed are read.

    They are rounded as a file of them would be, so that masks decoded from such files are the same.
    """
    images = {name: case.images[name] for name in used_modalities(case, ensemble.modalities, ensemble.optional)}
    examination = examine(replace(case, images=images, mask=None), ensemble.scheme, None, tolerance)
    if problems := required(examination.problems, tuple(images), need_mask=False):
        return problems
    for remark in examination.remarks:
        log.warning("%s: %s", case.id, remark)
    prepared = ensemble.prepare(examination.images)
    del examination, images  # frees the volumes, of which only the quantised copies are needed
    return ensemble(prepared, advance).rounded()


def write_mask(path: Path, labels: np.ndarray, header: Header, description: str = "") -> None:
    """Write labels (x, y, z) as uint8 with an image's shape, affine and header codes; whole or not at all."""
    write_nifti(path, image_like(header, labels.reshape(header.shape), description=description))
