"""Implanted phantoms: the metastases of the phantoms, grown into the healthy tissue of real scans.

Anatomy, vessels, bias and noise are a patient's, and every lesion's outline is known to the voxel. The made cases are
derived from the scans and fall under their terms of use.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brats_lightning.core.labels import MODALITIES, as_label_map
from brats_lightning.data.cases import Case
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.nifti import image_like, read_header, write_nifti
from brats_lightning.synthetic.case_set import PhantomError, check, generator, make_once, own_folder
from brats_lightning.synthetic.lesions import lesion_volumes, place_lesions
from brats_lightning.synthetic.painting import paint
from brats_lightning.synthetic.scan import Scan, read_scan

log = logging.getLogger(__name__)

VERSION = 2  # of the generator
_FIRST_TIMEPOINT = 100  # of the made cases: beyond any real one


@dataclass(frozen=True)
class ImplantSettings:
    """How scans become implanted phantoms.

    Attributes:
        background: folder with the scans, in either of BraTS's namings. Only read.
        label_map: label in their masks → class index, e.g. ``{4: 3}`` for BraTS 2022 and older. The made masks are in
            this project's classes: 1 NETC, 2 SNFH, 3 ET.
        cases: implanted versions of each scan.
        unlabelled: ``"skip"`` scans without a mask, or ``"include"`` them. An unlabelled scan's own tumour is avoided
            by its likely extent but counts as background, so include only scans known to be free of tumour.
        lesions: mean number per case; None for the field's distribution.
        seed: of everything random.
    """

    background: Path | str
    label_map: Mapping[int, int] | None = None
    cases: int = 5
    unlabelled: str = "skip"
    lesions: int | float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", Path(self.background).expanduser().absolute())
        object.__setattr__(self, "label_map", as_label_map("data.source.label_map", self.label_map))
        object.__setattr__(self, "lesions", None if self.lesions is None else float(self.lesions))
        rules = {
            "cases": (1 <= self.cases <= 900, "1 … 900"),
            "unlabelled": (self.unlabelled in ("skip", "include"), "skip or include"),
            "lesions": (self.lesions is None or self.lesions >= 1, "null or a mean of at least 1"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        check("implant", self, rules)

    def scans(self) -> list[Case]:
        """The cases to implant into, sorted by id."""
        found = find_cases(self.background, setting="data.background")
        scans = [case for case in found if case.mask is not None or self.unlabelled == "include"]
        if not scans:
            raise PhantomError(f"none of the {len(found)} cases in {self.background} has a mask; see data.unlabelled")
        return scans

    def to_dict(self, scans: list[Case]) -> dict[str, Any]:
        """JSON-able, with the generator's version and what the scans' files were."""
        values = asdict(self) | {
            "background": str(self.background),
            "label_map": sorted(map(list, (self.label_map or {}).items())),
        }
        files = {case.id: [[p.stat().st_size, p.stat().st_mtime_ns] for p in case.files.values()] for case in scans}
        return {"version": VERSION, **values, "files": files}


def implanted_cases(parent: str | Path, **settings: Any) -> list[Case]:
    """The cases of a set with these `ImplantSettings`, made on first use in a folder of its own below ``parent``.

    A made case's patient is its scan's, so that all versions of a patient's scans are in the same part of every split.

    Raises:
        PhantomError: bad settings, or nothing to implant into.
        CaseError: a scan is at fault.
    """
    wanted = ImplantSettings(**settings)
    scans = wanted.scans()
    described = wanted.to_dict(scans)
    folder = own_folder(parent, "implanted", described)
    if not folder.exists():
        log.info("implanting into %d scans, %d times each, once, in %s", len(scans), wanted.cases, folder)
    make_once(folder, described, len(scans), partial(_write_versions, scans=scans, settings=wanted))
    return made_implanted(parent, **settings)


def made_implanted(parent: str | Path, **settings: Any) -> list[Case]:
    """The cases of `implanted_cases`, which must be there already: nothing is written.

    Raises:
        FileNotFoundError: the set was not made, or its scans have changed, or either is elsewhere.
        PhantomError: bad settings.
    """
    wanted = ImplantSettings(**settings)
    scans = wanted.scans()
    folder = own_folder(parent, "implanted", wanted.to_dict(scans))
    names = version_names(scans, wanted.cases)
    patients = {name: scan.patient for scan, versions in zip(scans, names, strict=True) for name in versions}
    return [replace(case, patient=patients[case.id]) for case in find_cases(folder)]


def version_names(scans: list[Case], cases: int) -> list[list[str]]:
    """Ids of each scan's versions: further timepoints of its patient, in the newer naming."""
    before: dict[str, int] = {}
    names = []
    for scan in scans:
        patient = scan.patient
        if not re.fullmatch(r".+-\d+", patient):  # only of such a name the timepoint can be told
            patient = re.sub(r"_(\d+)$", r"-\1", patient)
            patient = patient if re.fullmatch(r".+-\d+", patient) else f"{patient}-0"
        first = before.get(patient, _FIRST_TIMEPOINT)
        before[patient] = first + cases
        if first + cases > 1000:
            raise PhantomError(f"patient {scan.patient} would have over 900 implanted cases; lower data.source.cases")
        names.append([f"{patient}-{timepoint:03d}" for timepoint in range(first, first + cases)])
    return names


def _write_versions(folder: Path, job: int, scans: list[Case], settings: ImplantSettings) -> None:
    """All versions of one scan, which is read and understood once."""
    scan = read_scan(scans[job], settings.label_map)
    for version, name in enumerate(version_names(scans, settings.cases)[job]):
        case = job * settings.cases + version
        images, labels = implant(scan, settings, case)
        (folder / name).mkdir()
        for suffix, values in (*images.items(), ("seg", labels)):
            header = read_header(scans[job].files.get(suffix, scans[job].images["t1c"]))
            image = image_like(header, scan.transform.restore(values))
            write_nifti(folder / name / f"{name}-{suffix}.nii.gz", image, level=1)


def implant(scan: Scan, settings: ImplantSettings, case: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The images by modality and the labels of case ``case``, in the scan's box."""
    random = partial(generator, settings.seed, 3, case)
    volumes = lesion_volumes(settings.seed, case, settings.lesions)
    labels, lesions, _ = place_lesions(random(0), random(1), scan.brain, volumes, cavity=False)
    images = {name: paint(scan, lesions, name, random(2, i)) for i, name in enumerate(MODALITIES)}
    return images, np.where(scan.labels > 0, scan.labels, labels)
