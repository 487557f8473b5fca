"""The training steps of a config, measured in a process of their own."""

import logging
import warnings
from typing import Any

from omegaconf import OmegaConf

from brats_lightning.config.build import build_data, build_segmentation, build_trainer
from brats_lightning.runtime.memory import keep_freed_memory
from brats_lightning.runtime.workers import process_pool
from brats_lightning.training.measurement import STEPS, Measured, measure_steps

# Nothing but training steps, by one process.
_STEPS_ONLY = {
    "trainer": {"max_steps": STEPS, "max_epochs": -1, "max_time": None, "limit_val_batches": 0, "devices": 1}
    | {"num_nodes": 1, "strategy": "auto", "enable_checkpointing": False, "enable_progress_bar": False},
    "data": {"workers": 0},
    "logger": None,
    "weights": None,
}


def measured_steps(config: dict[str, Any]) -> Measured:
    """Train a few steps by a resolved config in plain containers, in a new process.

    Raises:
        DeadWorker: the process died, most likely for want of memory.
    """
    from brats_lightning.runtime.workers import each_result

    with process_pool(1) as pool:
        ((_, result),) = each_result(pool, _measure, {"the step": (config,)}, "memory=…, with less")
    return result


def _measure(config: dict[str, Any]) -> Measured:
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    average = (config.get("callbacks") or {}).get("average")
    cfg: Any = OmegaConf.merge(OmegaConf.create(config | {"callbacks": {"average": average}}), _STEPS_ONLY)
    keep_freed_memory()
    data = build_data(cfg)
    data.prepare_data()
    data.setup("fit")
    model = build_segmentation(cfg, data)
    return measure_steps(build_trainer(cfg), model, data)
