"""Predicting one case: its images are read, its probabilities computed and its files written."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import nonzero_box
from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.data.cases import Case, Problem, examine, required, used_modalities
from brats_lightning.data.nifti import Header, image_like, write_nifti
from brats_lightning.inference.ensemble import Ensemble, Probabilities
from brats_lightning.inference.windows import Advance

log = logging.getLogger(__name__)


def infer(
    case: Case, ensemble: Ensemble, tolerance: float, advance: Advance | None = None
) -> Probabilities | list[Problem]:
    """Probabilities of one case, or what is wrong with its images; only the images that are needed are read."""
    images = {name: case.images[name] for name in used_modalities(case, ensemble.modalities, ensemble.optional)}
    examination = examine(replace(case, images=images, mask=None), ensemble.scheme, None, tolerance)
    if problems := required(examination.problems, tuple(images), need_mask=False):
        return problems
    for remark in examination.remarks:
        log.warning("%s: %s", case.id, remark)
    prepared = ensemble.prepare(examination.images)
    del examination, images  # frees the volumes, of which only the quantised copies are needed
    return ensemble(prepared, advance)


def write_mask(path: Path, labels: np.ndarray, header: Header, description: str = "") -> None:
    """Write labels (x, y, z) as uint8 with an image's shape, affine and header codes; whole or not at all."""
    write_nifti(path, image_like(header, labels.reshape(header.shape), description=description))


def write_probabilities(path: Path, probabilities: Probabilities, header: Header, description: str = "") -> None:
    """Write class probabilities (x, y, z, k) on the original grid as uint16 in steps of 1/65535, exact to 8e-6.

    The header's slope scales them back to 0 … 1. The file has half the size of float32.
    """
    restore = probabilities.transform.restore
    steps = [
        restore(np.rint(p * 65535).astype(np.uint16), fill=65535 * (k == 0)) for k, p in enumerate(probabilities.values)
    ]
    image = image_like(header, np.stack(steps, axis=-1), 1 / 65535, description)
    write_nifti(path, image)


def region_summary(
    labels: UInt8[np.ndarray, "z y x"], probabilities: Probabilities, scheme: LabelScheme
) -> dict[str, Any]:
    """Region → number of its lesions (26-connected components), its volume, and how sure of each lesion the network is.

    Under ``confidence``, the largest lesion first: its ``volume_mm3``, and the ``peak`` and ``mean`` over its voxels of
    the region's probability, which is the sum over the region's classes. Of an ensemble also ``disagreement``, the mean
    over its voxels of the standard deviation over the models of the probability of any tumour: 0 if all agree, 0.5 if
    half of them are sure and the others see nothing.

    Args:
        labels: class indices, after post-processing.
        probabilities: of the classes.
        scheme: the classes.
    """
    found = {}
    box = nonzero_box(labels)
    part, voxel = labels[box], math.prod(probabilities.transform.spacing)
    for region, classes in scheme.regions.items():
        lesions, n = label_components(in_classes(part, classes))
        within = lesions > 0
        number = lesions[within] - 1
        probability = probabilities.values[(list(classes), *box)].sum(axis=0)[within]
        voxels = np.bincount(number, minlength=n)
        means = {"mean": np.bincount(number, probability, minlength=n) / voxels}
        if probabilities.spread is not None:
            means["disagreement"] = np.bincount(number, probabilities.spread[box][within], minlength=n) / voxels
        peak = np.zeros(n, np.float32)
        np.maximum.at(peak, number, probability)
        confidence = [
            {
                "volume_mm3": round(int(voxels[i]) * voxel, 3),
                "peak": round(float(peak[i]), 4),
                **{name: round(float(values[i]), 4) for name, values in means.items()},
            }
            for i in np.argsort(-voxels, kind="stable").tolist()
        ]
        volume = round(len(number) * voxel / 1000, 4)
        found[region] = {"lesions": n, "volume_ml": volume, "confidence": confidence}
    return found
