"""From files to cases: what the layouts share."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from brats_lightning.core.labels import MODALITIES
from brats_lightning.data.cases import Case, Problem, examples, patient_and_timepoint, surplus
from brats_lightning.data.folders import stem

log = logging.getLogger(__name__)


def root_folder(root: Path | str, layout: str, setting: str = "data.root") -> Path:
    """The folder of a data set; ``layout`` says what is expected in it.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(root).expanduser()
    if not os.path.isdir(folder):  # noqa: PTH112  # Path's raises where a folder above may not be read
        raise FileNotFoundError(f"{setting}={root} is not a folder; expected {layout}")
    return folder


def no_case(root: Path | str, there: Sequence[Path], layout: str, setting: str = "data.root") -> ValueError:
    """The error of a data set in which there is no case, only other NIfTI files."""
    files = "1 NIfTI file with another name" if len(there) == 1 else f"{len(there)} NIfTI files with other names"
    other = f" ({files}: {examples(there)})" if there else ""
    return ValueError(f"no case in {setting}={root}{other}; expected {layout}")


def tell_strays(root: Path, strays: Sequence[Path], layout: str) -> None:
    """Warn of NIfTI files that belong to no case: named otherwise than expected, they may be cases left out."""
    if strays:
        one = len(strays) == 1
        belong = f"{len(strays)} NIfTI file{'s' * (not one)} in {root} belong{'s' * one} to no case"
        tell_once(f"{belong} and {'is' if one else 'are'} left out: {examples(strays)}; expected {layout}")


@cache  # the cases are listed more than once in a run
def tell_once(message: str) -> None:
    """Log a warning, the first time."""
    log.warning("%s", message)


def assembled(
    case: str, files: Mapping[str, Sequence[Path]], mask_name: str, faults: Iterable[Problem] = (), **more: Any
) -> Case:
    """A case of files by modality, the mask under ``seg``. The first of each is taken, any further one is a fault.

    Args:
        case: its id.
        files: the files.
        mask_name: as in `Case`, with any NIfTI ending.
        faults: further ones.
        more: of the fields of `Case`.
    """
    patient, timepoint = patient_and_timepoint(case)
    further = [surplus(case, kind, path, paths[0]) for kind, paths in files.items() for path in paths[1:]]
    settings = {
        "patient": patient,
        "timepoint": timepoint,
        "images": {modality: files[modality][0] for modality in MODALITIES if files.get(modality)},
        "mask": next(iter(files.get("seg", ())), None),
        "mask_name": f"{stem(mask_name)}.nii.gz",
        "faults": (*faults, *further),
    }
    return Case(case, **settings | more)
