"""Stop a training at random points, resume it, and compare its losses with the undisturbed run's, bit by bit.

    python -m tests.benchmarks.interruptions --points 30 --variants plain,workers,accumulate,ddp --folder DIR

Each training is ended in turn by ``kill -9``, Ctrl-C and SIGTERM, to its process and to its whole group, and resumed
with ``resume=RUN`` until that many points are reached; then it runs to its end. After each end every checkpoint must
be readable. ``--tmp DIR`` puts temporary files there, for a second file system.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

VARIANTS = {
    "plain": ["data.workers=0"],
    "workers": ["data.workers=2", "callbacks=averaged", "model.dropout=0.2"],
    "accumulate": ["data.workers=1", "trainer.accumulate_grad_batches=3"],
    "ddp": ["data.workers=1", "trainer=ddp_cpu"],
}
ENDS = {
    "kill -9": (signal.SIGKILL, False),
    "Ctrl-C": (signal.SIGINT, True),
    "SIGTERM": (signal.SIGTERM, False),
    "SIGTERM to the group": (signal.SIGTERM, True),
}
SETTINGS = [
    *("experiment=quick", "trainer=cpu", "seed=0", "model.widths=[8,16,32]", "sampling.size=[24,24,24]"),
    *("inference.window=[48,48,48]", "trainer.max_steps=30", "trainer.val_check_interval=10", "augmentation=strong"),
    *("trainer.log_every_n_steps=1", "callbacks.latest.every_n_train_steps=4", "trainer.precision=32-true"),
    *("+trainer.limit_val_batches=1", "+trainer.limit_test_batches=1", "inference.overlap=0", "protocols=[]"),
    *("~callbacks.progress", "+trainer.enable_progress_bar=false"),
]


def start(arguments: Sequence[str], log: Path) -> int:
    """Train in a fork of this process, which has imported everything; its number."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from brats_lightning.train import main

        sys.argv = ["train", *arguments]
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """The exit code (negative: of a signal), or None if it still runs after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def losses(run: Path) -> dict[int, set[float]]:
    """Every value that was logged as a step's loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, set[float]] = {}
    for file in sorted((run / "tensorboard").rglob("events.*")):
        events = EventAccumulator(str(file))
        events.Reload()
        if "train/loss" in events.Tags()["scalars"]:
            for event in events.Scalars("train/loss"):
                found.setdefault(event.step, set()).add(event.value)
    return found


def scores(run: Path) -> dict[str, float | None]:
    """The final scores of whole cases."""
    found = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in found.items() if not name.startswith("train/")}


def unreadable(run: Path) -> list[str]:
    """Checkpoints that cannot be read."""
    import torch

    bad = []
    for path in (run / "checkpoints").glob("*.ckpt"):
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            bad.append(f"{path}: {error}")
    return bad


def measure(variant: str, ends: Sequence[str], points: int, folder: Path, rng: random.Random) -> bool:
    """Print a row for each way to end; whether all was well."""
    common = [*SETTINGS, *VARIANTS[variant], f"paths.outputs={folder}/out"]
    whole, log = folder / f"{variant}-whole", folder / f"{variant}.log"
    began = time.monotonic()
    code = ended(start([*common, f"hydra.run.dir={whole}"], log), 500)
    length = time.monotonic() - began
    if code != 0:
        print(f"{variant}: the undisturbed run ended with {code}; see {log}")
        return False
    expected, score = losses(whole), scores(whole)
    well = True
    for name in ends:
        signum, group = ENDS[name]
        run, done, number, reaction, hung, broken, codes = None, 0, 0, [], 0, [], set()
        wrong, rounds, odd = 0, 0, 0
        while done < points or run is not None:
            if run is None:
                number += 1
                run = folder / f"{variant}-{signum}-{int(group)}-{number}"
                shutil.rmtree(run, ignore_errors=True)
            saved = (run / "checkpoints/last.ckpt").is_file()
            began = time.monotonic()
            pid = start([f"resume={run}"] if saved else [*common, f"hydra.run.dir={run}"], log)
            # In a resumed run what is left is shorter; one in three is let go on to its end.
            code = ended(pid, rng.uniform(0, length) if done < points and rounds < 8 else 500)
            if code is None and done < points:
                sent = time.monotonic()
                (os.killpg if group else os.kill)(pid, signum)
                code = ended(pid, 60)
                reaction.append(time.monotonic() - sent)
                done, rounds = done + 1, rounds + 1
                if code is None:
                    hung += 1
                    os.killpg(pid, signal.SIGKILL)
                    ended(pid, 10)
                codes.add(code)
                broken += unreadable(run)
            elif code == 0:
                if not saved:  # the machine is faster now: later points would lie behind the end
                    length = min(length, time.monotonic() - began)
                found = losses(run)
                differing = [s for s in expected if found.get(s) != expected[s]]
                wrong += len(differing)
                odd += scores(run) != score
                if differing:
                    print(f"   {run}: losses differ at steps {differing}")
                run, rounds = None, 0
            else:
                print(f"   {run} ended with {code} by itself; see {log}")
                well, run, rounds = False, None, 0
        well = well and not (hung or broken or wrong or odd)
        parts = [
            f"{variant:11} {name:21} {done:3} points in {number} runs",
            f"steps whose loss differs {wrong}",
            f"runs whose final scores differ {odd}",
            f"unreadable checkpoints {len(broken)}",
            f"ended after {statistics.median(reaction):.2f} s (most {max(reaction):.2f})",
            f"hung {hung}",
            f"exit codes {' '.join(sorted(map(str, codes)))}",
        ]
        print(" · ".join(parts), flush=True)
        for line in broken:
            print("  ", line)
    return well


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=30, help="random points for each way to end")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--ends", default=",".join(ENDS), help=f"of {', '.join(ENDS)}")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go")
    parser.add_argument("--tmp", type=Path, help="where temporary files go")
    parser.add_argument("--seed", type=int, default=0, help="of the points")
    chosen = parser.parse_args()
    if chosen.tmp is not None:
        os.environ["TMPDIR"] = str(chosen.tmp)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen.folder = chosen.folder.absolute()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    import pytorch_lightning
    import scipy.ndimage  # noqa: F401

    del pytorch_lightning
    rng = random.Random(chosen.seed)
    ends = chosen.ends.split(",")
    well = [measure(variant, ends, chosen.points, chosen.folder, rng) for variant in chosen.variants.split(",")]
    raise SystemExit(0 if all(well) else 1)


if __name__ == "__main__":
    main()
