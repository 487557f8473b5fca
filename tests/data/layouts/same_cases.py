"""The same cases in every layout."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from brats_lightning.core.labels import MODALITIES
from tests.data.tiny_cases import save, write_case

IDS = (
    "BraTS-MET-00001-000",
    "BraTS-MET-00001-001",
    "BraTS-MET-00002-000",
    "BraTS-MET-00003-000",
    "BraTS-MET-00004-000",
)
LAYOUTS = ("brats_mets", "nnunet", "datalist", "bids", "files")
CHANNELS = {"t1n": "T1", "t1c": "T1-Gd", "t2w": "T2w", "t2f": "FLAIR"}
LABELS = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": 3}  # 1 oedema, 2 necrosis
SUFFIXES = {"t1n": "T1w", "t1c": "ce-gadolinium_T1w", "t2w": "T2w", "t2f": "FLAIR", "seg": "dseg"}
PATTERNS = {
    "t1n": "scans/{patient}/{case}/{any}_T1.nii.gz",
    "t1c": "scans/{patient}/{case}/{any}_T1post.nii.gz",
    "t2w": "scans/{patient}/{case}/{any}_T2.nii.gz",
    "t2f": "scans/{patient}/{case}/{any}_FLAIR.nii.gz",
    "seg": "masks/{case}.nii.gz",
}


def copy(source: Path, target: Path) -> None:
    """Copy a file into a folder that is made if need be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def copy_renumbered(source: Path, target: Path) -> None:
    """Copy a mask with NETC 2 and SNFH 1."""
    image = nib.load(source)
    save(target, np.array([0, 2, 1, 3], np.uint8)[np.asanyarray(image.dataobj)], image.affine)


def bids_id(case: str) -> str:
    """``BraTS-MET-00001-000`` → ``sub-00001_ses-000``."""
    _, _, patient, timepoint = case.split("-")
    return f"sub-{patient}_ses-{timepoint}"


def write_layouts(root: Path, ids: Sequence[str] = IDS) -> dict[str, list[str]]:
    """Layout → the overrides that name its data."""
    entries = []
    for case in ids:
        folder = write_case(root / "brats_mets", case)
        files = {kind: folder / f"{case}-{kind}.nii.gz" for kind in (*MODALITIES, "seg")}
        for number, modality in enumerate(MODALITIES):
            copy(files[modality], root / f"nnunet/imagesTr/{case}_{number:04d}.nii.gz")
        copy_renumbered(files["seg"], root / f"nnunet/labelsTr/{case}.nii.gz")
        for kind, file in files.items():
            copy(file, root / f"datalist/data/{case}_{kind}.nii.gz")
            sub, ses = bids_id(case).split("_")
            place = "derivatives/lesions/" if kind == "seg" else ""
            copy(file, root / f"bids/{place}{sub}/{ses}/anat/{sub}_{ses}_{SUFFIXES[kind]}.nii.gz")
            name = PATTERNS[kind].format(patient=case.rpartition("-")[0], case=case, any=kind.upper())
            copy(file, root / "files" / name)
        image = [f"data/{case}_{modality}.nii.gz" for modality in MODALITIES]
        entries.append({"image": image, "label": f"./data/{case}_seg.nii.gz"})
    channels = {str(number): CHANNELS[modality] for number, modality in enumerate(MODALITIES)}
    write_json(root / "nnunet/dataset.json", {"channel_names": channels, "labels": LABELS, "file_ending": ".nii.gz"})
    write_json(root / "datalist/datalist.json", {"modality": channels, "training": entries})
    return {
        "brats_mets": ["data=brats_mets", f"data.root={root}/brats_mets"],
        "nnunet": ["data=nnunet", f"data.root={root}/nnunet"],
        "datalist": ["data=datalist", f"data.root={root}/datalist/datalist.json"],
        "bids": ["data=bids", f"data.root={root}/bids"],
        "files": ["data=files", f"data.root={root}/files"]
        + [f'data.files.{kind}="{pattern}"' for kind, pattern in PATTERNS.items()],
    }


def write_json(path: Path, content: object) -> Path:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
