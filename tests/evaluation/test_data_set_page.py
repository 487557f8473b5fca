import base64
import json
import re

import numpy as np
import pytest

from brats_lightning.core.labels import BRATS_METS, MODALITIES
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.layouts.brats import find_cases
from brats_lightning.data.overview import Overview
from brats_lightning.data.survey import survey
from brats_lightning.data.suspicions import Suspicion
from brats_lightning.evaluation.report.contact_sheet import (
    case_picture,
    resized,
    resized_mask,
    ring,
    sampled,
    slice_to_show,
)
from brats_lightning.evaluation.report.data_set import data_set_page, plan_lines, write_data_set
from brats_lightning.evaluation.report.drawing import grey
from brats_lightning.evaluation.report.wording import dimensions
from tests.data.tiny_cases import lesions, write_case
from tests.evaluation.evaluating import Page

PLAN = {
    "command": "python -m brats_lightning.train --config-dir a experiment=<b>",
    "settings": {"sampling.size": [64, 64, 48], "data.batch_size": 2},
    "machine": {"kind": "cuda", "memory": 24e9, "here": False, "resting": 6e8},
    "predicted": {
        "footprint": {"parameters": 31.2e6, "state": 7e8, "batch": 2e8, "features": 5e9, "flop": 6.4e12},
        "memory": 7.3e9,
        "seconds": None,
    },
    "measured": None,
}


@pytest.fixture(scope="module")
def overview(tmp_path_factory):
    """Five cases: a sound one, one with a hostile name and no T2w, one empty, one without mask, one faulty."""
    root = tmp_path_factory.mktemp("raw")
    write_case(root, "BraTS-MET-00001-000")
    write_case(root, "a<script>&", t2w=None)
    write_case(root, "BraTS-MET-00003-000", seg=np.zeros_like(lesions()))
    write_case(root, "BraTS-MET-00004-000", seg=None)
    write_case(root, "BraTS-MET-00005-000", seg=np.where(lesions() == 1, 6, lesions()).astype(np.uint8))
    cache = Cache(root.with_name("cache"), optional=("t2w",))
    found = Overview.of(survey(cache, find_cases(root), MODALITIES, 1), BRATS_METS)
    return Overview(found.survey, BRATS_METS, found.inspections, [Suspicion("a<script>&", "seg", "looks <odd>")])


def test_the_page_is_sound_and_needs_nothing_else(overview):
    text = data_set_page(overview, "cases in <here>", 60, PLAN)
    page = Page(text)
    assert page.tags.count("svg") == 3
    assert page.tags.count("img") == 4  # the accepted cases
    assert not re.search(r"https?:|src=\"//|@import", re.sub(r"data:image/jpeg;base64,[^\"]*", "", text))
    said = " ".join(" ".join(page.texts).split())
    for words in (
        *("cases in <here>", "4 cases accepted", "1 rejected", "1 suspicious case", "a<script>&", "looks <odd>"),
        *("voxels of label 6", "T2w missing", "no lesion", "no mask", "1 of them empty"),
        *("experiment=<b>", "[64, 64, 48]", "7.30 GB predicted, of 24.00 GB"),
    ):
        assert words in said, words
    assert "#0102" not in text  # the figures have the page's colours


def test_pictures_are_jpeg_and_small(overview):
    found = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', data_set_page(overview, "x", 60))
    assert all(base64.b64decode(data).startswith(b"\xff\xd8\xff") for data in found)
    assert all(len(data) < 40_000 for data in found)


def test_both_files_are_written(overview, tmp_path):
    report = write_data_set(tmp_path / "new", overview, "x", 1)
    on_disk = json.loads((tmp_path / "new/report.json").read_text())
    assert (on_disk["accepted"], on_disk["rejected"]) == (report["accepted"], report["rejected"]) == (4, 1)
    assert on_disk["suspicious"] == [{"case": "a<script>&", "file": "seg", "found": "looks <odd>"}]
    assert on_disk["fingerprint"]["sequences"]["t2w"]["missing"] == 1
    assert on_disk["fingerprint"]["lesions"]["et"]["count"] == 4
    assert Page((tmp_path / "new/report.html").read_text()).tags.count("img") == 2  # one, and the suspicious one


def test_a_data_set_of_which_nothing_is_accepted(overview, tmp_path):
    root = tmp_path / "raw"
    write_case(root, seg=np.full_like(lesions(), 9))
    nothing = Overview.of(survey(Cache(tmp_path / "cache"), find_cases(root), MODALITIES, 1), BRATS_METS)
    page = Page(data_set_page(nothing, "x", 60))
    assert "img" not in page.tags
    assert "rejected" in page.texts
    assert nothing.report("x")["fingerprint"] == {}


def test_cases_that_lack_a_sequence_are_counted_and_advised_about(tmp_path):
    write_case(tmp_path / "raw", "BraTS-MET-00001-000", t2w=None)
    write_case(tmp_path / "raw", "BraTS-MET-00002-000")
    found = survey(Cache(tmp_path / "cache"), find_cases(tmp_path / "raw"), MODALITIES, 1)
    assert found.lacking == {"t2w": 1}
    (advice,) = found.advice()
    assert advice == "1 of 2 cases lack t2w and are rejected; data.optional=[t2w] keeps them"
    kept = survey(Cache(tmp_path / "cache", optional=("t2w",)), find_cases(tmp_path / "raw"), MODALITIES, 1)
    assert (len(kept.cases), kept.advice()) == (2, [])


def test_the_slice_of_the_largest_lesion(overview):
    cases = {case.id: case for case in overview.survey.cases}
    z, volume = slice_to_show(cases["BraTS-MET-00001-000"])
    assert volume == 8  # the core of ET and NETC
    assert np.isin(cases["BraTS-MET-00001-000"].mask()[z], (1, 3)).sum() == 4
    assert slice_to_show(cases["BraTS-MET-00003-000"]) == (3, None)


def test_a_picture_has_a_tile_for_each_sequence_and_no_outline_where_one_is_missing(overview, tmp_path):
    from matplotlib.image import imread

    case = next(case for case in overview.survey.cases if case.id == "a<script>&")
    data = case_picture(case, MODALITIES, BRATS_METS).image.partition(",")[2]
    (tmp_path / "p.jpeg").write_bytes(base64.b64decode(data))
    tiles = np.split(imread(tmp_path / "p.jpeg").astype(int), 4, axis=1)
    colourful = [(np.ptp(tile, axis=-1) > 60).any() for tile in tiles]
    assert colourful == [True, True, False, True]  # T2w is missing
    assert tiles[2].max() < 20


def test_the_sheet_shows_a_sample_and_all_suspicious_cases(overview):
    cases = overview.survey.cases
    assert [case.id for case in sampled(cases, 60, [])] == [case.id for case in cases]
    assert [case.id for case in sampled(cases, 2, [cases[1].id])] == [cases[i].id for i in (0, 1, 3)]
    assert sampled(cases, 0, []) == []


def test_the_smallest_lesion_keeps_its_voxel_and_is_outlined_around_it():
    mask = np.zeros((90, 60), bool)
    mask[40, 31] = True
    small = resized_mask(mask, (30, 20))
    assert small.any()
    assert ring(mask).sum() == 4
    assert not (ring(mask) & mask).any()


def test_resizing_keeps_places():
    image = np.zeros((40, 40))
    image[:20] = 1.0
    for size in ((80, 60), (20, 20)):
        found = resized(image, size)
        assert found.shape == size
        assert (found[: size[0] // 2 - 2] > 0.95).all()
        assert (found[size[0] // 2 + 2 :] < 0.05).all()


def test_dimensions():
    assert dimensions([1.0, 0.8594, 0.5], 2) == "1 × 0.86 × 0.5"
    assert dimensions([142.0, 215.0, 1206.0], 0) == "142 × 215 × 1,206"


def test_what_a_plan_predicts_in_words():
    lines = dict(plan_lines(PLAN))
    assert lines["network"] == "31.2 M parameters, 6.40 TFLOP in a step"
    assert lines["steps per second"] == "not predicted: the GPU is not here"
    measured = {**PLAN, "measured": {"memory": 7.0e9, "seconds": 0.5}}
    measured["predicted"] = {**PLAN["predicted"], "seconds": 0.25}
    lines = dict(plan_lines(measured))
    assert lines["memory"] == "7.30 GB predicted, 7.00 GB measured, of 24.00 GB"
    assert lines["steps per second"] == "4 predicted, 2 measured"


def test_grey():
    image = np.array([[0, 10, 20, 30, 40]])
    shown = grey(image)
    assert shown[0, 0] == 0
    assert (np.diff(shown[0, 1:]) > 0).all()
    assert (shown.min(), shown.max()) == (0, 1)
    assert (grey(np.zeros((2, 2))) == 0).all()
    assert np.isfinite(grey(np.array([[np.nan, 1.0]]))).all()
