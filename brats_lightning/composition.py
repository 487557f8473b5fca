"""From configuration to objects: where the YAML files are, what their resolvers mean, how a config becomes a run's parts.

Only this module and the entry points know Hydra. Nothing heavy is imported before a config is complete, so that ``--help``
and a mistyped option answer at once.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from brats_lightning.data.datamodule import CaseData
    from brats_lightning.segmentation import Segmentation


def config_dir() -> Path:
    """The checkout's ``conf`` if the package lies in one, else the copy inside the installed package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


def register_resolvers() -> None:
    """Make the counts that follow from other values known to OmegaConf."""
    OmegaConf.register_new_resolver("channel_count", len, replace=True)
    OmegaConf.register_new_resolver("class_count", lambda labels: len(labels) + 1, replace=True)
    OmegaConf.register_new_resolver("cpu_count", lambda: len(os.sched_getaffinity(0)), replace=True)


def resolved(cfg: DictConfig) -> DictConfig:
    """A copy without interpolations; it means the same in another process, on another day.

    Raises:
        omegaconf.errors.MissingMandatoryValue: a ``???`` was not filled in; the message names the key.
    """
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))


def entry_point(config_name: str, function: Callable[[DictConfig], Any]) -> Callable[[], None]:
    """A command: compose ``conf/<config_name>.yaml`` with the command line and call ``function`` with the result."""
    register_resolvers()

    def run(cfg: DictConfig) -> Any:
        cfg = resolved(cfg)
        # Beside Hydra's own record, which keeps the interpolations: a file that says what was run, to the last value.
        folder = Path(HydraConfig.get().runtime.output_dir) / ".hydra"
        if folder.is_dir():
            OmegaConf.save(cfg, folder / "resolved.yaml")
        return function(cfg)

    return hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(run)


def build_data(cfg: DictConfig, seed: int = 0) -> "CaseData":
    """The data module of a config with a ``data`` group; ``sampling`` and ``augmentation`` only matter for training."""
    from brats_lightning.data.datamodule import CaseData, LoaderSettings
    from brats_lightning.data.splits import SplitSettings

    data = cfg.data
    source = OmegaConf.to_container(data.source)
    raise NotImplementedError(source, CaseData, LoaderSettings, SplitSettings, seed, instantiate)
