"""Resuming a run: what is replayed, what is refused, and which checkpoint it is."""

import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from brats_lightning.config.command_line import quote
from brats_lightning.config.resolvers import config_dir
from brats_lightning.config.resume import (
    ResumeError,
    compare,
    expand,
    going_on,
    in_own_folder,
    newest_checkpoint,
    record,
)
from brats_lightning.inference.ensemble import CHECKPOINT_FORMAT
from brats_lightning.train import train


def write_run(folder, overrides=(), hydra_overrides=(), sources=(), cwd=None):
    run = folder / "my run"
    (run / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), run / ".hydra/overrides.yaml")
    saved = {
        "runtime": {"cwd": str(cwd or Path.cwd()), "config_sources": [{"path": p, "provider": w} for p, w in sources]},
        "overrides": {"hydra": list(hydra_overrides)},
        "job": {"config_name": "train"},
    }
    OmegaConf.save(OmegaConf.create({"hydra": saved}), run / ".hydra/hydra.yaml")
    write_checkpoint(run, "last", 7)
    return run


def write_checkpoint(run, name, step):
    path = run / f"checkpoints/{name}.ckpt"
    path.parent.mkdir(exist_ok=True)
    config = {"model": {}, "data": {}, "inference": {}}
    torch.save(
        {"state_dict": {"w": torch.arange(1000.0)}, "config": config, "global_step": step, "format": CHECKPOINT_FORMAT},
        path,
    )
    return path


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_a_requeued_job_goes_on_in_its_folder(tmp_path, monkeypatch, caplog):
    run = write_run(tmp_path)
    write_checkpoint(run, "best", 5)
    cfg = OmegaConf.create({"paths": {"run_dir": str(run)}, "ckpt_path": None, "weights": "w.ckpt", "seed": 3})
    assert going_on(cfg) == cfg  # a first start

    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    last = OmegaConf.create({"ckpt_path": str(run / "checkpoints/last.ckpt"), "weights": None})
    assert going_on(cfg) == OmegaConf.merge(cfg, last)
    line = [f"hydra.run.dir='{run}'", "model=unet"]
    assert in_own_folder(line) == [*line, f"resume={quote(str(run))}"]

    (run / "checkpoints/last.ckpt").write_bytes(b"damaged")
    assert going_on(cfg).ckpt_path == str(run / "checkpoints/best.ckpt")
    (run / "checkpoints/best.ckpt").unlink()
    assert going_on(cfg) == cfg
    assert "starts anew" in caplog.text


def test_other_command_lines_stay_as_they_are():
    for line in (["model=unet", "-m", "seed=1,2"], ["resume=null"], []):
        assert expand(line) == line


def test_a_new_run_in_the_folder_of_another_is_refused(tmp_path):
    run = write_run(tmp_path)
    for line in ([f"hydra.run.dir={run}"], ["model=unet", "hydra.run.dir='my run'"]):
        with pytest.raises(ResumeError, match="my run holds a run: continue it with resume="):
            in_own_folder(line)
    for line in (
        [f"hydra.run.dir={run}", f"resume={run}"],
        [f"hydra.run.dir={run}", "ckpt_path=a.ckpt"],
        [f"hydra.run.dir={run}", "-m", "seed=1,2"],
        [f"hydra.run.dir={tmp_path}/new"],
        ["model=unet"],
    ):
        in_own_folder(line)


def test_the_run_is_started_again_with_what_it_was_started_with(tmp_path):
    run = write_run(
        tmp_path,
        ["model=unet", "optimizer.lr=1e-3", "weights=w.ckpt", "ckpt_path=old.ckpt", "+trainer.limit_val_batches=3"],
        ["hydra.searchpath=[x]", "hydra.mode=MULTIRUN", "hydra.sweeper.n_trials=3"],
        [("/conf", "main"), ("/own", "command-line")],
    )
    assert expand([f"resume={run}", "optimizer.lr=1e-5", "trainer.limit_val_batches=4"]) == [
        "--config-dir=/own",
        "--config-name=train",
        "model=unet",
        "hydra.searchpath=[x]",
        "optimizer.lr=1e-5",
        "++trainer.limit_val_batches=4",
        f"ckpt_path={quote(str(run / 'checkpoints/last.ckpt'))}",
        f"resume={quote(str(run))}",
        f"hydra.run.dir={quote(str(run))}",
        "hydra.output_subdir=null",
    ]


def test_hydra_takes_the_line(tmp_path):
    run = write_run(tmp_path, ["experiment=quick", "+trainer.limit_val_batches=3", "data.label_map={4:3}"])
    line = expand([f"resume={run}", "trainer.limit_val_batches=4", "trainer=cpu"])
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train", [override for override in line if not override.startswith(("--", "hydra."))])
    assert (cfg.trainer.limit_val_batches, cfg.trainer.accelerator, cfg.data.label_map) == (4, "cpu", {4: 3})
    assert cfg.resume == str(run)


def test_what_a_run_was_resumed_with_lasts(tmp_path):
    run = write_run(tmp_path, ["seed=1", "trainer.max_steps=5"])
    record(run, ["seed=1", "trainer.max_steps=9", "ckpt_path=x", f"resume={quote(str(run))}"])
    assert expand([f"resume={quote(str(run))}"])[1:3] == ["seed=1", "trainer.max_steps=9"]


def test_relative_paths_are_meant_from_where_the_run_was_started(tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    (tmp_path / "else").mkdir()
    run = write_run(tmp_path / "else", ["data.root=cases"], cwd=tmp_path / "start")
    monkeypatch.chdir(tmp_path / "else")
    assert f"hydra.run.dir={quote(str(run))}" in expand(["resume=my run"])
    assert os.getcwd() == str(tmp_path / "start")  # noqa: PTH109


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=nothing"], "does not exist"),
        (["resume=."], "is not a run folder"),
        (["resume=file"], "is a file"),
        (["resume=my run", "-m"], "multirun"),
    ],
)
def test_what_cannot_be_resumed(tmp_path, arguments, message):
    (tmp_path / "file").touch()
    write_run(tmp_path)
    with pytest.raises(ResumeError, match=message):
        expand(arguments)


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    run = write_run(tmp_path)
    best = write_checkpoint(run, "best", 5)
    last = run / "checkpoints/last.ckpt"
    assert newest_checkpoint(run) == last  # step 7
    content = last.read_bytes()
    middle = content.index(torch.arange(1000.0).numpy().tobytes())
    for damaged in (content[:3000], b"", content[: middle + 9] + b"\xff" + content[middle + 10 :]):
        last.write_bytes(damaged)
        assert newest_checkpoint(run) == best
    best.unlink()
    with pytest.raises(ResumeError, match=r"last\.ckpt.* damaged"):
        newest_checkpoint(run)


SAVED = {
    "seed": 1,
    "data": {"root": "a", "modalities": ["t1c"], "batch_size": 2, "workers": 2},
    "optimizer": {"lr": 1e-3, "weight_decay": 0.1},
    "trainer": {"max_steps": 5, "accumulate_grad_batches": 1},
    "callbacks": {"average": None, "progress": {"refresh_rate": 1}},
}


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({}, []),
        ({"trainer": {"max_steps": 9}}, ["trainer.max_steps: 5 → 9"]),
        ({"optimizer": {"lr": 1e-5}}, ["optimizer.lr: 0.001 → 1e-05"]),
        ({"data": {"root": "b", "workers": 0}}, ["data.root: a → b", "data.workers: 2 → 0"]),
        ({"callbacks": {"progress": None}, "trainer": {"devices": 2}}, ["trainer.devices: (not set) → 2"]),
    ],
)
def test_what_may_change_is_named(now, told):
    merged = OmegaConf.to_container(OmegaConf.merge(SAVED, now))
    assert compare(SAVED, merged, Path("r/checkpoints/last.ckpt")) == told


@pytest.mark.parametrize(
    ("now", "line"),
    [
        ({"seed": 2}, "seed: 1 → 2"),
        ({"data": {"modalities": ["t2f"]}}, r"data.modalities: \['t1c'\] → \['t2f'\]"),
        ({"data": {"batch_size": 4}}, "data.batch_size: 2 → 4"),
        ({"optimizer": {"weight_decay": 0.2}}, "optimizer.weight_decay: 0.1 → 0.2"),
        ({"trainer": {"accumulate_grad_batches": 2}}, "trainer.accumulate_grad_batches: 1 → 2"),
        ({"callbacks": {"average": {"decay": 0.9}}}, r"callbacks.average.decay: \(not set\) → 0.9"),
        ({"target": "regions"}, r"target: \(not set\) → regions"),
        ({"data": {"ignore_label": 9}}, r"data.ignore_label: \(not set\) → 9"),
    ],
)
def test_what_both_must_share_is_refused_with_both_values_and_the_way_out(now, line):
    merged = OmegaConf.to_container(OmegaConf.merge(SAVED, now))
    with pytest.raises(ResumeError, match=f"(?s)  {line}.*weights=r/checkpoints/last.ckpt data.split_from=r"):
        compare(SAVED, merged, Path("r/checkpoints/last.ckpt"))


# ---- whole runs

SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2", "test_on=null", "logger=none", "data=brats_mets"]


@pytest.fixture
def cohort(tmp_path):
    """Nine patients; more can be added by number."""
    from tests.data.tiny_cases import write_case

    def add(*numbers):
        for number in numbers:
            write_case(tmp_path / "data", f"BraTS-MET-{number:05d}-000")
        return tmp_path / "data"

    add(*range(10, 19))
    return add


@pytest.fixture
def begun(composed, cohort, tmp_path):
    """A run of two steps on it, and how to resume it."""
    root = f"data.root={tmp_path}/data"
    train(composed(*SHORT, root, run="begun"))
    last = tmp_path / "begun/checkpoints/last.ckpt"

    def go_on(*overrides, run="rest"):
        return train(composed(*SHORT, root, f"ckpt_path={last}", "trainer.max_steps=4", *overrides, run=run))

    return go_on


def split_of(folder):
    return OmegaConf.to_container(OmegaConf.load(folder / "split.json"))


def test_patients_who_came_since_change_no_side_and_are_named(begun, cohort, tmp_path, caplog):
    before = split_of(tmp_path / "begun")
    cohort(1, 2, 30)
    caplog.set_level("INFO")
    begun()
    assert split_of(tmp_path / "rest") == before
    assert "3 that came since this run began and are not in its split (BraTS-MET-00001-000, " in caplog.text


def test_a_patient_who_is_gone_is_an_error_that_names_it(begun, cohort, tmp_path):
    (tmp_path / "data/BraTS-MET-00012-000").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"1 case of the split is not there.*BraTS-MET-00012-000.*split_from"):
        begun()


def test_a_renamed_patient_is_recognised(begun, tmp_path):
    folder = tmp_path / "data/BraTS-MET-00012-000"
    for file in folder.iterdir():
        file.rename(folder / file.name.replace("00012", "00099"))
    with pytest.raises(ValueError, match=r"BraTS-MET-00012-000 \(is it BraTS-MET-00099-000 now\?\)"):
        begun()


def test_a_case_gone_faulty_is_not_left_out_of_a_run(begun, tmp_path):
    file = next((tmp_path / "data/BraTS-MET-00012-000").glob("*t1c*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"BraTS-MET-00012-000 .* cannot be read"):
        begun()
    with pytest.raises(ValueError, match=r"faulty or without mask: BraTS-MET-00012-000"):
        begun("data.on_bad_case=skip")


def test_a_new_run_extends_the_split_of_another(begun, composed, cohort, tmp_path):
    before = split_of(tmp_path / "begun")
    root = cohort(1, 2, 30)
    train(composed(*SHORT, f"data.root={root}", f"data.split_from={tmp_path}/begun", run="extended"))
    after = split_of(tmp_path / "extended")
    assert all(set(before[part]) <= set(after[part]) for part in before)
    assert sum(map(len, after.values())) == 12


def test_a_new_learning_rate_is_used_and_named(begun, tmp_path, caplog):
    caplog.set_level("INFO")
    begun("optimizer.lr=1e-5", "scheduler.final=0.01")
    assert "optimizer.lr: 0.002 → 1e-05" in caplog.text
    saved = torch.load(tmp_path / "rest/checkpoints/last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-7)  # `final` of the new one
    assert saved["lr_schedulers"][0]["base_lrs"] == [1e-5]


def test_another_loss_is_refused_before_anything_is_written(begun, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)must have the same settings.*loss"):
        begun("loss=focal")
    assert not list((tmp_path / "rest").iterdir())
