"""How long the official scores take: ``python -m tests.benchmarks.scores`` prints the median of five of each."""

import argparse
import statistics
import time

from brats_lightning.core.labels import BRATS_METS
from brats_lightning.metrics.official import PROTOCOLS, score_case
from tests.benchmarks.score_pair import score_pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lesions", type=int, default=30)
    arguments = parser.parse_args()
    reference, prediction = score_pair(arguments.seed, arguments.lesions)
    voxels = {name: int((mask > 0).sum()) for name, mask in (("reference", reference), ("prediction", prediction))}
    print(f"{'×'.join(map(str, reference.shape))}, {arguments.lesions} lesions, foreground voxels {voxels}")
    for protocol in PROTOCOLS:
        seconds = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            score_case(reference, prediction, (1.0, 1.0, 1.0), BRATS_METS, protocol)
            seconds.append(time.perf_counter() - start)
        print(f"{protocol}  {statistics.median(seconds):.3f} s")


if __name__ == "__main__":
    main()
