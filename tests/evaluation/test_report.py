import base64
import re

import numpy as np
import pytest

from brats_lightning.data.nifti import read_volume
from brats_lightning.evaluation.report.pages import environment
from brats_lightning.evaluation.report.pictures import axial_slice, grey, outline, worst_lesions
from brats_lightning.evaluation.report.wording import number, p_value, what_went_wrong, worst_first
from brats_lightning.evaluation.scoring import ScoredCase
from brats_lightning.metrics.lesions import LesionRow
from tests.data.tiny_cases import LPS, RAS, lesions, save, write_case
from tests.evaluation.evaluating import Page, run

NAN = float("nan")


def lesion(number=1, volume=10.0, dice=0.0, false_positive=False, centre=(1, 2, 3)):
    return LesionRow(number, false_positive, volume, dice >= 0.1, dice, centre)


def scored(name, *rows, dice=NAN, voxel=NAN, missing=False):
    official = {"brats2024": {"et": {"LesionWise_Score_Dice": dice}}}
    return ScoredCase(name, missing, official, {"et": {"dice": voxel}}, {"et": list(rows)}, {})


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of cases with images, one with a name that must be escaped, and where it lies."""
    tmp_path = tmp_path_factory.mktemp("report")
    images = {m: np.pad(np.full((8, 10, 6), 100, np.int16), 2) for m in ("t1n", "t1c", "t2w", "t2f")}
    write_case(tmp_path / "ref", "a<script>alert(1)&", **images)
    write_case(tmp_path / "ref", "BraTS-MET-00002-000", t1n=None, t1c=None, t2w=None, t2f=None)
    moved = np.roll(lesions(), 3, axis=0)
    save(tmp_path / "p&q<i>$x$/a<script>alert(1)&.nii.gz", moved)
    save(tmp_path / "p&q<i>$x$/00002-000.nii.gz", moved)
    told = "protocol=[brats2026,brats2023]", "pictures=5"
    run(f"'{tmp_path}/p&q<i>$x$'", tmp_path / "ref", tmp_path / "out", *told)
    return (tmp_path / "out/report.html").read_text()


def test_the_page_is_sound_and_needs_nothing_else(report):
    found = Page(report)
    assert "link" not in found.tags
    assert found.tags.count("script") == found.tags.count("h1") == 1
    for name, value in found.attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert value.startswith(("data:image/png;base64,", "#")), (name, value[:80])
        assert "url(" not in (value or "") or "url(#" in value
    assert found.tags.count("svg") == 3
    assert found.tags.count("img") == 5
    text = " ".join(found.texts)
    assert "p&q<i>$x$" in text  # escaped in the source, a plain dollar
    assert "a<script>alert(1)&" in text
    for term in ("brats2026", "All columns of brats2023", "lesionwise_nsd_std", "95 %", "mm³"):
        assert term in text


def test_no_external_address(report):
    without_pictures = re.sub(r"data:image/png;base64,[^\"]*", "", report)
    assert not re.search(r"https?:|ftp:|src=\"//|href=\"//|@import", without_pictures)


def test_pictures_are_png(report):
    for data in re.findall(r'src="data:image/png;base64,([^"]*)"', report):
        assert base64.b64decode(data).startswith(b"\x89PNG")


def test_figures_take_the_pages_colours(report):
    figures = re.findall(r"<svg.*?</svg>", report, flags=re.DOTALL)
    colours = {colour for figure in figures for colour in re.findall(r"#[0-9a-fA-F]{6}\b", figure)}
    assert not {colour for colour in colours if colour.startswith("#0102")}
    assert all("var(--ink)" in figure and "var(--series2)" in figure for figure in figures)
    ids = re.findall(r'\bid="([^"]*)"', report)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]*)", report))
    assert used <= set(ids)


def test_what_went_wrong():
    rows = [lesion(1, 120.4, 0.0), lesion(2, 9.0, 0.05), lesion(3, 1500.0, 0.9), lesion(4, 40.0, 0.3)]
    rows += [lesion(1, 55.0, false_positive=True)]
    assert what_went_wrong(scored("a", *rows), "et") == (
        "missed 2 of 4 (largest 120 mm³); 1 false positive (largest 55 mm³); a lesion of 40 mm³ found with Dice 0.30"
    )
    assert what_went_wrong(scored("a", lesion(1, 5.0, 0.8)), "et") == "all lesions found"
    assert what_went_wrong(scored("a"), "et") == "nothing to find, nothing found"
    assert what_went_wrong(scored("a", lesion(), missing=True), "et") == "no prediction"


def test_worst_first():
    cases = [
        scored("clean"),
        scored("good", dice=0.9),
        scored("bad", dice=0.1),
        scored("missing", dice=0.5, missing=True),
        scored("false alarm", lesion(false_positive=True), voxel=0.0),
        scored("bad too", lesion(), dice=0.1),
    ]
    order = [case.case for case in worst_first(cases, "brats2024", "et")]
    assert order == ["missing", "false alarm", "bad too", "bad", "good", "clean"]


def test_worst_lesions_are_the_largest_of_both_kinds():
    missed = [lesion(i, float(i)) for i in range(1, 5)]
    found = [lesion(9, 1e6, dice=0.9)]
    invented = [lesion(i, float(10 * i), false_positive=True) for i in range(1, 3)]
    cases = [scored("a", *missed, *found, *invented), scored("b", lesion(1, 99.0), missing=True)]
    chosen = worst_lesions(cases, "et", 4)
    assert [(case, row.volume, row.false_positive) for case, row in chosen] == [
        ("a", 4, False),
        ("a", 3, False),
        ("a", 20, True),
        ("a", 10, True),
    ]
    assert [row.volume for _, row in worst_lesions(cases, "et", 6)] == [4, 3, 2, 1, 20, 10]
    assert [row.volume for _, row in worst_lesions(cases[1:], "et", 6)] == []
    assert worst_lesions(cases, "et", 0) == []


def test_numbers():
    assert (number(1234.5678, 1), number(-0.25, 2), number(NAN)) == ("1,234.6", "−0.25", "–")
    assert [p_value(p) for p in (0.0004, 0.0312, NAN)] == ["< 0.001", "0.031", "–"]
    cells = environment().get_template("tables.html").module
    assert cells.value(0.5) == '<td data-value="0.5">0.500</td>'
    assert cells.value(NAN) == '<td data-value="">–</td>'
    assert cells.interval(0.5, 0.25, 0.75, 2) == '<td data-value="0.5">0.50 <small>[0.25, 0.75]</small></td>'
    assert cells.interval(0.5, NAN, NAN) == '<td data-value="0.5">0.500</td>'
    assert cells.name("<x>") == '<td class="name">&lt;x&gt;</td>'


def test_tables_are_sound():
    row = "{% call table(['<a>', 'b'], caption='c', sortable=true, groups=[('g', 2)]) %}<tr>{{ name('x') }}</tr>"
    html = environment().from_string(f"{{% from 'tables.html' import name, table %}}{row}{{% endcall %}}").render()
    assert Page(html).tags.count("th") == 3
    assert Page(html).texts.count("x") == Page(html).texts.count("<a>") == 1
    assert "<h1>&lt;x&gt;</h1>" in environment().get_template("page.html").render(title="<x>")


def test_outline_of_one_pixel_is_its_square():
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    segments = {tuple(sorted(map(tuple, segment.tolist()))) for segment in outline(mask)}
    corners = [(1.5, 0.5), (2.5, 0.5), (2.5, 1.5), (1.5, 1.5)]
    assert segments == {tuple(sorted((corners[i - 1], corners[i]))) for i in range(4)}
    assert len(outline(np.ones((2, 2), bool))) == 8


@pytest.mark.parametrize("affine", [LPS, RAS])
def test_slices_show_the_patients_right_on_the_left(tmp_path, affine):
    mask = np.zeros((5, 6, 7), np.uint8)
    mask[1, 2, 3] = 1
    volume = read_volume(save(tmp_path / "m.nii", mask, affine))
    row, column = (2, 1) if affine is LPS else (3, 3)
    shown = axial_slice(volume, 3)
    assert shown.shape == (6, 5)
    assert np.argwhere(shown).tolist() == [[row, column]]
    assert not axial_slice(volume, 4).any()


def test_grey():
    image = np.array([[0, 10, 20, 30, 40]])
    shown = grey(image)
    assert shown[0, 0] == 0
    assert (np.diff(shown[0, 1:]) > 0).all()
    assert (shown.min(), shown.max()) == (0, 1)
    assert (grey(np.zeros((2, 2))) == 0).all()
    assert np.isfinite(grey(np.array([[np.nan, 1.0]]))).all()
