"""What the command ``evaluate`` does, in this process."""

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved
from brats_lightning.evaluate import evaluate


def run(predictions: Path | str, references: Path, output: Path, *overrides: str) -> dict[str, Any]:
    """Evaluate in one process; the overrides are those of the command line."""
    register_resolvers()
    told = [f"predictions={predictions}", f"references={references}", f"output={output}", "processes=1", "pictures=1"]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("evaluate", [*told, "resamples=50", *overrides])
    return evaluate(resolved(cfg))
