"""The page of a multirun."""

import math
import re

import pytest

from brats_lightning.evaluation.report.drawing import PAPER, new_figure
from brats_lightning.evaluation.report.sweep import Sweep, explained_variance, sweep_page
from brats_lightning.evaluation.report.sweep_figures import Job, _heights, history_chart, parallel_chart
from brats_lightning.evaluation.report.wording import rounded


def job(number, value, outcome="", failed=False, **settings):
    scores = {"best/val/dice_mean": value, "test/dice_mean": value, "test/dice_et": 0.1}
    return Job(f"{number}_unet", settings, value, outcome, failed, {} if outcome else scores)


def sweep(*jobs, mode="max", varied=("model", "lr"), **more):
    return Sweep("two words", "val/dice_mean", mode, varied, jobs, **more)


GRID = [
    job(0, 0.1, model="a", lr="0.001"),
    job(1, 0.3, model="a", lr="0.01"),
    job(2, 0.5, model="b", lr="0.001"),
    job(3, 0.7, model="b", lr="0.01"),
]


def test_the_variance_that_settings_explain():
    """Means of model: 0.2, 0.6; of lr: 0.3, 0.5; of all: 0.4 with a variance of (0.09 + 0.01) · 2 / 4 = 0.05."""
    assert explained_variance(sweep(*GRID)) == pytest.approx({"model": 0.04 / 0.05, "lr": 0.01 / 0.05})
    assert list(explained_variance(sweep(*GRID))) == ["model", "lr"]


def test_what_has_no_importance():
    assert explained_variance(sweep(*GRID[:2])) == {}
    every = [job(i, 0.1 * i, model="a", lr=str(i)) for i in range(4)]
    assert explained_variance(sweep(*every, varied=["lr"])) == {}
    assert explained_variance(sweep(*[job(i, 0.5, model="ab"[i % 2]) for i in range(4)], varied=["model"])) == {}


def test_the_best_comes_first_and_what_ended_early_last():
    lost = [job(4, math.nan, "out of memory", failed=True, model="a", lr="1"), job(5, 0.9, "pruned", model="b", lr="1")]
    for mode, order in (("max", [3, 2, 1, 0]), ("min", [0, 1, 2, 3])):
        page = sweep(*lost, *GRID, mode=mode)
        assert [ranked.name for ranked in page.ranked] == [f"{i}_unet" for i in [*order, 5, 4]]
        assert page.best == GRID[order[0]]
    assert sweep(*lost).best is None


def test_the_page_says_all(tmp_path):
    jobs = [*GRID, job(4, math.nan, "<out> of memory", failed=True, model="a", lr="1e-05")]
    page = sweep_page(sweep(*jobs, job(5, 0.2, "pruned at step 2", model="b", lr="1")), "python -m x 'a=[1]'")
    assert page.count("<svg") == 3
    text = re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)
    assert "6 jobs · compared by val/dice_mean, higher is better\n· 1 ended early\n· <span" in text
    for part in ("python -m x &#39;a=[1]&#39;", "&lt;out&gt; of memory", "pruned at step 2", "0.7000", "1 failed"):
        assert part in text
    assert text.index("0.7000") < text.index("0.5000") < text.index("0.2000")
    assert "test/dice_mean</th>" in text
    assert "test/dice_et</th>" not in text


def test_importances_of_an_optimiser_win():
    assert "PED-ANOVA" in sweep_page(sweep(*GRID, importances={"lr": 0.75, "model": 0.25}), "")
    assert "variance of the score" in sweep_page(sweep(*GRID), "")


def test_a_sweep_without_scores_has_a_page():
    page = sweep_page(sweep(job(0, math.nan, "disk full", failed=True, model="a", lr="1")), "")
    assert "No job has the score val/dice_mean" in page
    assert "<svg" not in page


def test_places_on_an_axis():
    assert _heights(["b", "a", "b"]) == ([0.25, 0.75, 0.25], {"b": 0.25, "a": 0.75})
    assert _heights(["1", "3", "2"]) == ([0.0, 1.0, 0.5], {"1": 0.0, "2": 0.5, "3": 1.0})
    places, ticks = _heights(["1e-4", "1e-2", "1e-3"])
    assert places == pytest.approx([0, 1, 0.5])
    assert ticks == pytest.approx({"0.0001": 0, "0.001": 0.5, "0.01": 1})
    assert list(_heights(["1", "1.01", "2"])[1]) == ["1", "1.25", "1.5", "1.75", "2"]
    assert _heights(["", "x"])[1] == {"x": 0.25, "not set": 0.75}
    places, ticks = _heights([0.5, math.nan])
    assert places[0] == 0.5
    assert math.isnan(places[1])
    assert ticks == {"0.5": 0.5}


def test_the_history_has_the_best_so_far():
    jobs = [*GRID[1:3], job(4, 0.9, "pruned at step 2"), *GRID[:1], job(6, math.nan, "disk full", failed=True)]
    with new_figure(4.0, 3.0, PAPER) as figure:
        history_chart(jobs, "val/dice_mean", "max").draw(figure, PAPER)
    (axes,) = figure.axes
    best, ended, early, lost = axes.lines
    assert list(best.get_ydata()) == [0.3, 0.5, 0.5, 0.5, 0.5]
    assert list(ended.get_xdata()) == [0, 1, 3]
    assert list(early.get_ydata()) == [0.9]
    assert list(lost.get_xdata()) == [4]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("number of the job", "val/dice_mean")


def test_lines_run_through_settings_to_the_score():
    page = sweep(*GRID)
    with new_figure(4.0, 3.0, PAPER) as figure:
        chart = parallel_chart(page.ranked, ["model", "lr"], "val/dice_mean")
        chart.draw(figure, PAPER)
    best = figure.axes[0].lines[3]  # on top of the others
    assert list(best.get_ydata()) == pytest.approx([0.25, 1, 1])
    assert best.get_color() == PAPER.colour(0)
    assert chart.table[1] == ["3_unet", "b", "0.01", 0.7]


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("0.0021320982", "0.002132"),
        ("1.2345678e-05", "1.235e-05"),
        ("0.5", "0.5"),
        ("12", "12"),
        ("[1,2]", "[1,2]"),
        ("1e-3", "1e-3"),
    ],
)
def test_long_numbers_are_shortened(typed, shown):
    assert rounded(typed) == shown
