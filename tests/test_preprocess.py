import json

import numpy as np
import pytest

from brats_lightning.data.cache import entry
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


def test_what_is_unusual_or_missing_is_told_and_what_is_damaged_built_again(config, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(entry, "_SOUND", set())
    odd = np.full((12, 14, 10), -1, np.float32)
    odd[3:9, 3:9, 3:9] = 5
    write_case(tmp_path / "raw", "BraTS-MET-00001-000", t1c=odd)
    beside = tmp_path / "raw/BraTS-MET-00003-000/Segm.nii"
    beside.touch()
    report = preprocess(config("data.on_bad_case=skip"))
    assert report["cases"][0]["remarks"][0].startswith("t1c: all corners are -1")
    assert f"1 without mask: BraTS-MET-00003-000 ({beside} may be it)" in caplog.text
    image = written(tmp_path)[1] / "BraTS-MET-00002-000.tif"
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    assert preprocess(config("data.on_bad_case=skip"))["built"] == 1
    assert "the cache entry of BraTS-MET-00002-000 is damaged" in caplog.text
