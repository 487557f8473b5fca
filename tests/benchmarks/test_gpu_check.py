"""The check of a GPU: its budget and its table; what it measures is tried by ``make gpu-check DEVICE=cpu``."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.gpu import __main__ as check
from tests.benchmarks.gpu.part import Cell, Rows, Size, seconds

CPU = torch.device("cpu")


def test_cells_say_what_was_measured():
    assert str(Cell(1234.5, "ms")) == "1.23e+03 ms"
    assert str(Cell(0.25, "", 0.5)) == "0.25 (at most 0.5)"
    assert str(Cell(0.75, "", 0.5)) == "0.75 (NO, at most 0.5)"
    assert str(Cell(None, "not installed: monai")) == "not installed: monai"
    assert [Cell(n, "", 0.5).failed for n in (0.5, 0.6, float("nan"))] == [False, True, True]


def test_a_table_of_all_parts(tmp_path):
    rows = {name: Rows(tmp_path / f"{name}.jsonl") for name in ("tests", "agreement", "steps", "feed")}
    rows["agreement"].add("loss", difference=Cell(2.0, "", 1.0))
    rows["steps"].add("mets", step=Cell(12.5, "ms"), memory=Cell(3.0, "GB"))
    rows["steps"].add("MONAI", note=Cell(None, "not installed: monai"))
    remarks = {"tests": "3 passed", "agreement": "", "steps": "stopped after 9 s", "feed": "FAILED (no); see log"}
    text, failed = check.report("cpu", rows, remarks)
    assert failed == ["agreement", "feed"]
    head, *parts = text.split("\n\n**")
    assert "64³, 1 at a time; volume 80×96×72; channels of the networks divided by 8" in head
    assert parts[0] == "Tests marked `gpu`**\n\n\n3 passed"
    assert parts[1].endswith("| | difference |\n|---|---|\n| loss | 2 (NO, at most 1) |")
    assert parts[2].splitlines()[2:] == [
        "| | step | memory | note |",
        "|---|---|---|---|",
        "| mets | 12.5 ms | 3 GB |  |",
        "| MONAI |  |  | not installed: monai |",
        "",
        "stopped after 9 s",
    ]


def test_a_part_ends_when_its_time_is_over(tmp_path, monkeypatch):
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\necho begun\nsleep 60 &\nwait\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    monkeypatch.setattr(check, "LEAST", 0)
    assert check._run("feed", "cpu", 0.5, tmp_path) == "stopped after 0 s"
    assert (tmp_path / "feed.log").read_text() == "begun\n"
    sleeper.write_text("#!/bin/sh\necho it is broken\nexit 3\n")
    assert check._run("feed", "cpu", 60, tmp_path) == f"FAILED (it is broken); see {tmp_path}/feed.log"
    sleeper.write_text("#!/bin/sh\necho 5 passed\n")
    assert check._run("tests", "cpu", 60, tmp_path) == "5 passed"
    assert check._run("feed", "cpu", 60, tmp_path) == ""


def test_no_part_begins_without_time(tmp_path):
    assert check._run("feed", "cpu", 9, tmp_path) == "left out: no time was left"
    assert not list(tmp_path.iterdir())


def test_what_is_measured():
    done = []
    assert 0 < seconds(lambda: done.append(1), CPU, 3) < 1
    assert len(done) == 4
    # In a process of its own, whose peak no other test has raised.
    code = "import torch; from tests.benchmarks.gpu.part import gigabytes as g; cpu = torch.device('cpu'); "
    code += "print(g(lambda: None, cpu), g(lambda: torch.ones(10**8), cpu))"
    held, filled = map(float, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert 0.3 < filled - held < 0.6
    assert Size.of("cuda").patch == 128


def test_every_part_has_a_function():
    for part in check.PARTS.values():
        if part.function:
            module, name = part.function.split(".")
            source = Path(check.__file__).with_name(f"{module}.py").read_text()
            assert f"\ndef {name}(size: Size, rows: Rows, scratch: Path) -> None:" in source


def test_a_gpu_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch finds no GPU; --device cpu"):
        check.main()
