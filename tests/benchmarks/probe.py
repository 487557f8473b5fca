"""A callback for measured runs: notes when a step ended and what memory is held then, and ends the run."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class Probe(pl.Callback):
    """After ``step`` optimiser steps writes ``{"time": …, "memory": …, "worker": …}`` to ``file`` and ends the process.

    The time is that of `time.time`; the memory is that of the process and its workers, and that of one worker, in MB
    (PSS: a page that several processes share counts once).
    """

    def __init__(self, file: str, step: int = 1) -> None:
        self.file, self.step = Path(file), step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step < self.step:
            return
        now = time.time()
        workers = multiprocessing.active_children()
        held = [_pss(worker.pid) for worker in workers]
        each = sum(held) / max(len(held), 1)
        self.file.write_text(json.dumps({"time": now, "memory": _pss(os.getpid()) + sum(held), "worker": each}))
        for worker in workers:
            worker.kill()
        os._exit(0)


def _pss(process: int | None) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3
