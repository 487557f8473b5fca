"""Trainings stopped from outside, in real processes."""

import os
import re
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

from tests.conftest import TINY


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_is_saved_and_says_how_to_resume(shared_outputs, tmp_path, sent, code):
    command = [
        sys.executable,
        "-m",
        "brats_lightning.train",
        *TINY,
        "trainer=cpu",
        "seed=0",
        "trainer.max_steps=100000",
    ]
    command += ["callbacks.progress.interval=0.1", "trainer.val_check_interval=100000", "callbacks=averaged"]
    command += [f"paths.cache_dir={shared_outputs}/cache", f"paths.phantom_dir={shared_outputs}/phantoms"]
    command += [f"hydra.run.dir={tmp_path}/run", "logger=none"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # the tests may run where it is ignored
    ) as training:
        assert training.stdout is not None
        try:
            seen = []
            for line in training.stdout:
                seen.append(line)
                if re.search(r"step (\d\d+) of 100000 · .* steps/s · .* left", line):  # the pace is known
                    training.send_signal(sent)
                    break
            rest, _ = training.communicate(timeout=120)
        finally:
            training.kill()
    assert training.returncode == code, "".join(seen) + rest
    last = tmp_path / "run/checkpoints/last.ckpt"
    stopped = re.search(r"stopped at step (\d+); step (\d+) is saved; resume with: .*train (resume=\S+)", rest)
    assert stopped
    assert stopped[1] == stopped[2]
    assert stopped[3] == f"resume={tmp_path}/run"
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == int(stopped[1]) >= 10
    assert "Traceback" not in rest
