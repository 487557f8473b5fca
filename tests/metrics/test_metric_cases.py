"""The official programs' own output for stored pairs, where ``BRATS_METRIC_CASES`` names their folder."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS
from brats_lightning.metrics.official import score_case

FOLDER = Path(os.environ.get("BRATS_METRIC_CASES", ""))
pytestmark = pytest.mark.skipif("BRATS_METRIC_CASES" not in os.environ, reason="BRATS_METRIC_CASES is not set")


def expected(name):
    return json.loads((FOLDER / name).read_text()) if (FOLDER / name).is_file() else {}


def assert_scores(scores, theirs, where):
    for column, value in theirs.items():
        if column not in ("source", "raw_legacy_in_lesionwise"):
            value = np.nan if value is None else float(value)
            np.testing.assert_allclose(scores[column], value, rtol=0, atol=1e-10, err_msg=f"{where} {column}")


@pytest.mark.parametrize("case", expected("expected.json").get("cases", {}))
def test_hard_cases(case):
    entry = expected("expected.json")["cases"][case]
    reference, prediction = nib.load(FOLDER / entry["ref"]), nib.load(FOLDER / entry["pred"])
    masks = [np.asarray(image.dataobj).astype(np.uint8) for image in (reference, prediction)]
    header = tuple(float(value) for value in reference.header.get_zooms())
    for name, spacing, mode in (
        ("brats2023", header, "official"),
        ("brats2025", header, "official"),
        ("brats2026", header, "official"),
        ("brats2026_spacing_xyz_fixed", tuple(entry["spacing"]), "correct"),  # given to the program as written there
    ):
        scores = score_case(*masks, spacing, BRATS_METS, name[:9], spacing_mode=mode)
        for region, theirs in entry["regions"].items():
            assert_scores(scores[region], theirs[name], f"{case} {name} {region}")


def test_random_pairs():
    with np.load(FOLDER / "random.npz") as stored:
        for pair, protocols in expected("random_expected.json").items():
            masks = stored[f"ref_{pair}"], stored[f"pred_{pair}"]
            spacing = tuple(stored[f"spacing_{pair}"].tolist())
            for protocol, regions in protocols.items():
                scores = score_case(*masks, spacing, BRATS_METS, protocol)
                for region, theirs in regions.items():
                    assert_scores(scores[region], theirs, f"{pair} {protocol} {region}")
