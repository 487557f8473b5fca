"""Training and prediction beside other work, OpenMP's threads waiting as in every command, or spinning.

Each number is of a process of its own, since the way of waiting is read when torch is loaded.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.benchmarks.measure import Goal, Options, Row

SPINNING = "torch's own waiting"
LOADS = {"idle": 0, "one": 1, "four": 4}


def rows(options: Options) -> Iterator[Row]:
    for work, title in (("train", "step of 2 × 4 × 48³, forward, backward, update"), ("predict", "4 × 72³ in windows")):
        for name, processes in LOADS.items():
            yield Row(
                f"{work} beside {name}",
                f"{title}; busy processes beside it: {processes}",
                "s",
                {
                    "ours": _elsewhere(work, "ours", processes, options.threads),
                    SPINNING: _elsewhere(work, "spinning", processes, options.threads),
                },
                goals=[Goal(SPINNING, at_most=1.03) if processes == 0 else Goal(SPINNING, at_least=1)],
                note="median of 5 in a process of its own",
            )


def _elsewhere(work: str, waiting: str, processes: int, threads: int) -> Callable[[], float]:
    def value() -> float:
        environment = {
            name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
        }
        command = [sys.executable, "-m", "tests.benchmarks.busy", work, waiting, str(threads)]
        with _busy(processes):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    return value


@contextmanager
def _busy(processes: int) -> Iterator[None]:
    """So many processes that always have something to compute."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def _measure(work: str, waiting: str, threads: int, repeats: int = 5) -> float:
    """The median of the work's seconds."""
    import torch  # before the package if it is not to have a say

    if waiting == "ours" and os.environ.get("OMP_WAIT_POLICY") != "passive":
        raise RuntimeError("the package was to be imported first")
    from brats_lightning.inference.windows import SlidingWindow
    from brats_lightning.models import UNet

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = UNet(4, 4, widths=(16, 32, 64, 128)).to(memory_format=torch.channels_last_3d)
    if work == "train":
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        image = torch.randn(2, 4, 48, 48, 48).contiguous(memory_format=torch.channels_last_3d)
        mask = torch.randint(4, (2, 48, 48, 48))

        def once() -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(image), mask).backward()
            optimizer.step()
    else:
        network.eval()
        volume, windows = torch.randn(4, 72, 72, 72), SlidingWindow((48, 48, 48))

        @torch.inference_mode()
        def once() -> None:
            windows(network, volume)

    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - begun)
    return sorted(seconds[1:])[repeats // 2]


if __name__ == "__main__":
    if sys.argv[2] == "ours":
        import brats_lightning  # noqa: F401
    print(_measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))
