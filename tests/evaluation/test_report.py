import re

import numpy as np
import pytest

from brats_lightning.evaluation.report.pages import environment
from brats_lightning.evaluation.report.wording import case_facts, number, p_value, what_went_wrong
from tests.data.tiny_cases import lesions, save, write_case
from tests.evaluation.evaluating import NAN, Page, lesion, run, scored


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
    assert found.tags.count("main") == found.tags.count("h1") == 1
    kinds = [value for name, value in found.attributes if name == "type" and value.startswith("application/")]
    assert found.tags.count("script") == len(kinds) + 2  # data: of the viewer, and of each case
    assert len(kinds) == 1 + 2
    for name, value in found.attributes:
        if name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            assert value.startswith("#"), (name, value[:80])
        assert "url(" not in (value or "") or "url(#" in value
    assert found.tags.count("svg") == 4
    assert found.tags.count("canvas") == 3
    text = " ".join(found.texts)
    assert "p&q<i>$x$" in text  # escaped in the source, a plain dollar
    assert "a<script>alert(1)&" in text
    for term in ("brats2026", "All columns of brats2023", "lesionwise_nsd_std", "95 %", "mm³"):
        assert term in text


def test_no_external_address(report):
    assert not re.search(r"https?:|ftp:|src=\"//|href=\"//|@import", report)


def test_lesions_link_to_the_viewer(report):
    links = re.findall(r'href="#case-([^"]*)"', report)
    # Each case has two lesions, and the shift takes both off.
    own = ["", "-et-1", "-et-2", "-et-f1", "-et-f2"]
    assert sorted(links) == [f"{case}{lesion}" for case in "01" for lesion in own]


def test_figures_take_the_pages_colours(report):
    figures = re.findall(r"<svg.*?</svg>", report, flags=re.DOTALL)
    colours = {colour for figure in figures for colour in re.findall(r"#[0-9a-fA-F]{6}\b", figure)}
    assert not {colour for colour in colours if colour.startswith("#0102")}
    assert all("var(--ink)" in figure and "var(--series2)" in figure for figure in figures)
    ids = re.findall(r'\bid="([^"]*)"', report)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]*)", report))
    assert {name for name in used if not name.startswith("case-")} <= set(ids)


def test_what_went_wrong():
    rows = [lesion(1, 120.4, 0.0), lesion(2, 9.0, 0.05), lesion(3, 1500.0, 0.9), lesion(4, 40.0, 0.3)]
    rows += [lesion(1, 55.0, false_positive=True)]
    assert what_went_wrong(scored("a", *rows), "et") == (
        "missed 2 of 4 (largest 120 mm³); 1 false positive (largest 55 mm³); a lesion of 40 mm³ found with Dice 0.30"
    )
    assert what_went_wrong(scored("a", lesion(1, 5.0, 0.8)), "et") == "all lesions found"
    assert what_went_wrong(scored("a"), "et") == "nothing to find, nothing found"
    assert what_went_wrong(scored("a", lesion(), missing=True), "et") == "no prediction"


def test_facts_of_a_case():
    facts = case_facts(scored("a", lesion(1, 5.0, 0.8), dice=0.8), "brats2024", "et")
    assert facts == "Lesion-wise Dice: ET 0.800. ET: all lesions found."


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
