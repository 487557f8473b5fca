"""Where a run comes from, training it again from its own folder, and in what runs differ."""

import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from brats_lightning.compare import compare
from brats_lightning.config.differences import SECTIONS, UNKNOWN, NoRun, differences
from brats_lightning.config.errors import explanation
from brats_lightning.config.repeat import repeated
from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.data.splits import Split
from brats_lightning.train import train
from brats_lightning.training import provenance
from brats_lightning.training.provenance import latest, read_provenance, record_start
from tests.conftest import TINY
from tests.runtime.test_environment import checkout, git  # noqa: F401


def shown(runs, rows=20):
    return compare(OmegaConf.create({"runs": [str(run) for run in runs], "rows": rows}))


# ---- whole runs

SHORT = ["trainer=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
SHORT += ["test_on=val", "logger=csv", "~callbacks.pictures"]


def contents(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def run_twice(tmp_path_factory, shared_outputs):
    """Folders of a run and of its repetition, and the files of the first before the second."""
    out = tmp_path_factory.mktemp("repeat")
    paths = [f"paths.outputs={out}", f"paths.run_dir={out}/first", f"paths.cache_dir={shared_outputs}/cache"]
    paths += [f"paths.phantom_dir={shared_outputs}/phantoms", "name=first"]
    register_resolvers()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        train(resolved(compose("train", [*TINY, *paths, *SHORT, "data.val_share=0.3", "data.test_share=0"])))
    before = contents(out / "first")
    command = [sys.executable, "-W", "ignore", "-m", "brats_lightning.train"]
    command += ["--config-dir", f"{out}/first", "--config-name", "config"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (second,) = (out / "train").iterdir()
    return out / "first", second, before


def test_a_run_is_trained_again_from_its_folder(run_twice):
    first, second, before = run_twice
    assert contents(first) == before
    assert second.name.endswith("_first")
    losses, again = (
        [line.split(",") for line in (run / "csv/metrics.csv").read_text().splitlines()] for run in run_twice[:2]
    )
    place = losses[0].index("train/loss")
    assert [row[place] for row in losses] == [row[again[0].index("train/loss")] for row in again]
    for name in ("split.json", "metrics.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    seeds = [OmegaConf.load(run / "config.yaml").seed for run in (first, second)]
    assert seeds[0] == seeds[1] is not None
    assert str(first) not in (second / "config.yaml").read_text().replace(f"{first}/split.json", "")


def test_equal_runs_are_said_to_be_equal(run_twice, capsys):
    found = shown(run_twice[:2])
    assert found == {name: {} for name in SECTIONS}
    assert capsys.readouterr().out.strip() == f"no difference in {', '.join(SECTIONS)}"


def test_a_run_records_where_it_comes_from(run_twice):
    first, _, _ = run_twice
    record = read_provenance(first)
    (start,) = record["starts"]
    assert record["seed"] == OmegaConf.load(first / "config.yaml").seed
    assert start["folder"] == str(Path.cwd())
    assert shlex.split(start["command"])[0] == sys.orig_argv[0]
    assert start["hardware"]["cores"] >= 1
    split = json.loads((first / "split.json").read_text())
    cases = record["data"]["cases"]
    assert {part: [name for name in split[part] if cases[name]["part"] == part] for part in split} == split
    sidecars = first.parent.parent.rglob(f"cache/*/{split['train'][0]}.json")  # of this and other tests' data sets
    entries = [json.loads(sidecar.read_text()) for sidecar in sidecars]
    assert cases[split["train"][0]] in [
        {
            "part": "train",
            "bytes": sum(file["size"] for file in entry["files"].values()),
            "image": f"{entry['arrays']['image']['crc32']:08x}",
            "mask": f"{entry['arrays']['mask']['crc32']:08x}",
        }
        for entry in entries
    ]


def test_the_config_of_another_version_is_explained(composed):
    cfg = composed()
    with pytest.raises(ConfigAttributeError) as caught:
        _ = OmegaConf.masked_copy(cfg, ["data"]).target
    assert explanation(caught.value, "train", []) is None  # of our own config it would be a bug
    said = explanation(caught.value, "another", [])
    assert said.startswith("the config that --config-name names has no target, which this version")
    assert said.endswith("or set it: +target=…")


# ---- records

CASES = {
    "A": {"part": "train", "bytes": 10, "image": "aa", "mask": "01"},
    "B": {"part": "val", "bytes": 20, "image": "bb", "mask": "02"},
    "C": {"part": None, "bytes": 30, "image": "cc", "mask": "03"},
}
CODE = {
    "program": {"version": "0.1.0", "folder": "/p", "commit": "1f", "changed": ["a.py"], "diff": "code.diff"},
    "working_folder": None,
}


def run_folder(folder, cases=CASES, code=CODE, diff="+1", scores=None, packages=None, settings=None):
    folder.mkdir()
    config = {"paths": {"run_dir": str(folder)}, "seed": 0, "name": folder.name, "ckpt_path": None}
    config |= {"data": {"fold": 0, "root": "cases"}}
    config |= {"callbacks": {"best": {"dirpath": f"{folder}/checkpoints"}}, **(settings or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    parts = [[name for name, case in cases.items() if case["part"] == part] for part in ("train", "val", "test")]
    Split(*map(tuple, parts)).save(folder / "split.json")
    (folder / "metrics.json").write_text(json.dumps(scores or {"test/dice_mean": 0.5, "test/dice_rc": None}))
    start = {"code": code, "packages": packages or {"torch": "2.13.0"}, "hardware": {"host": "n1"}}
    data = {"cache_format": 6, "cases": cases}
    (folder / provenance.FILE).write_text(yaml.safe_dump({"seed": 0, "starts": [start], "data": data}))
    (folder / "code.diff").write_text(diff)
    return folder


def test_each_kind_of_difference_is_named_with_the_value_of_each_run(tmp_path, capsys):
    one = run_folder(tmp_path / "one")
    moved = {"A": CASES["A"] | {"mask": "ff"}, "D": CASES["B"], "C": CASES["C"] | {"image": "00"}}
    two = run_folder(
        tmp_path / "two",
        moved,
        diff="+2",
        scores={"test/dice_mean": 0.25, "test/dice_rc": None, "test/iou_mean": 0.1},
        packages={"torch": "2.12.0"},
        settings={"optimizer": {"lr": 0.1}, "seed": 1},
    )
    found = shown([one, two, one])
    codes = found.pop("code")["program changes"]
    assert codes[0] == codes[2] != codes[1]
    assert codes[0].endswith(": a.py")
    assert found == {
        "settings": {"optimizer.lr": [None, 0.1, None]},
        "seed": {"seed": [0, 1, 0]},
        "split": {"B": ["val", None, "val"], "D": [None, "val", None]},
        "data": {
            "A mask": ["01", "ff", "01"],
            **{f"B {kind}": [value, None, value] for kind, value in (("there", True), ("bytes", 20))},
            **{f"B {kind}": [value, None, value] for kind, value in (("image", "bb"), ("mask", "02"))},
            **{f"D {kind}": [None, value, None] for kind, value in (("there", True), ("bytes", 20))},
            **{f"D {kind}": [None, value, None] for kind, value in (("image", "bb"), ("mask", "02"))},
        },
        "packages": {"torch": ["2.13.0", "2.12.0", "2.13.0"]},
        "hardware": {},
        "scores": {"test/dice_mean": [0.5, 0.25, 0.5], "test/iou_mean": [None, 0.1, None]},
    }
    out = capsys.readouterr().out
    assert "different: settings, seed, split, data, code, packages, scores; the same: hardware" in out
    shown([one, two], rows=1)
    out = capsys.readouterr().out
    assert "test/iou_mean" not in out
    assert out.count("1 more; rows=null shows all") == 2  # a score, and one of split


def test_how_an_equal_split_was_made_is_no_difference(tmp_path):
    weights = {"weights": f"{tmp_path}/two-too/best.ckpt"}  # not in the folder of the second run
    one = run_folder(tmp_path / "one", settings=weights)
    two = run_folder(tmp_path / "two", settings={"data": {"root": "cases"}, **weights})
    assert differences([one, two])["settings"] == {}
    other = run_folder(tmp_path / "other", {"A": CASES["A"]}, settings={"data": {"root": "cases"}, **weights})
    assert differences([one, other])["settings"] == {"data.fold": [0, None]}


def test_voxels_are_compared_only_where_they_are_made_alike(tmp_path):
    changed = {"A": CASES["A"] | {"bytes": 11, "image": "00"}, "B": CASES["B"]}
    settings = {"data": {"fold": 0, "root": "cases", "preprocessing": {"spacing": [1, 1, 1]}}}
    one, two = run_folder(tmp_path / "one"), run_folder(tmp_path / "two", changed, settings=settings)
    assert differences([one, two])["data"] == {"A bytes": [10, 11]}


def test_what_an_older_run_did_not_record_is_said(tmp_path, capsys):
    one, two, old = (run_folder(tmp_path / name) for name in ("one", "two", "old"))
    (old / provenance.FILE).unlink()
    (old / "metrics.json").unlink()
    assert shown([one, old]) == {name: {} for name in SECTIONS}
    out = capsys.readouterr().out
    assert f"{old} has no record of: data, code, packages, hardware, scores" in " ".join(out.split())
    assert out.splitlines()[-1] == "no difference in settings, seed, split"
    (two / "metrics.json").write_text('{"test/dice_mean": 0.1}')
    assert shown([one, old, two])["scores"]["test/dice_mean"] == [0.5, UNKNOWN, 0.1]


def test_other_folders_are_refused_all_at_once(tmp_path):
    one = run_folder(tmp_path / "one")
    with pytest.raises(NoRun, match=r"split\.json\): .*/none, .*/neither"):
        differences([one, tmp_path / "none", tmp_path / "neither"])
    with pytest.raises(NoRun, match="two or more"):
        differences([one])


def test_a_later_start_records_what_changed_since(tmp_path, monkeypatch, checkout):  # noqa: F811
    monkeypatch.chdir(checkout)
    run = tmp_path / "run"
    run.mkdir()
    (checkout / "model.py").write_text("depth = 5\n")
    for _ in range(2):
        record_start(run, 3, ["model=mine"])
    (checkout / "model.py").write_text("depth = 6\n")
    record_start(run, 3, ["model=mine"])
    record = read_provenance(run)
    assert record["seed"] == 3
    first, second, third = record["starts"]
    assert {"code", "packages", "hardware"} < set(first)
    assert set(second) == {"time", "command", "overrides", "folder"}
    assert set(third) == {*second, "code"}
    assert latest(record)["hardware"] == first["hardware"]
    commit = git(checkout, "rev-parse", "HEAD").strip()
    for start, file, depth in ((first, "working_folder.diff", 5), (third, "working_folder_2.diff", 6)):
        around = start["code"]["working_folder"]
        assert (around["commit"], around["changed"], around["diff"]) == (commit, ["model.py"], file)
        assert f"+depth = {depth}\n" in (run / file).read_text()


# ---- the command line of a repetition


def test_only_the_config_of_a_run_is_completed(tmp_path):
    run = run_folder(tmp_path / "run")
    for line in (
        ["--config-dir", str(run)],
        ["--config-dir", str(run), "--config-name=train"],
        ["--config-dir", str(tmp_path), "--config-name", "config"],
        ["model=unet"],
    ):
        assert repeated(line) == line


def test_paths_into_the_old_folder_lead_into_the_new_one_and_the_users_settings_win(tmp_path):
    run = run_folder(tmp_path / "run", settings={"ckpt_path": f"{tmp_path}/run/last.ckpt", "weights": "a.ckpt"})
    line = [f"--config-dir={run}", "-cn", "config", "data.split_file=mine.json", "~callbacks.best", "hydra.job.name=x"]
    assert repeated(line)[: len(line)] == line
    assert set(repeated(line)[len(line) :]) == {
        'paths.run_dir="${hydra:runtime.output_dir}"',
        "ckpt_path=null",
        "+hydra=default",
        "+hydra.callbacks.sweep_table._target_=brats_lightning.config.sweep.SweepTable",
        "resume=null",
        "data.split_from=null",
        "data.folds=null",
        "data.fold=null",
    }


def test_a_run_from_the_checkpoint_of_another_begins_with_it_again(tmp_path):
    run = run_folder(tmp_path / "run", settings={"ckpt_path": "other/checkpoints/last.ckpt"})
    line = [f"--config-dir={run}", "--config-name=config"]
    assert not [text for text in repeated(line) if text.startswith(("ckpt_path", "data."))]
