"""What a command says of the masks that it made: lesions and volumes of each case, and what looks wrong."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from brats_lightning.core.components import label_components
from brats_lightning.core.geometry import nonzero_box
from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.data.cases import CaseError, Problem, problem_table
from brats_lightning.data.probabilities import Probabilities
from brats_lightning.inference.plausibility import ADVICE, implausible
from brats_lightning.runtime.console import show, table_of
from brats_lightning.runtime.files import make_folder, write_json

log = logging.getLogger(__name__)


def case_summary(
    labels: UInt8[np.ndarray, "z y x"], probabilities: Probabilities, scheme: LabelScheme
) -> dict[str, Any]:
    """The `region_summary` of a case under ``regions``, and the fraction of its box that is ``labelled``."""
    labelled = round(np.count_nonzero(labels) / max(1, labels.size), 6)
    return {"regions": region_summary(labels, probabilities, scheme), "labelled": labelled}


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


def conclude(
    cases: Mapping[str, Mapping[str, Any]],
    existing: Sequence[str],
    problems: Sequence[Problem],
    scheme: LabelScheme,
    output: Path,
    file: Path | None,
    skip: bool,
) -> dict[str, Any]:
    """Show how many masks there are, lesions and volumes of the cases, what is implausible about them, and problems.

    Args:
        cases: case → its `case_summary` and the ``seconds`` it took.
        existing: ids of cases whose masks were made earlier.
        problems: of the cases left out.
        scheme: the classes.
        output: folder of the masks.
        file: to write the summary to as JSON, if any.
        skip: only show problems.

    Returns:
        The summary: ``cases``, ``existing`` and ``problems``.

    Raises:
        CaseError: there are problems.
    """
    summary = {"cases": dict(cases), "existing": list(existing), "problems": list(map(asdict, problems))}
    _report(cases, len(existing), problems, scheme, output)
    if file is not None:
        write_json(make_folder(file.parent) / file.name, summary)
    if problems and not skip:
        raise CaseError(problems)
    if problems:
        show(problem_table(problems))
    return summary


def _report(
    cases: Mapping[str, Mapping[str, Any]],
    existing: int,
    problems: Sequence[Problem],
    scheme: LabelScheme,
    output: Path,
) -> None:
    titles = [f"{region.upper()} {what}" for region in scheme.regions for what in ("lesions", "volume (ml)")]
    rows = []
    for name, case in cases.items():
        cells = [cell for r in case["regions"].values() for cell in (r["lesions"], f"{r['volume_ml']:.2f}")]
        rows.append([name, *cells, f"{case['seconds']:.0f}"])
    if rows:
        show(table_of(["case", *titles, "seconds"], rows))
    left_out = len({problem.case for problem in problems})
    log.info("masks: %d made, %d made earlier, %d cases left out · %s", len(cases), existing, left_out, output)
    regions, shares = ({name: case[key] for name, case in cases.items()} for key in ("regions", "labelled"))
    if doubts := implausible(regions, shares):
        log.warning("implausible masks: %s. Please %s", "; ".join(doubts), ADVICE)
