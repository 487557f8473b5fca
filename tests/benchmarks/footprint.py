"""Predicted and measured memory of training steps on this CPU: ``python -m tests.benchmarks.footprint``.

Each of six configurations trains a few steps on tiny phantoms, in a process of its own whose peak is measured.
"""

import argparse
from pathlib import Path

from omegaconf import OmegaConf

from brats_lightning.config.measure import measured_steps
from brats_lightning.config.planning import Machine, predict
from brats_lightning.runtime.device import fastest_precision
from tests.benchmarks.workload import config

CONFIGURATIONS = {
    "UNet 16–256, 48³": ["model=unet", "sampling.size=[48,48,48]"],
    "UNet 16–256, 64³, group norm, trilinear": [
        *("model=unet", "sampling.size=[64,64,64]", "model.norm=group", "model.upsampling=trilinear"),
    ],
    "ResUNet 16–256, 64³, averaged": ["model=resunet", "sampling.size=[64,64,64]", "callbacks=averaged"],
    "AttentionUNet 16–256, 80³": ["model=attention_unet", "sampling.size=[80,80,80]"],
    "UNet 16–256, 32×96×96, flat kernels": [
        *("model=unet", "sampling.size=[32,96,96]", "model.strides=[[1,2,2],[1,2,2],2,2]"),
        "model.kernel_sizes=[[1,3,3],[1,3,3],3,3,3]",
    ],
    "ResUNet 32–320, 64³, deep supervision, regions": [
        *("model=resunet", "model/size=base", "sampling.size=[64,64,64]", "model.deep_supervision=3"),
        *("target=regions", "loss=lesion_ce"),
    ],
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/bench/footprint"), help="default %(default)s")
    output = parser.parse_args().output.resolve()
    print("| network, batch of two | parameters | predicted | measured | predicted / measured |\n|---|---|---|---|---|")
    for title, overrides in CONFIGURATIONS.items():
        common = ["data=phantom_tiny", "trainer=cpu", f"trainer.precision={fastest_precision('cpu')}"]
        cfg = config(*common, f"paths.outputs={output}", "data.workers=0", *overrides)
        footprint, memory = predict(cfg, Machine.of("cpu", 1))
        measured = measured_steps(OmegaConf.to_container(cfg)).memory
        row = f"{footprint.parameters / 1e6:.1f} M | {memory / 1e9:.2f} GB | {measured / 1e9:.2f} GB"
        print(f"| {title} | {row} | {memory / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
