"""The table of a multirun."""

import csv
import json
import math
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from brats_lightning.config.outcomes import Ending, record_ending, write_scores
from brats_lightning.config.sweep import SweepTable, collect, command_of
from tests.conftest import TINY


def job(folder, name, overrides, scores):
    (folder / name / ".hydra").mkdir(parents=True)
    (folder / name / ".hydra/overrides.yaml").write_text(json.dumps(overrides))
    sources = [{"provider": "command-line", "path": "/my conf"}, {"provider": "main", "path": "conf"}]
    hydra = {"runtime": {"config_sources": sources}, "overrides": {"task": overrides}}
    (folder / name / ".hydra/hydra.yaml").write_text(json.dumps({"hydra": hydra}))
    if scores is not None:
        (folder / name / "metrics.json").write_text(json.dumps(scores))


def config_of(folder):
    hydra = {"sweep": {"dir": str(folder)}, "sweeper": {}}
    return OmegaConf.create({"hydra": hydra, "objective": "val/dice_mean", "objective_mode": "max"})


def finished(folder):
    job(
        folder,
        "0_unet",
        ["seed=0", "model=unet", "model/size=small"],
        {"best/val/dice_mean": 0.5, "test/dice_mean": 0.4},
    )
    job(
        folder,
        "1_res",
        ["seed=0", "model=resunet", "model/size=base", "+x=1"],
        {"best/val/dice_mean": 0.7, "test/dice_mean": None},
    )
    job(folder, "2_plain", ["seed=0", "model=plain"], {"test/dice_mean": 0.9})  # never validated
    job(folder, "3_failed", ["seed=0", "model=att"], None)
    record_ending(folder / "3_failed", Ending.FAILED, "no such\nthing")
    job(folder, "4_killed", ["seed=0", "model=att"], None)


def test_rows_hold_what_differs_best_first(tmp_path):
    finished(tmp_path)
    sweep = collect(tmp_path, "val/dice_mean", "max")
    assert sweep.varied == ["model", "model/size", "x"]
    assert [(job.name, job.settings["model"], job.settings["x"]) for job in sweep.ranked] == [
        ("1_res", "resunet", "1"),
        ("0_unet", "unet", ""),
        ("2_plain", "plain", ""),
        ("3_failed", "att", ""),
        ("4_killed", "att", ""),
    ]
    assert [job.failed for job in sweep.ranked] == [False, False, False, True, True]
    assert sweep.ranked[3].outcome == "no such\nthing"
    assert "without scores" in sweep.ranked[4].outcome
    least = collect(tmp_path, "val/dice_mean", "min")
    assert [job.name for job in least.ranked][:3] == ["0_unet", "1_res", "2_plain"]


def test_the_table_is_printed_and_written(tmp_path, capsys):
    finished(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        SweepTable().on_multirun_end(config_of(tmp_path))
    assert stopped.value.code == 1
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["best/val/dice_mean"], row["test/dice_mean"]) for row in rows] == [
        ("1_res", "0.7", ""),
        ("0_unet", "0.5", "0.4"),
        ("2_plain", "", "0.9"),
        ("3_failed", "", ""),
        ("4_killed", "", ""),
    ]
    assert [row["model/size"] for row in rows] == ["base", "small", "", "", ""]
    printed = capsys.readouterr().out
    assert "model/size" in printed
    assert printed.index("0.7000") < printed.index("0.5000")


def test_the_best_job_is_a_command(tmp_path, capsys):
    finished(tmp_path)
    (tmp_path / "1_res/config.yaml").write_text("seed: 7\n")
    assert command_of(tmp_path / "1_res") == (
        "python -m brats_lightning.train '--config-dir=/my conf' seed=0 model=resunet model/size=base +x=1"
    )
    job(tmp_path, "9_b", ["launcher=joblib", "loss.w=[1, 2]", "ckpt_path=a.ckpt"], {"best/val/dice_mean": 0.8})
    (tmp_path / "9_b/config.yaml").write_text("seed: 7\n")
    with pytest.raises(SystemExit):
        SweepTable().on_multirun_end(config_of(tmp_path))
    command = "python -m brats_lightning.train '--config-dir=/my conf' 'loss.w=[1, 2]' seed=7"
    assert f"by itself:\n  {command}\n" in capsys.readouterr().out
    assert "&#39;loss.w=[1, 2]&#39; seed=7</pre>" in (tmp_path / "sweep.html").read_text()


def test_jobs_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 2):
        job(tmp_path, f"{number}_unet", [f"data.fold={number}"], {"best/val/dice_mean": 0.5})
    assert [job.name for job in collect(tmp_path, "val/dice_mean", "max").jobs] == ["2_unet", "9_unet", "10_unet"]


def test_a_pruned_job_is_a_result_with_its_scores_so_far(tmp_path):
    job(tmp_path, "0_slow", ["optimizer.lr=1e-9"], None)
    record_ending(tmp_path / "0_slow", Ending.PRUNED, "pruned at step 2")
    write_scores(tmp_path / "0_slow", {"val/dice_mean": 0.9, "val/dice_et": math.nan})
    job(tmp_path, "1_good", ["optimizer.lr=1e-3"], {"best/val/dice_mean": 0.1})
    SweepTable().on_multirun_end(config_of(tmp_path))
    good, slow = collect(tmp_path, "val/dice_mean", "max").ranked
    assert (good.name, slow.name) == ("1_good", "0_slow")
    assert (slow.settings, slow.outcome, slow.failed) == ({"optimizer.lr": "1e-9"}, "pruned at step 2", False)
    assert slow.scores == {"val/dice_mean": 0.9, "val/dice_et": None}


def test_brackets_are_printed_as_they_stand(tmp_path, capsys):
    job(tmp_path, "0_a", ["trust=[monai]", "data.modalities=[/t1c]"], {"test/dice_mean": 0.4})
    job(tmp_path, "1_b", ["trust=[mine]", "data.modalities=[t1n,t1c]"], {"test/dice_mean": 0.3})
    SweepTable().on_multirun_end(config_of(tmp_path))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[monai]", "[/t1c]", "[mine]", "[t1n,t1c]"))


def test_of_finished_jobs_alone_there_is_no_word_of_failure(tmp_path, capsys):
    job(tmp_path, "0_unet", ["model=unet"], {"test/dice_mean": 0.4})
    SweepTable().on_multirun_end(config_of(tmp_path))
    assert "outcome" not in (tmp_path / "sweep.csv").read_text() + capsys.readouterr().out


def test_without_jobs_there_is_no_table(tmp_path, capsys):
    SweepTable().on_multirun_end(config_of(tmp_path))
    assert not capsys.readouterr().out
    assert not (tmp_path / "sweep.csv").exists()


def test_a_bad_job_does_not_end_a_sweep(tmp_path, shared_outputs):
    command = [
        *(sys.executable, "-m", "brats_lightning.train", "-m", "test_on=foo,null", "debug=steps", *TINY, "trainer=cpu"),
        *(f"paths.outputs={tmp_path}", f"paths.cache_dir={shared_outputs}/cache", "seed=0", "logger=none"),
        f"paths.phantom_dir={shared_outputs}/phantoms",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: test_on must be" in done.stderr
    assert "Traceback" not in done.stderr
    (table,) = tmp_path.glob("multirun/*/sweep.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["test_on"], row["outcome"][:12], bool(row["val/loss"])) for row in rows] == [
        ("null", "", True),
        ("foo", "test_on must", False),
    ]


def test_a_failed_job_does_not_keep_the_scores_of_an_earlier_one(tmp_path):
    job(tmp_path, "0_unet", ["model=unet"], {"best/val/dice_mean": 0.9})
    record_ending(tmp_path / "0_unet", Ending.FAILED, "disk full")
    (only,) = collect(tmp_path, "val/dice_mean", "max").jobs
    assert (only.name, only.outcome, only.scores) == ("0_unet", "disk full", {})


def test_a_job_that_diverged_is_a_result_and_no_failure(tmp_path):
    job(tmp_path, "0_wild", ["optimizer.lr=1e30"], {"best/val/dice_mean": 0.9})
    record_ending(tmp_path / "0_wild", Ending.DIVERGED, "the loss is nan")
    job(tmp_path, "1_tame", ["optimizer.lr=1e-3"], {"best/val/dice_mean": 0.1})
    SweepTable().on_multirun_end(config_of(tmp_path))
    ranked = collect(tmp_path, "val/dice_mean", "max").ranked
    assert [(job.name, job.outcome) for job in ranked] == [("1_tame", ""), ("0_wild", "the loss is nan")]
