"""Several processes predict what one does, and threads read and write beside the network."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from brats_lightning.config.prediction import load_predictor
from brats_lightning.data.cases import CaseError
from brats_lightning.data.layouts.brats import find_inputs
from brats_lightning.predict import predict
from brats_lightning.runtime.workers import DeadWorker
from tests.data.tiny_cases import SHAPE, write_case
from tests.tiny_models import bright_is_et

CASES = [f"BraTS-MET-0000{n}-000" for n in range(1, 5)]


@pytest.fixture
def settings(composed, tmp_path):
    """Of predicting ``tmp_path/in`` into a folder, in 32 bits on the CPU; ET is what is bright in T1c."""
    bright_is_et(tmp_path / "et.ckpt")

    def make(folder, *overrides):
        places = f"ckpt={tmp_path}/et.ckpt", f"input={tmp_path}/in", f"output={tmp_path}/{folder}"
        return composed(*places, "device=cpu", "precision=32", *overrides, name="predict")

    return make


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_times(summary):
    cases = {name: {k: v for k, v in case.items() if k != "seconds"} for name, case in summary["cases"].items()}
    return summary | {"cases": cases}


def test_two_processes_make_what_one_makes(settings, tmp_path, caplog):
    for case in CASES:
        write_case(tmp_path / "in", case, seg=None)
    bad, odd = CASES[1], CASES[2]
    file = tmp_path / f"in/{bad}/{bad}-t1c.nii.gz"
    file.write_bytes(file.read_bytes()[:100])
    image = np.full(SHAPE, -1, np.int16)  # whose background is not 0
    image[2:-2, 2:-2, 2:-2] = 5
    write_case(tmp_path / "in", odd, t1c=image, seg=None)
    alike = "probabilities=true", "on_bad_case=skip"
    one = predict(settings("one", *alike))
    remarks = [record.message for record in caplog.records if record.message.startswith(f"{odd}: t1c")]
    assert remarks
    caplog.clear()
    two = predict(settings("two", *alike, "devices=2", f"summary={tmp_path}/two.json"))
    assert list(two["cases"]) == [CASES[0], *CASES[2:]]  # in their order, whichever ended first
    assert without_times(two) == without_times(one)
    assert json.loads((tmp_path / "two.json").read_text()) == two
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    assert [record.message for record in caplog.records if record.message.startswith(f"{odd}: t1c")] == remarks
    # interrupted and resumed, with an error at the end
    (tmp_path / f"two/{CASES[0]}.nii.gz").unlink()
    (tmp_path / f"two/{CASES[3]}.nii.gz").unlink()
    with pytest.raises(CaseError, match=f"(?s)1 case cannot be used.*{bad}"):
        predict(settings("two", "devices=2", "probabilities=true"))
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_a_thread_reads_and_writes_what_would_be_without(settings, tmp_path):
    for case in CASES:
        write_case(tmp_path / "in", case, seg=None)
    predictor = load_predictor(settings("out"))
    wanted = {
        how: {
            case.id: (case, [tmp_path / how / f"{case.id}{end}.nii.gz" for end in ("", "_probabilities")])
            for case in find_inputs(str(tmp_path / "in"))
        }
        for how in ("alone", "beside")
    }
    alone = {name: predictor.one(*job).summary for name, job in wanted["alone"].items()}
    shares = []
    beside = {name: outcome.summary for name, outcome in predictor.each(wanted["beside"], shares.append)}
    assert list(beside) == CASES
    assert without_times({"cases": beside}) == without_times({"cases": alone})
    assert files_of(tmp_path / "beside") == files_of(tmp_path / "alone")
    assert sum(shares) == pytest.approx(len(CASES))
    assert dict(predictor.each({})) == {}


def test_a_number_of_devices(settings, tmp_path):
    write_case(tmp_path / "in", seg=None)
    for number in (0, "all"):
        with pytest.raises(ValueError, match="devices must be a number"):
            predict(settings("out", f"devices={number}"))


_ENDS = "from brats_lightning.inference.ensemble import Ensemble\nimport os, time\n"


def slow(settings, tmp_path, body):
    """A script that predicts with two processes, in each of which the first case does ``body``."""
    from omegaconf import OmegaConf

    OmegaConf.save(settings("out", "devices=2"), tmp_path / "settings.yaml")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background commands ignore it
        "from omegaconf import OmegaConf\n"
        "from brats_lightning.inference.ensemble import Ensemble\n"
        "def call(self, *_):\n"
        f"    open('{tmp_path}/' + str(os.getpid()) + '.pid', 'w').close()\n"
        f"    {body}\n"
        "Ensemble.__call__ = call\n"  # in the workers, too, which import this script
        "if __name__ == '__main__':\n"
        "    from brats_lightning.predict import predict\n"
        f"    predict(OmegaConf.load('{tmp_path}/settings.yaml'))\n"
    )
    return [sys.executable, str(script)]


def test_a_killed_process_is_told(settings, tmp_path):
    for case in CASES:
        write_case(tmp_path / "in", case, seg=None)
    done = subprocess.run(slow(settings, tmp_path, "os.kill(os.getpid(), 9)"), capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert DeadWorker.__name__ in last
    assert f"of those at {CASES[0]}" in last
    assert "use fewer processes: devices=1" in last


def test_ctrl_c_ends_all_processes(settings, tmp_path):
    for case in CASES:
        write_case(tmp_path / "in", case, seg=None)
    parent = subprocess.Popen(
        slow(settings, tmp_path, "time.sleep(600)"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (pids := [path.stem for path in tmp_path.glob("*.pid")]) or len(pids) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=120) != 0
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
