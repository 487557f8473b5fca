"""Two states of the program, measured in turns: does a change make a row slower?

    .venv-bench/bin/python -m tests.benchmarks.pairs BEFORE AFTER step="step UNet 16" trainer="trainer 48" --fp32

BEFORE and AFTER are checkouts; each measures its own contender ``ours`` with its own benchmark, in a process of its
own, and both run with this interpreter's packages. The processes wait for each other, take turns to be first, and are
started anew a few times, since a process may be lucky with its memory. Printed are the medians and the median ratio
after/before with a bootstrap interval of 95 %; below 1 the change is faster, also in rows of rates, which are
measured as the time for one. The machine should do nothing else.
"""

import argparse
import ast
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ENOUGH = 1.05  # slower than this would be worth finding out why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="checkouts")
    parser.add_argument("rows", nargs="+", metavar="MODULE=ROW", help="a benchmark's module and the name of a row")
    parser.add_argument("--cases", type=Path, required=True, help="folder with BraTS cases")
    parser.add_argument("--output", type=Path, default=Path("outputs/pairs"), help="default %(default)s")
    parser.add_argument("--starts", type=int, default=4, help="of both processes, default %(default)s")
    parser.add_argument("--pairs", type=int, default=4, help="in each start, default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of torch, default %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the module, e.g. SIDE=48")
    parser.add_argument("--fp32", action="store_true", help="instead of bf16, for processors without its instructions")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # the module measured in this process
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    with (arguments.output / "values.jsonl").open("a") as values:
        for module, row in (text.split("=", 1) for text in arguments.rows):
            pairs = []
            for start in range(arguments.starts):
                measured = [Measured(tree.resolve(), module, arguments) for tree in arguments.trees]
                for pair in range(-1, arguments.pairs):  # the first warms up
                    turns = measured if (start + pair) % 2 else measured[::-1]
                    taken = {process: process.value(row) for process in turns}
                    if pair >= 0:
                        pairs.append([taken[process] for process in measured])
                        print(json.dumps({"row": row, "pair": pairs[-1]}), file=values, flush=True)
                for process in measured:
                    process.end()
            print(f"{module}, {row}: {verdict(np.array(pairs))}", flush=True)


def verdict(pairs: np.ndarray, seed: int = 0) -> str:
    """What (n, 2) measured pairs before, after say, in a line."""
    ratios = pairs[:, 1] / pairs[:, 0]
    draws = np.random.default_rng(seed).integers(len(ratios), size=(10_000, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    before, after = np.median(pairs, axis=0)
    ratio = f"ratio {np.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
    words = "slower" if low >= ENOUGH else "not slower"
    return f"{before:.4g} → {after:.4g}, {ratio}, {len(pairs)} pairs: {words}"


class Measured:
    """A process that measures one benchmark module of a checkout, value by value, on demand."""

    def __init__(self, tree: Path, module: str, arguments: argparse.Namespace) -> None:
        command = [sys.executable, "-P", __file__, ".", ".", "-", "--serve", module]
        output = (arguments.output / tree.name).resolve()
        output.mkdir(exist_ok=True)
        command += ["--cases", str(arguments.cases.resolve()), "--output", str(output)]
        command += ["--threads", str(arguments.threads), *(["--fp32"] if arguments.fp32 else [])]
        command += [f"--set={setting}" for setting in arguments.set]
        with (output / f"{module}.log").open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=tree,
                env=os.environ | {"PYTHONPATH": str(tree)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.log = log.name

    def value(self, row: str) -> float:
        """The next one of a row."""
        time.sleep(0.2)  # the other's threads may still spin
        print(row, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{row}: the measuring process ended; see {self.log}")
        return float(answer)

    def end(self) -> None:
        """Of the process."""
        self.process.stdin.close()
        self.process.wait()


def serve(arguments: argparse.Namespace) -> None:
    """Answer each row's name on the standard input with a new value of the row's ``ours``."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the program prints goes to the log
    importlib.import_module("brats_lightning")  # first, as in every command: it sets how torch's threads wait
    measure = importlib.import_module("tests.benchmarks.measure")
    benchmark = importlib.import_module(f"tests.benchmarks.{arguments.serve}")
    import torch

    if arguments.fp32:
        torch.bfloat16 = torch.float32  # autocast to float32 is none
    for name, value in (setting.split("=", 1) for setting in arguments.set):
        if hasattr(benchmark, name):
            setattr(benchmark, name, ast.literal_eval(value))
    for name in [name for name in vars(benchmark) if name.endswith("_peers")]:
        setattr(benchmark, name, dict)  # nobody else is measured
    options = measure.Options(arguments.cases, arguments.output, threads=arguments.threads)
    rows = benchmark.rows(options)
    row = None
    for line in sys.stdin:
        while row is None or row.name != line.strip():
            row = next(rows)
        torch.set_num_threads(row.threads or options.threads)
        value = row.contenders["ours"]()
        print(1 / value if row.higher_is_better else value, file=answers, flush=True)


if __name__ == "__main__":
    main()
