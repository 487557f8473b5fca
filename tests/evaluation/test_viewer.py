"""The report as people use it, in a browser that runs without a window."""

import json
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from brats_lightning.core.geometry import GridTransform
from brats_lightning.data.nifti import read_volume
from tests.data.tiny_cases import LPS, save, write_case
from tests.evaluation.browser import Browser, needs_browser
from tests.evaluation.evaluating import run

pytestmark = needs_browser
SHAPE = (24, 30, 20)
AFFINE = LPS @ np.diag([1, 1, 2, 1])  # a voxel is twice as high as wide
CASES = ("BraTS-MET-00001-000", "BraTS-MET-00002-000", "BraTS-MET-00003-000")
OPENED = "document.querySelector('[data-text=facts]').textContent !== '' && !document.querySelector('[aria-busy]')"


def ball(centre, radius):
    """Voxels within a radius, x, y, z."""
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    return ((at - centre) ** 2).sum(-1) <= radius**2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three cases with a missed lesion, a false positive and, of one, nothing else; a page and one with a folder."""
    tmp_path = tmp_path_factory.mktemp("viewer")
    ramp = np.zeros(SHAPE, np.int16)
    ramp[2:-2, 2:-2, 2:-2] = 100 + 10 * np.arange(SHAPE[1])[2:-2, None]  # brighter to the back
    for i, case in enumerate(CASES):
        reference, prediction = np.zeros((2, *SHAPE), np.uint8)
        reference[ball((6, 8, 5), 2)] = 3
        prediction[ball((16, 20 - i, 12), 2)] = 3
        if i:
            reference[ball((15, 10, 8), 3)] = prediction[ball((15, 10, 8), 3)] = 3
            reference[ball((15, 10, 8), 3) & ball((15, 10, 5), 2)] = 1
        write_case(
            tmp_path / "ref", case, AFFINE, seg=reference, t1n=ramp, t1c=ramp, t2w=None, t2f=ramp[:, ::-1].copy()
        )
        save(tmp_path / f"pred/{case}.nii.gz", prediction, AFFINE)
    run(tmp_path / "pred", tmp_path / "ref", tmp_path / "page", "pictures=null")
    run(tmp_path / "pred", tmp_path / "ref", tmp_path / "beside", "pictures=null", "report=folder")
    return tmp_path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with closing(Browser(tmp_path_factory.mktemp("profile"))) as browser:
        yield browser


@pytest.fixture
def page(browser, folder):
    """The page with its first case open; at the end, no script has failed."""
    browser.open(folder / "page/report.html")
    browser.value("document.getElementById('viewer').scrollIntoView()")
    browser.until(OPENED)
    yield browser
    assert browser.faults == []


def text(browser, name):
    return browser.value(f"document.querySelector('[data-text={name}]').textContent")


def slices(browser):
    """Slice numbers that the sliders show: axial, coronal, sagittal."""
    frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    sliders = "[...document.querySelectorAll('.plane input')].map(slider => Number(slider.value))"
    return browser.value(f"{frames}.then(() => {sliders})")


def focused(browser):
    name = "e.dataset.do || e.dataset.set || e.dataset.show || e.value || e.hash || e.textContent"
    return browser.value(f"(e => {name})(document.activeElement)")


def lesions_of(folder, number):
    text = (folder / f"beside/report_cases/{number}.js").read_text()
    return json.loads(text.partition("] = ")[2].rstrip(";\n"))["lesions"]


@pytest.fixture
def pixel(browser, tmp_path):
    """The colour that is seen in a plane at a place given by rows and columns, from 0 to 1."""

    def look(plane, row, column):
        x, y = browser.middle(f"[data-plane={plane}] canvas")
        width, height = browser.value(
            f"(e => [e.clientWidth, e.clientHeight])(document.querySelector('[data-plane={plane}] canvas'))"
        )
        with Image.open(browser.picture(tmp_path / "seen.png")) as picture:
            return picture.convert("RGB").getpixel((int(x + (column - 0.5) * width), int(y + (row - 0.5) * height)))

    return look


def test_arrays_come_back_in_the_browser_as_they_were_packed(page, folder):
    data = "JSON.parse(document.getElementById('volumes-0').textContent)"
    shape = page.value(f"{data}.shape")
    assert shape == [16, 26, 20]  # the brain's box
    found = page.value(f"unpackMasks({data}).then(masks => [[...masks.reference], [...masks.prediction]])")
    first = page.value("document.querySelector('[data-set=case] option').textContent")
    files = folder / f"ref/BraTS-MET-{first}/BraTS-MET-{first}-seg.nii.gz", folder / f"pred/BraTS-MET-{first}.nii.gz"
    inner = (slice(2, -2),) * 3
    for values, file in zip(found, files, strict=True):
        volume = read_volume(file)
        whole = GridTransform.whole(volume.grid)
        expected = whole.crop((0, 0, 0), whole.shape).sample(volume.values, volume.start)[inner]
        assert np.array_equal(np.reshape(values, shape), expected)
    grey = np.reshape(page.value(f"unpackSequence({data}, {data}.sequences[0]).then(grey => [...grey])"), shape)
    rows = grey.astype(float).mean(axis=(0, 2))
    assert (np.diff(rows) > 0).all()  # brighter to the back
    assert np.abs(grey - rows[None, :, None]).max() <= 16
    sagittal = np.reshape(
        page.value(
            "sliceOf(Uint8Array.from({length: 24}, (_, i) => i), [2, 3, 4], PLANES.sagittal, 1)"
            ".reduce((all, value) => [...all, value], [])"
        ),
        (2, 3),
    )
    assert sagittal.tolist() == [[13, 17, 21], [1, 5, 9]]  # the upper slice on top, the forehead on the left


def test_the_worst_case_opens_at_its_largest_error(page, folder):
    assert page.value("document.querySelector('[data-set=case]').selectedOptions[0].textContent") == "00001-000"
    assert "missed 1 of 1" in text(page, "facts")
    assert text(page, "status") == "Missed lesion, 66 mm³, 1 of 2 listed."
    at = lesions_of(folder, 0)["et"][0]["at"]
    assert at == [3, 6, 4]  # 5, 8, 6 without the margin
    assert slices(page) == [4, 7, 5]
    assert page.value("document.querySelectorAll('[data-plane=axial] canvas').length") == 1
    # In mm the coronal plane is 20 wide and 32 high.
    assert page.value("document.querySelector('[data-plane=coronal] canvas').style.aspectRatio") == "20 / 32"


def test_errors_and_outlines_have_their_colours(page, pixel):
    red, _, blue = pixel("axial", 6.5 / 26, 4.5 / 20)  # within the missed lesion
    assert blue > red + 40
    plain = pixel("axial", 20.5 / 26, 12.5 / 20)
    assert max(plain) - min(plain) == 0
    page.click("[data-do=next]")
    page.click("[data-do=reset]")
    red, _, blue = pixel("axial", 18.5 / 26, 14.5 / 20)  # within the false positive
    assert red > blue + 40
    page.click("[data-show=errors]")
    page.click("[data-show=cross]")
    plain = pixel("axial", 18.5 / 26, 14.5 / 20)
    assert max(plain) - min(plain) == 0
    page.click("[data-show=prediction]")
    assert pixel("axial", 18.5 / 26, 12.55 / 20) == pytest.approx(plain, abs=4)  # where its outline was


def test_wheel_swipe_click_and_keys_move_through_slices(page, folder):
    page.value("new Promise(done => setTimeout(done, 300))")  # the wheel goes to the page while it scrolls
    before = slices(page)
    page.middle("[data-plane=axial] canvas")
    page.value("new Promise(done => setTimeout(done, 300))")
    page.wheel("[data-plane=axial] canvas", 40)
    page.until(f"Number(document.querySelector('[data-plane=axial] input').value) === {before[0] + 1}")
    page.click("[data-plane=axial] canvas")
    axial, coronal, sagittal = slices(page)
    assert axial == before[0] + 1
    assert (coronal, sagittal) in {(y, x) for y in (13, 14) for x in (10, 11)}  # the middle, an edge of voxels
    assert page.value("document.activeElement === document.querySelector('[data-plane=axial] input')")
    page.press("ArrowRight")
    page.press("ArrowUp")
    assert slices(page)[0] == before[0] + 3
    page.press("Home")
    assert slices(page)[0] == 1
    page.press("End")
    assert slices(page)[0] == 16
    label = page.value("document.querySelector('[data-plane=axial] input').getAttribute('aria-valuetext')")
    assert label == "slice 16 of 16"
    assert "slice 16 of 16" in page.value(
        "document.querySelector('[data-plane=axial] canvas').getAttribute('aria-label')"
    )
    page.open(folder / "page/report.html", phone=True)
    page.middle("#viewer")
    page.until(OPENED)
    before = slices(page)
    page.swipe("[data-plane=axial] canvas", 30)
    assert slices(page) == [before[0] + 6, *before[1:]]


def test_sequences_regions_and_window(page, pixel):
    dark = pixel("sagittal", 0.5, 0.2)
    page.click("[name=sequence][value=FLAIR]")  # brighter to the front
    page.until("document.querySelector('[name=sequence][value=FLAIR]').checked")
    page.value("new Promise(done => setTimeout(done, 200))")
    bright = pixel("sagittal", 0.5, 0.2)
    assert bright[0] > dark[0] + 60
    page.value(
        "(e => { e.value = 255; e.dispatchEvent(new Event('input', {bubbles: true})); })"
        "(document.querySelector('[data-set=level]'))"
    )
    assert pixel("sagittal", 0.5, 0.2)[0] < bright[0]
    page.value("document.querySelector('[data-set=case]').value = 2")
    page.value("document.querySelector('[data-set=case]').dispatchEvent(new Event('input', {bubbles: true}))")
    page.until("document.querySelector('[data-text=status]').textContent.includes('of 3')")
    assert page.value("document.querySelector('[name=sequence]:checked').value") == "FLAIR"  # stays
    page.click("[name=region][value=tc]")
    page.until("document.querySelector('[name=region][value=tc]').checked")
    assert page.value("document.querySelectorAll('.lesions button').length") == 3


def test_from_a_table_to_a_lesion_and_back(page, folder):
    at = lesions_of(folder, 2)["et"][1]["at"]
    page.click("a[href='#case-2-et-f1']")
    page.until("document.querySelector('[data-text=status]').textContent.startsWith('False positive')")
    assert slices(page) == [index + 1 for index in at]
    assert page.value("location.hash") == "#case-2-et-f1"
    assert page.value("document.querySelector('.lesions [aria-pressed=true]').className") == "false-positive"
    top = page.value("document.getElementById('viewer').getBoundingClientRect().top")
    assert 0 <= top < 100
    assert focused(page) == "back"
    page.press("Enter")
    assert focused(page) == "#case-2-et-f1"
    page.open(folder / "page/report.html", "#case-1-et-1")  # as in a link that was sent
    page.until(OPENED)
    assert page.value("document.querySelector('[data-set=case]').value") == "1"
    assert slices(page) == [index + 1 for index in lesions_of(folder, 1)["et"][0]["at"]]


def test_keyboard_alone(page):
    page.value("document.querySelector('[data-set=case]').focus()")
    page.press("ArrowDown")
    page.until("document.querySelector('[data-text=status]').textContent.includes('1 of 3')")
    page.press("Tab")
    assert focused(page) == "T1c"
    page.press("ArrowRight")
    assert focused(page) == "FLAIR"
    page.press("n")
    assert "2 of 3" in text(page, "status")
    page.press("p")
    page.press("p")
    assert "3 of 3" in text(page, "status")
    page.press("e")
    assert page.value("document.querySelector('[data-show=errors]').checked") is False
    page.press("o")
    assert page.value("document.querySelector('[data-show=reference]').checked") is False
    page.press("+")
    assert page.value("Number(document.querySelector('[data-set=zoom]').value)") == pytest.approx(2.5 * 1.25, abs=0.13)
    page.press("0")
    assert page.value("document.querySelector('[data-set=zoom]').value") == "1"
    page.press("s")
    page.until("document.querySelector('[name=sequence][value=T1]').checked")
    reached = set()
    for _ in range(60):
        page.press("Tab")
        reached.add(focused(page))
    controls = {"opacity", "level", "window", "zoom", "reset", "next", "previous", "reference", "cross"}
    assert controls <= reached
    assert {"#case-0-et-1", "#case-2-et-f1", "Volume (mm³)"} <= reached  # links, and headings that sort


def test_tables_sort_and_filter(page):
    def rows(column):
        return page.value(
            "[...document.querySelectorAll('.long')[0].querySelectorAll('tbody tr:not([hidden])')]"
            f".map(row => row.cells[{column}].innerText)"
        )

    assert rows(0) == ["Missed"] * 3 + ["False positive"] * 3
    page.value("document.querySelectorAll('.long th button')[1].focus()")
    page.press("Enter")
    assert rows(1) == sorted(rows(1), reverse=True)
    page.press("Enter")
    assert rows(1) == sorted(rows(1))
    assert page.value("document.querySelectorAll('.long th')[1].getAttribute('aria-sort')") == "ascending"
    page.value("document.querySelector('.filter input').focus()")
    for letter in "missed 00002":
        page.press(letter)
    assert (rows(0), rows(1)) == (["Missed"], ["00002-000"])
    assert page.value("document.querySelector('.filter output').textContent") == "1 of 6 rows"


def test_light_and_dark(browser, folder, tmp_path):
    papers = []
    for dark in (False, True):
        browser.open(folder / "page/report.html", dark=dark)
        with Image.open(browser.picture(tmp_path / "page.png")) as picture:
            papers.append(sum(picture.convert("RGB").getpixel((3, 3))))
    assert papers[0] > 700
    assert papers[1] < 150


def test_a_phone(browser, folder):
    browser.open(folder / "page/report.html", phone=True)
    browser.value("document.getElementById('viewer').scrollIntoView()")
    browser.until(OPENED)
    assert browser.value("document.documentElement.scrollWidth") == 390
    # Whatever is wider scrolls by itself.
    fixed = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll'))"
    wide = f"{fixed}.filter(e => e.getBoundingClientRect().right > 390)"
    assert browser.value(f"{wide}.map(e => e.outerHTML.slice(0, 80))") == []
    sizes = browser.value(
        "[...document.querySelectorAll('svg text')].filter(e => e.textContent.trim())"
        ".map(e => e.getBoundingClientRect()).map(box => Math.min(box.width, box.height) && box.height)"
    )
    assert min(sizes) >= 8  # pixels
    captions = "[...document.querySelectorAll('caption span')].filter(e => e.getClientRects().length)"
    assert browser.value(f"Math.max(...{captions}.map(e => e.getBoundingClientRect().right))") <= 390
    assert browser.faults == []


def test_cases_beside_the_page_are_loaded_when_they_are_opened(browser, folder):
    browser.open(folder / "beside/report.html", "#case-1-et-f1")
    browser.until(OPENED)
    assert browser.value("document.querySelector('[data-set=case]').value") == "1"
    assert text(browser, "status").startswith("False positive lesion")
    assert browser.value("performance.getEntriesByType('resource').length") <= 1
    assert browser.faults == []


def test_a_missing_script_is_reported(browser, folder, tmp_path):
    page = tmp_path / "report.html"
    page.write_text((folder / "beside/report.html").read_text())
    browser.open(page, "#case-0")
    browser.until("document.querySelector('[data-text=status]').textContent.includes('cannot be opened')")
    assert "keep report_cases beside this page" in text(browser, "status")
    assert all("ERR_FILE_NOT_FOUND" in fault for fault in browser.faults)
    browser.faults.clear()


def test_masks_without_images(browser, folder, tmp_path):
    for case in CASES[:1]:
        save(tmp_path / f"ref/{case}-seg.nii.gz", np.where(ball((6, 8, 5), 2), 3, 0).astype(np.uint8))
        save(tmp_path / f"pred/{case}.nii.gz", np.where(ball((16, 8, 5), 2), 3, 0).astype(np.uint8))
    run(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    browser.open(tmp_path / "out/report.html", "#case-0")
    browser.until(OPENED)
    assert browser.value("document.querySelector('[data-text=masks-only]').hidden") is False
    assert browser.value("document.querySelector('[data-choice=sequence]').hidden") is True
    assert text(browser, "status") == "Missed lesion, 33 mm³, 1 of 2 listed."
    assert browser.faults == []
