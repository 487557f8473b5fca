"""Shapes on signatures are checked while the tests run; tiny runs for the tests of entry points."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("brats_lightning", "beartype.beartype")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors gain nothing from threads, and lose much on a busy machine

import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from brats_lightning.config.resolvers import config_dir, register_resolvers, resolved  # noqa: E402

TINY = ["experiment=quick", "model.widths=[8,16,32]", "sampling.size=[24,24,24]", "inference.window=[32,32,32]"]
Compose = Callable[..., DictConfig]


@pytest.fixture(autouse=True)
def deterministic_algorithms_as_before() -> Iterator[None]:
    """A trainer switches them on for the whole process, and some operations are then made up of others."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny volumes, on which several threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the phantoms and the cache, made once for all tests."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def composed(tmp_path: Path, shared_outputs: Path) -> Compose:
    """A resolved config of a tiny run with the given overrides, its run folder below ``tmp_path``."""

    def make(*overrides: str, name: str = "train", run: str = "run", plain: bool = False) -> DictConfig:
        register_resolvers()
        paths = [f"paths.outputs={tmp_path}", f"paths.cache_dir={shared_outputs}/cache"]
        paths = [] if name in ("evaluate", "submission", "export", "package") else paths
        if name == "train":
            paths += ["trainer=cpu", "seed=0"] + ([] if plain else TINY)
        if name in ("train", "preprocess", "plan") and not any(override.startswith("data=") for override in overrides):
            paths.append(f"paths.phantom_dir={shared_outputs}/phantoms")
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = compose(name, [*paths, *overrides], return_hydra_config=True)
        cfg.hydra.runtime.output_dir = str(tmp_path / run)
        HydraConfig.instance().set_config(cfg)
        OmegaConf.set_struct(cfg, False)
        del cfg.hydra
        return resolved(cfg)

    return make
