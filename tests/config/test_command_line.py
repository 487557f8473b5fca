import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from brats_lightning.config import command_line
from brats_lightning.config.command_line import (
    NoHomeFolder,
    bare_words,
    expanded,
    needs_quotes,
    shell_faults,
    unknown_flags,
    values_of_flag,
    with_quoted_paths,
)
from brats_lightning.config.resolvers import resolved


def value_of(argument):
    (override,) = with_quoted_paths([argument])
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize(
    "path",
    [
        "/data/UCSD - Training (1)",
        "/runs/epoch=999-step=87999.ckpt",
        "/data/Köln",
        "./köln",
        "../a=b",
        "/data/[new]",
        "/data/{1}",
        "/data/no #1",
        "/data/a;b&c!",
        "/data/patient's",
        '/data/12"',
        "/data/a b",
        "/data/plain",
    ],
)
def test_any_path_arrives_as_it_was_typed(path):
    assert value_of(f"key={path}") == path
    assert value_of(f"+key=[{path},/other]") == [path, "/other"]


def test_a_name_that_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_quoted_paths(["ckpt=a=1,b=2.ckpt"]) == ["ckpt=a=1,b=2.ckpt"]
    Path("a=1,b=2.ckpt").touch()
    assert value_of("ckpt=a=1,b=2.ckpt") == "a=1,b=2.ckpt"


@pytest.mark.parametrize(
    "argument",
    [
        "-m",
        "--config-dir=/a=b",
        "~callbacks.best",
        "k=choice(1,2)",
        "k={4:3}",
        "k=[1,2]",
        "k=a,b",
        "k='/a=b'",
        "k=",
        "k",
    ],
)
def test_what_hydra_understands_stays(argument):
    assert with_quoted_paths([argument]) == [argument]


@pytest.mark.parametrize("argument", ["name=Köln", "k=choice(1,2", "k=[1,2", 'k="x', "k=a=b"])
def test_what_may_be_anything_is_not_touched(argument):
    assert with_quoted_paths([argument]) == [argument]


def test_the_advice_can_be_pasted():
    for argument, meant in (("name=Köln", "Köln"), ("name=it's", "it's"), ("ckpt=a=1.ckpt", "a=1.ckpt")):
        (pasted,) = shlex.split(needs_quotes(argument))
        assert OverridesParser.create().parse_override(pasted).value() == meant
    for argument in ("k=choice(1,2", "k=[1,2", 'k="x', "k=1", "k=a,b", "-m"):
        assert needs_quotes(argument) is None


@pytest.mark.parametrize(
    ("line", "bare"),
    [
        ("masks", ["masks"]),
        ("~/masks a/b input=x -m c", ["~/masks", "a/b", "c"]),
        ("predictions=x ~hydra.sweep --cfg job --config-dir conf --config-dir=conf -m --help", []),
        ("--config-dir=conf masks", ["masks"]),
    ],
)
def test_words_without_a_key(line, bare):
    assert bare_words(line.split()) == bare


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for argument in ("k=~/x", 'k="~/x"', "k='~/x'", "+k=~/x", "++k=~/x"):
        assert value_of(argument) == "/home/me/x"
    assert value_of("k=~") == "/home/me"
    assert value_of("k=[~/x,'~/y']") == ["~/x", "~/y"]  # the config's values are looked at, too
    cfg = OmegaConf.create({"input": ["~/x", "/y"], "a": {"b": "~", "c": "a~/b", "d": "~x", "e": 1}})
    assert resolved(cfg) == {
        "input": ["/home/me/x", "/y"],
        "a": {"b": "/home/me", "c": "a~/b", "d": "~x", "e": 1},
    }


def test_an_account_without_a_home_folder(monkeypatch):
    monkeypatch.setattr(command_line.os.path, "expanduser", lambda path: path)
    with pytest.raises(NoHomeFolder, match="~/x: this account has no home folder"):
        expanded("~/x")


def test_run_folders_of_a_config_file_lie_below_the_home_folder(tmp_path):
    (tmp_path / "conf/paths").mkdir(parents=True)
    (tmp_path / "conf/paths/mine.yaml").write_text("defaults: [default]\noutputs: ~/out\n")
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir(), cwd.mkdir()
    code = (
        "from brats_lightning.config.entry_point import entry_point; "
        "entry_point('preprocess', lambda cfg: print(cfg.paths))"
    )
    command = [sys.executable, "-c", code, f"--config-dir={tmp_path}/conf", "paths=mine"]
    for more in ([], ["data.val_share=0.1,0.2", "-m"]):
        done = subprocess.run(
            [*command, *more], env={"HOME": str(home)}, cwd=cwd, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert f"'cache_dir': '{home}/out/cache'" in done.stdout
    assert not list(cwd.iterdir())
    assert sorted(path.name for path in (home / "out").iterdir()) == ["multirun", "preprocess"]


def test_a_refused_value_is_printed_with_its_quotes(tmp_path):
    code = "from brats_lightning.train import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "name=Köln"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert re.search(r"^error: name=Köln: quote the value, .*'name=\"Köln\"'$", done.stderr, re.M)


def test_values_longer_than_a_name_may_be_pass():
    line = ["-m", "seed=" + ",".join(map(str, range(100))), "model=unet"]
    assert with_quoted_paths(line) == line


@pytest.mark.parametrize("call", ["'preprocess', stop", "'preprocess', print, rewrite=stop"])
def test_ctrl_c_is_no_traceback(tmp_path, call):
    code = (
        "from brats_lightning.config.entry_point import entry_point\n"
        "def stop(_): raise KeyboardInterrupt\n"
        f"entry_point({call})"
    )
    command = [sys.executable, "-c", code, f"paths.outputs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_command_without_arguments_has_no_faults():
    assert (unknown_flags([]), shell_faults([]), bare_words([]), with_quoted_paths([])) == ({}, [], [], [])


def test_the_values_of_a_flag():
    line = ["--config-dir", "a b", "model=unet", "-cd=c", "-m", "--config-dir"]
    assert values_of_flag(line, "--config-dir", "-cd") == ["a b", "c", ""]
    assert values_of_flag([], "--config-dir") == []
