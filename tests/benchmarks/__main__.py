"""The speed benchmark: ours, the peers and the physical limit, side by side.

    python -m tests.benchmarks [ROW …] [--cases DIR]

Each row runs in a process of its own and is stored in <output>/results.json as soon as it is measured; rows can be run
again one by one. The table, also as Markdown, and the figure are made of all rows stored there.
"""

import argparse
import json
import subprocess
import sys
import time
import zlib
from pathlib import Path

from tests.benchmarks.growth import requirements
from tests.benchmarks.measure import Options, Result, measure
from tests.benchmarks.report import store, write_report

MODULES = (
    *("preprocessing", "patches", "loss", "instances", "step", "trainer", "inference", "start", "busy", "memory"),
    *("prediction_memory", "growth"),
)
PHANTOM_CASES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of {', '.join(MODULES)}; default all")
    parser.add_argument("--cases", type=Path, help="folder with BraTS cases; default: phantoms of 240×240×155 voxels")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each contender, default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for everybody, default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench"), help="default %(default)s")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the process of a single row
    arguments = parser.parse_args()
    chosen = arguments.rows or list(MODULES)
    if unknown := set(chosen) - set(MODULES):
        parser.error(f"unknown rows {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    cases = (arguments.cases or _phantoms(output)).resolve()
    scratch = output / f"scratch-{zlib.crc32(str(cases).encode()):08x}"  # of these cases alone
    scratch.mkdir(exist_ok=True)
    results = output / "results.json"

    if arguments.here:
        for result in measure(chosen[0], Options(cases, scratch, arguments.repeats, arguments.threads)):
            store(results, [result])
        return

    failed = []
    for name in chosen:
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        command = [sys.executable, "-m", "tests.benchmarks", name, "--here", "--cases", str(cases)]
        command += ["--output", str(output), "--repeats", str(arguments.repeats), "--threads", str(arguments.threads)]
        with (output / f"{name}.log").open("w") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode:
                failed.append(name)
                print(f"{name} failed; see {log.name}", file=sys.stderr)
    stored = json.loads(results.read_text()) if results.is_file() else []
    order = {module: place for place, module in enumerate(MODULES)}
    stored.sort(key=lambda values: order.get(values["module"], len(order)))
    print(write_report(output, stored))
    print(requirements({values["name"]: Result.from_dict(values) for values in stored}))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _phantoms(output: Path) -> Path:
    from brats_lightning.synthetic.phantom import PhantomSettings, make_phantoms, phantom_folder

    settings = PhantomSettings(cases=PHANTOM_CASES, shape=(240, 240, 155))
    return make_phantoms(phantom_folder(output, settings), settings)


if __name__ == "__main__":
    main()
