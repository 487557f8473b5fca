import json

import numpy as np
import pytest

from brats_lightning.data.cases import CaseError
from brats_lightning.preprocess import preprocess
from tests.data.tiny_cases import lesions, write_case


@pytest.fixture
def config(composed, tmp_path):
    """Two sound cases, one without mask and one with a foreign label."""
    root = tmp_path / "raw"
    for case in ("BraTS-MET-00001-000", "BraTS-MET-00002-000"):
        write_case(root, case)
    write_case(root, "BraTS-MET-00003-000", seg=None)
    write_case(root, "BraTS-MET-00004-000", seg=np.where(lesions() == 1, 6, lesions()).astype(np.uint8))

    def make(*overrides):
        return composed(
            "data=brats_mets", f"data.root={root}", f"paths.cache_dir={tmp_path}/cache", "data.cache_workers=1",
            *overrides, name="preprocess",
        )  # fmt: skip

    return make


def written(tmp_path):
    (file,) = (tmp_path / "cache").rglob("report.json")
    return json.loads(file.read_text()), file.parent


def test_every_case_is_reported_and_the_sound_ones_are_cached(config, tmp_path, capsys):
    report = preprocess(config("data.on_bad_case=skip"))
    on_disk, folder = written(tmp_path)
    assert (on_disk["accepted"], on_disk["rejected"], on_disk["built"]) == (3, 1, 3)
    assert [row["accepted"] for row in on_disk["cases"]] == [True, True, True, False]
    assert [row.get("mask") for row in on_disk["cases"]] == [True, True, False, None]
    assert on_disk["cases"][0]["lesions"] == 2
    assert "label 6" in on_disk["cases"][3]["problems"][0]["found"]
    assert {path.name for path in folder.glob("*_seg.tif")} == {f"BraTS-MET-0000{n}-000_seg.tif" for n in (1, 2)}
    assert report["accepted"] == 3
    table = capsys.readouterr().out
    assert "accepted, no mask" in table
    assert "BraTS-MET-00004-000" in table

    assert preprocess(config("data.on_bad_case=skip"))["built"] == 0  # nothing is left to do


def test_faults_are_an_error_by_default_after_the_report_is_written(config, tmp_path):
    with pytest.raises(CaseError, match="BraTS-MET-00004-000"):
        preprocess(config())
    assert written(tmp_path)[0]["accepted"] == 3
