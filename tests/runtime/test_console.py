import logging
import time

import pytest

from brats_lightning.runtime.console import progress_bar, show, table_of


def test_names_with_brackets_are_shown_as_they_stand(capsys):
    path = "/data/müller [new] :x: [/b]/" + "a" * 200
    show(f"{path}: 3 masks")
    assert capsys.readouterr().out == f"{path}: 3 masks\n"
    show(table_of(["[file]"], [["a [new] :x: [/b]"]], title="[all]"))
    out = capsys.readouterr().out
    assert all(text in out for text in ("[all]", "[file]", "a [new] :x: [/b]"))


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_progress_is_logged_at_times(clock, caplog, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    caplog.set_level(logging.INFO)
    with progress_bar() as bar:
        assert bar.disable
        task = bar.add_task("making", total=48)
        for _ in range(9):
            clock[0] += 10
            bar.advance(task)
    assert caplog.messages == [
        "making: 3 of 48 cases, 0:07:30 left",
        "making: 6 of 48 cases, 0:07:00 left",
        "making: 9 of 48 cases, 0:06:30 left",
    ]
