import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brats_lightning.runtime.files import UnwritableFile
from brats_lightning.runtime.workers import DeadWorker, cpu_count, each_result, process_pool


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "", 64),
        ({"cpu.max": "max 100000"}, "0::/", 64),
        ({"cpu.max": "250000 100000"}, "0::/", 3),  # two and a half
        ({"cpu.max": "50000 100000"}, "0::/", 1),
        ({"cpu.max": "400000 100000"}, "0::/host/path/of/the/container", 4),
        ({"a/cpu.max": "800000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 8),  # the group around it
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/", 2),
        ({"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, "4:cpu:/x", 64),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path, many, files, own, expected):
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    (tmp_path / "own").write_text(own + "\n")
    assert cpu_count(tmp_path / "cgroup", tmp_path / "own") == expected


def test_the_share_of_an_allocation_counts(tmp_path, many, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert cpu_count(tmp_path, tmp_path / "own") == 6


def test_workers_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from brats_lightning.runtime.workers import process_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = process_pool(2)\n"
        "    print(*{pool.submit(os.getpid).result() for _ in range(2)}, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.stdout.close()
    assert not any(_alive(pid) for pid in workers)


def _alive(pid):
    try:
        # one that nobody waits for stays as a zombie
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_pool_computes():
    with process_pool(1) as pool:
        assert pool.submit(sum, [1, 2]).result() == 3


def test_workers_from_a_server_end_with_a_killed_parent_too(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time, multiprocessing\n"
        "from brats_lightning.runtime.workers import process_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = process_pool(1, multiprocessing.get_context('forkserver'))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)


def test_a_process_ends_with_the_parent_it_is_told():
    child = "import os, time; from brats_lightning.runtime.workers import end_with_parent as e; e(os.getppid()); "
    child += "print(os.getpid(), flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert _alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _task(text):
    if text == "die":
        os._exit(1)
    if text == "ours":
        raise UnwritableFile(28, "cannot write x")
    return text.upper()


def test_results_come_with_their_names():
    with process_pool(1) as pool:
        assert dict(each_result(pool, _task, {"one": ("a",), "two": ("b",)}, "fewer=1")) == {"one": "A", "two": "B"}


def test_a_dead_worker_says_at_what_it_died():
    with process_pool(1) as pool, pytest.raises(DeadWorker) as caught:
        list(each_result(pool, _task, {"one": ("a",), "two": ("die",), "three": ("c",)}, "fewer=1"))
    assert str(caught.value) == (
        "one of 1 worker processes died, of those at two: perhaps it ran out of memory; then use fewer processes: "
        "fewer=1"
    )


def test_an_error_of_ours_is_raised_here_and_jobs_that_wait_are_dropped():
    with process_pool(1) as pool, pytest.raises(UnwritableFile, match="cannot write x") as caught:
        list(each_result(pool, _task, {"one": ("ours",)} | {str(i): ("a",) for i in range(50)}, "fewer=1"))
    assert caught.traceback[-1].path.name == "workers.py"
