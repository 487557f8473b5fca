import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from brats_lightning.evaluation.bootstrap import Bootstrap
from brats_lightning.evaluation.comparison import common_cases, paired_differences, signed_rank
from brats_lightning.evaluation.pairing import EvaluationError
from brats_lightning.evaluation.scoring import Evaluation, ScoredCase, Scoring
from tests.data.tiny_cases import lesions, save
from tests.evaluation.evaluating import Page, run

NAN = math.nan
DICE, HD95 = "LesionWise_Score_Dice", "LesionWise_Score_HD95"


def test_signed_rank_is_scipys():
    differences = np.array([0.1, -0.2, 0.35, 0.4, 0.05, 0.6, -0.03, NAN, 0.0])
    p, note = signed_rank(differences)
    assert p == wilcoxon(differences[:7]).pvalue
    assert note == ""
    # Six of one sign: 2 of 2⁶ sign patterns are as extreme.
    assert signed_rank(np.arange(1.0, 7.0))[0] == pytest.approx(2 / 64)


@pytest.mark.parametrize(
    ("differences", "p", "note"),
    [
        ([0.0, 0.0, NAN], 1.0, "no difference in any case"),
        ([NAN, NAN], NAN, "no case has both scores"),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0], NAN, "only 5 patients differ; the test needs 6"),
    ],
)
def test_signed_rank_has_named_edges(differences, p, note):
    found = signed_rank(np.array(differences))
    assert found[0] == pytest.approx(p, nan_ok=True)
    assert found[1] == note


def test_ties_in_the_differences_raise_no_warning():
    p, _ = signed_rank(np.array([1.0, 1.0, -1.0, 2.0, 2.0, 3.0, 3.0, 0.0]))
    assert 0 < p < 0.2


def test_paired_differences_by_hand():
    scores = {("et", DICE): np.array([[0.1, 0.5, 0.1], [0.2, 0.4, 0.2], [0.3, NAN, 0.3]])}
    rows = paired_differences(scores, ["a", "b", "c"], range(len(scores["et", DICE])), Bootstrap(200, 0))
    assert [(row["first"], row["second"]) for row in rows] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert rows[0]["n"] == 2
    assert rows[0]["mean"] == pytest.approx(0.3)
    assert (rows[0]["low"], rows[0]["high"]) == (pytest.approx(0.2), pytest.approx(0.4))
    assert (rows[1]["mean"], rows[1]["low"], rows[1]["high"], rows[1]["p"]) == (0, 0, 0, 1)
    assert rows[2]["mean"] == pytest.approx(-0.3)


def test_timepoints_of_a_patient_are_no_further_evidence():
    # Five patients gain in four timepoints each: 20 differences would be significant, five patients are too few.
    scores = {("et", DICE): np.stack([np.zeros(20), np.linspace(0.1, 0.4, 20)], 1)}
    row = paired_differences(scores, ["a", "b"], np.repeat(list("vwxyz"), 4).tolist(), Bootstrap(200, 0))[0]
    assert (row["n"], row["mean"]) == (20, pytest.approx(0.25))
    assert row["note"] == "only 5 patients differ; the test needs 6"
    each = paired_differences(scores, ["a", "b"], range(20), Bootstrap(200, 0))[0]
    assert each["p"] < 0.001
    assert row["low"] < each["low"] < each["mean"] == row["mean"] < each["high"] < row["high"]


def test_the_interval_is_that_of_the_differences():
    # A constant gain on cases that vary a lot is certain.
    first = np.linspace(0, 0.8, 20)
    row = paired_differences(
        {("et", DICE): np.stack([first, first + 0.1], 1)}, ["a", "b"], range(20), Bootstrap(200, 0)
    )[0]
    assert (row["low"], row["high"]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert row["p"] < 0.001


@pytest.fixture
def methods(tmp_path):
    """Seven cases; `good` is perfect, `<b>` finds nothing in six and lacks the last."""
    for i in range(1, 8):
        name = f"0000{i}-000.nii.gz"
        save(tmp_path / "ref" / name, lesions())
        save(tmp_path / "good" / name, lesions())
        if i < 7:
            save(tmp_path / "<b>" / name, np.zeros_like(lesions()))
    return tmp_path


def test_two_methods(methods):
    out = methods / "out"
    result = run(f"[{methods}/good,'{methods}/<b>']", methods / "ref", out, "names=[good,'<b>']")
    stored = json.loads((out / "comparison.json").read_text())
    assert stored["methods"] == ["good", "<b>"]
    assert len(stored["cases"]) == 7
    ranks = stored["protocols"]["brats2024"]["ranks"]
    assert [(row["method"], row["rank"], row["mean_rank"]) for row in ranks["methods"]] == [
        ("good", 1, 1),
        ("<b>", 2, 2),
    ]
    assert ranks["columns"] == [DICE, HD95]
    assert ranks["methods"][0]["p"] == {"<b>": 1 / 2**7}
    row = next(
        r for r in stored["protocols"]["brats2024"]["differences"] if r["region"] == "wt" and r["column"] == DICE
    )
    assert (row["mean"], row["low"], row["high"], row["n"]) == (-1, -1, -1, 7)
    assert row["p"] == wilcoxon(-np.ones(7)).pvalue
    assert result["methods"] == ["good", "<b>"]
    with (out / "comparison.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 7 * 3 * 2
    first = next(line for line in table if line["column"] == HD95)
    assert (first["case"], first["first"], first["second"]) == ("00001-000", "good", "<b>")
    assert (first["first_score"], first["second_score"], first["difference"]) == ("0.0", "374.0", "374.0")
    for name in ("good", "<b>"):
        files = {path.name for path in (out / name).iterdir()}
        assert files == {"scores.csv", "voxel_scores.csv", "summary.json", "report.html"}
    page = (out / "report.html").read_text()
    Page(page)
    assert re.findall(r'<td title="([^"]*)" class="sure">([^<]*)</td>', page) == [
        ("good better than &lt;b&gt;", "0.008 *")
    ]
    assert "&lt;b&gt;: 1 prediction missing" in page
    assert '<a href="%3Cb%3E/report.html">&lt;b&gt;</a>' in page
    # The folder is used again by a single method: nothing of the comparison stays.
    run(methods / "good", methods / "ref", out)
    assert not (out / "comparison.json").exists()


def test_cases_that_a_method_lacks_are_not_compared(methods):
    save(methods / "<b>/00001-000.nii.gz", lesions()[1:])
    result = run(f"[{methods}/good,'{methods}/<b>']", methods / "ref", methods / "out", "on_bad_case=skip")
    assert result["cases"] == [f"0000{i}-000" for i in range(2, 8)]


def test_no_common_case():
    def scored(case):
        cases = (ScoredCase(case, case, False, {}, {}, {}, {}),)
        return Evaluation(case, Path("p"), Path("r"), Scoring(), (), cases)

    with pytest.raises(EvaluationError, match="no case in common"):
        common_cases([scored("a"), scored("b")])
