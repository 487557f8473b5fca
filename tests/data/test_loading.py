"""The processes that read batches: killed, hanging, without room, and signalled with their parent."""

import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from brats_lightning.data.cache.entry import DamagedEntry
from brats_lightning.data.loading import Loader, LoaderError, LoaderSettings, loader_failure


class Numbers(Dataset):
    def __init__(self, act=None):
        self.act = act

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 3 and self.act:
            self.act()
        return torch.tensor(index)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def faulty():
    raise DamagedEntry("the file x.tif is damaged;\nrun preprocess: now")


def buggy():
    {}["t1c"]


def hanging():
    time.sleep(60)


def loader(act=None, workers=1, timeout=600):
    return Loader(Numbers(act), LoaderSettings(workers=workers, timeout=timeout), pin_memory=False)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order(workers):
    assert [int(batch) for batch in loader(workers=workers)] == list(range(6))


def test_a_job_of_the_joblib_launcher_reads_in_processes_too():
    joblib = pytest.importorskip("joblib")
    jobs = joblib.Parallel(n_jobs=2)(joblib.delayed(lambda: [int(batch) for batch in loader()])() for _ in range(2))
    assert jobs == [list(range(6))] * 2


def read_elsewhere(act):
    """What reading all batches ends with in a process of its own: signals reach whatever the tests' does by then."""
    code = f"""
from brats_lightning.data.cache.entry import DamagedEntry
from brats_lightning.data.loading import LoaderError
from brats_lightning.runtime.signals import Interrupted, listening
from tests.data.test_loading import {act}, loader
try:
    with listening():
        list(loader({act}))
except (LoaderError, Interrupted) as error:
    print(repr(error), flush=True)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=45).stdout


def test_a_killed_worker_is_named_with_a_way_out():
    assert re.search(r"a process that reads batches died \(.*\).*set data\.workers", read_elsewhere("killed"))


def test_the_message_of_an_error_in_a_worker_comes_without_its_traceback():
    with pytest.raises(LoaderError) as caught:
        list(loader(faulty))
    assert str(caught.value) == "the file x.tif is damaged;\nrun preprocess: now"


def test_a_bug_in_a_worker_keeps_its_traceback():
    with pytest.raises(KeyError, match="Original Traceback"):
        list(loader(buggy))
    assert loader_failure(AssertionError("Caught AssertionError in DataLoader worker process 0.")) is None


def test_an_error_in_this_process_is_left_as_it_is():
    with pytest.raises(ValueError, match=r"x\.tif") as caught:
        list(loader(faulty, workers=0))
    assert not isinstance(caught.value, LoaderError)
    assert loader_failure(RuntimeError("something else")) is None


def test_a_reader_that_hangs_ends_with_the_reason():
    with pytest.raises(LoaderError, match=r"data\.loader_timeout"):
        list(loader(hanging, timeout=1))


def test_a_signal_ends_the_waiting():
    assert "Interrupted('SIGTERM')" in read_elsewhere("hanging_with_signal")  # before the 60 seconds of hanging


def hanging_with_signal():
    os.kill(os.getppid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # as sent to the group: the worker goes on
    time.sleep(60)


def test_a_worker_leaves_the_groups_signal_to_its_parent():
    batches = loader(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert [int(batch) for batch in batches] == list(range(6))


@pytest.mark.parametrize(("free", "workers", "fits"), [(10**9, 2, True), (10**5, 2, False), (10**5, 0, True)])
def test_shared_memory_is_looked_at_before_training(composed, monkeypatch, free, workers, fits):
    from brats_lightning.config.build import build_data

    data = build_data(composed(f"data.workers={workers}"))
    data.prepare_data()
    data.setup("fit")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    if fits:
        data.check_shared_memory(1)
        return
    with pytest.raises(LoaderError, match=r"MiB of shared memory, /dev/shm has 0 MiB free: .*--shm-size.*workers=0"):
        data.check_shared_memory(1)
    size, largest = (
        24**3 * 2,
        max(case.image()[0].size for case in data.scored_cases("val") + data.scored_cases("test")),
    )
    needed = 2 * workers * (size + largest) * 9
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed))
    data.check_shared_memory(1)
    with pytest.raises(LoaderError):
        data.check_shared_memory(2)


def test_memory_is_pinned_for_the_device_that_trains(composed):
    from brats_lightning.config.build import build_data

    data = build_data(composed())
    for device, pinned in (("cpu", False), ("cuda", True)):
        data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
        assert data._pinned is pinned


@pytest.mark.parametrize("settings", [{"timeout": -1}, {"workers": -1}, {"batch_size": 0}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=r"data\.loader_timeout"):
        LoaderSettings(**settings)
