import csv
import re
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from brats_lightning.evaluation.report.drawing import PAGE, PAPER, Chart
from brats_lightning.evaluation.report.figures import short_title
from tests.data.tiny_cases import lesions, save
from tests.evaluation.evaluating import run


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    """Two methods on two cases, compared, and their figures."""
    tmp_path = tmp_path_factory.mktemp("figures")
    for case, shift in (("00001-000", 3), ("00002-000", 0)):
        save(tmp_path / f"ref/{case}.nii.gz", lesions())
        save(tmp_path / f"a/{case}.nii.gz", lesions())
        save(tmp_path / f"b/{case}.nii.gz", np.roll(lesions(), shift, axis=0))
    told = f"figures={tmp_path}/figures", "pictures=0"
    run(f"[{tmp_path}/a,{tmp_path}/b]", tmp_path / "ref", tmp_path / "out", *told)
    return tmp_path / "figures"


def test_each_figure_is_there_as_svg_and_pdf_with_its_data(figures):
    names = {path.relative_to(figures).as_posix() for path in figures.rglob("*.*")}
    own = ["scores", "detected_by_volume", "dice_by_volume", "detection"]
    pair = [f"brats2024_a_b_{each}" for each in ("cases", "differences", "distances")]
    stems = [*pair, *(f"{method}/{name}" for method in "ab" for name in own)]
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("svg", "pdf", "csv")}
    for path in figures.rglob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF")


def test_files_have_colours_of_their_own(figures):
    for path in figures.rglob("*.svg"):
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "#0102" not in text
        assert PAPER.ink in text
    css = files("brats_lightning.evaluation.report").joinpath("templates/style.css").read_text()
    light = css[: css.index("@media")]
    found = dict(re.findall(r"--(\w+): (#\w+);", light))
    assert (PAPER.ink, PAPER.faint) == (found["ink"], found["line"])
    assert PAPER.series == tuple(found[f"series{i}"] for i in range(6))


def test_the_data_are_the_numbers_of_the_figure(figures):
    scores = {(row["region"], row["case"]): row["LesionWise_Score_Dice"] for row in rows(figures / "b/scores.csv")}
    assert scores["et", "00002-000"] == "1.0"
    mean = (float(scores["et", "00001-000"]) + 1) / 2
    assert float(scores["et", "mean"]) == pytest.approx(mean)
    (first, *_) = rows(figures / "b/detection.csv")
    # Four lesions of ET in two cases, two of them in the case that is moved away.
    assert first == {"region": "et", "smallest_mm3": "0.0", "false_positives_per_case": "1.0", "sensitivity": "0.5"}
    bands = rows(figures / "a/detected_by_volume.csv")
    assert [row["lesions"] for row in bands if row["region"] == "et"] == ["4", "0", "0", "0", "0"]
    cases = rows(figures / "brats2024_a_b_cases.csv")
    assert [row["LesionWise_Score_Dice of a"] for row in cases] == ["1.0"] * 6
    differences = rows(figures / "brats2024_a_b_differences.csv")
    found = {row["region"]: float(row["mean"]) for row in differences if row["column"] == "LesionWise_Score_Dice"}
    assert found["et"] == pytest.approx(mean - 1)


def test_a_drawing_knows_both_looks():
    seen = []

    def draw(figure: Figure, look) -> None:
        seen.append(look)
        figure.subplots().plot([0, 1], [0, 1], color=look.colour(7))

    chart = Chart("A <title>", (2.0, 2.0), draw, [["x"]])
    assert 'aria-label="A &lt;title&gt;"' in chart.svg()
    assert "var(--series1)" in chart.svg()
    files = chart.files()
    assert PAPER.series[1] in files["svg"].decode()
    assert chart.files() == files  # the same bytes every time
    assert seen == [PAGE, PAGE, PAPER, PAPER]


def test_short_titles():
    assert short_title("small_instance_f1") == "F1, small"
    assert short_title("LesionWise_Score_HD95") == "HD95"
