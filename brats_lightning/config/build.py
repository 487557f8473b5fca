"""Building the parts of a run from its config.

Nothing heavy is imported before a config is complete, so that ``--help`` and a mistyped option respond at once.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import nn

    from brats_lightning.data.cases import Case
    from brats_lightning.data.datamodule import CaseData
    from brats_lightning.data.splits import Split
    from brats_lightning.training.module import Segmentation


log = logging.getLogger(__name__)

# Errors by which a class refuses its settings; any other is raised as it is.
_REFUSALS = (ValueError, TypeError, ArithmeticError, RuntimeError, ImportError, InstantiationException)


@contextmanager
def settings_of(key: str) -> Iterator[None]:
    """Turn an error by which a class refuses its settings into a ValueError that begins with the settings' key."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ or error if isinstance(error, InstantiationException) else error
        # Lightning's own error has no common base class, and importing it takes seconds.
        if not isinstance(cause, _REFUSALS) and type(cause).__name__ != "MisconfigurationException":
            raise cause from None
        message = str(cause)
        raise ValueError(message if message.startswith(f"{key}.") else f"{key}: {message}") from error


def check_not_negative(cfg: DictConfig, *keys: str) -> None:
    """Raise a ValueError for the first of these settings that is below 0."""
    for key in keys:
        if cfg[key] is not None and cfg[key] < 0:
            raise ValueError(f"{key} must be 0 or more, got {cfg[key]}")


def build_part(key: str, node: Any, **more: Any) -> Any:
    """Instantiate the node with ``_target_`` at ``key``, with further arguments, within `settings_of`."""
    with settings_of(key):
        return hydra.utils.instantiate(node, **more)


def with_spacing(cfg: DictConfig, saved: Mapping[str, Any] | None = None) -> DictConfig:
    """The config with numbers in place of ``data.preprocessing.spacing=median``.

    A resumed run keeps those of its own config ``saved``, whatever cases came since; otherwise they are the median of
    all cases of the data set.

    Raises:
        CaseError: no header can be read.
    """
    from brats_lightning.data.preprocessing import median_spacing

    if cfg.data.preprocessing.spacing != "median":
        return cfg
    spacing = None if saved is None else saved["data"]["preprocessing"]["spacing"]
    if spacing is None:
        cases = cases_of(cfg)
        spacing = median_spacing(cases)
        log.info("spacing: %g × %g × %g mm (z, y, x), the median of %d cases", *spacing, len(cases))
    return OmegaConf.merge(cfg, {"data": {"preprocessing": {"spacing": list(spacing)}}})  # type: ignore[return-value]


def build_data(cfg: DictConfig, split: "Split | None" = None) -> "CaseData":
    """The data module of a config; without the groups ``sampling`` and ``augmentation`` it can only fill the cache.

    ``split`` is that of a resumed run; without it a new one is made as the config says.
    """
    from brats_lightning.core.labels import LabelScheme, with_ignored
    from brats_lightning.data.cache.store import Cache
    from brats_lightning.data.datamodule import CaseData
    from brats_lightning.data.loading import LoaderSettings
    from brats_lightning.data.normalisation import Normaliser
    from brats_lightning.data.preprocessing import Preprocessing
    from brats_lightning.data.splits import SplitSettings

    data = cfg.data
    scheme = LabelScheme(tuple(data.labels))
    with settings_of("data.preprocessing"):
        preprocessing = Preprocessing(**data.preprocessing)
    with settings_of("data.normalisation"):
        normaliser = Normaliser(data.modalities, optional=data.optional, **data.normalisation)
    cache = Cache(
        root=Path(cfg.paths.cache_dir),
        preprocessing=preprocessing,
        scheme=scheme,
        label_map=with_ignored(data.label_map, data.ignore_label, scheme),
        source=_source_identity(data),
        verify=data.verify,
        tolerance=float(data.affine_tolerance),
        optional=normaliser.optional,
    )
    fractions = (data.val_share, data.test_share, data.folds, data.fold)
    lenient = data.on_bad_case == "skip"
    return CaseData(
        source=build_part("data.source", data.source, _partial_=True),
        cache=cache,
        normaliser=normaliser,
        scheme=scheme,
        split=split or SplitSettings(*fractions, data.split_file, data.split_seed, data.split_from, lenient),
        on_bad_case=data.on_bad_case,
        loader=LoaderSettings(data.batch_size, data.patches_per_case, data.workers, data.loader_timeout),
        sampler=build_part("sampling", cfg.get("sampling")),
        augmentation=build_part("augmentation", cfg.get("augmentation")),
        copy_paste=build_part("copy_paste", cfg.get("copy_paste")),
        cache_workers=data.cache_workers,
        seed=cfg.get("seed") or 0,
    )


def describe_data(cfg: DictConfig) -> str:
    """What the data of a config are, and which classes its label map makes of labels, in words."""
    from brats_lightning.core.labels import LabelScheme

    names = dict(enumerate(LabelScheme(tuple(cfg.data.labels)).class_names))
    mapped = ", ".join(f"{old} as {names.get(new, new)}" for old, new in (cfg.data.label_map or {}).items())
    return cfg.data.description + (f"; labels read: {mapped}" if mapped else "")


def data_set(cfg: DictConfig) -> bool:
    """Whether a command that may do without a data set, ``data=…``, was given one."""
    return cfg.get("data") is not None and cfg.data.get("source") is not None


def cases_of(cfg: DictConfig) -> "list[Case]":
    """The cases of a config's data set."""
    return list(build_part("data.source", cfg.data.source, _partial_=True)())


def data_set_cases(cfg: DictConfig, key: str) -> "list[Case]":
    """The cases of a command's data set, whose root is also the value of ``key``.

    Raises:
        ValueError: there is no case, or ``key`` names something else.
    """
    if cfg[key] != cfg.data.root:
        raise ValueError(f"{key}={cfg[key]} and data.root={cfg.data.root} both name the cases; leave {key} out")
    log.info("data: %s", describe_data(cfg))
    return cases_of(cfg)


def input_cases(cfg: DictConfig) -> "list[Case]":
    """The cases of a command's data set, or else those with BraTS's names below its folder, or folders, ``input``."""
    from brats_lightning.data.layouts.brats import find_inputs

    return data_set_cases(cfg, "input") if data_set(cfg) else find_inputs(cfg.input)


def _source_identity(data: DictConfig) -> str:
    """What distinguishes the caches of two data sets: the root, and all other settings of the source."""
    root = os.path.abspath(data.root)  # noqa: PTH100
    settings = {name: root if value == data.root else value for name, value in data.source.items()}
    return json.dumps([root, settings], sort_keys=True, default=str)


def build_segmentation(cfg: DictConfig, data: "CaseData") -> "Segmentation":
    """Network, loss, optimiser and schedule of a config, for the classes or regions of ``data``."""
    from brats_lightning.config.weights import trained_before
    from brats_lightning.core.targets import make_target
    from brats_lightning.losses import DeepSupervision, KnownVoxels
    from brats_lightning.training.module import Segmentation

    target = make_target(cfg.target, data.scheme, data.partly_labelled, cfg.get("target_extra"))

    def weighted(node: Any) -> Any:
        """The loss's config with ``balanced`` replaced by weights from the training set."""
        if isinstance(node, dict):
            return {name: weighted(value) for name, value in node.items()}
        return target.weights(data.balanced_class_weights()) if node == "balanced" else node

    postprocessing = build_part("postprocessing", cfg.postprocessing).decoding(target.decode)
    for line in postprocessing.lacking(data.scheme):
        log.warning(line)
    network, start = build_network(cfg)
    if start:
        log.info("weights: %s", start)
    optimizer, scheduler = build_optimizer(cfg)
    loss = build_part("loss", weighted(OmegaConf.to_container(cfg.loss)))
    loss = loss if isinstance(loss, DeepSupervision) else DeepSupervision(loss)
    if data.partly_labelled:
        loss.loss = KnownVoxels(loss.loss, target.background)
    return Segmentation(
        network=network,
        loss=loss,
        optimizer=optimizer,
        scheduler=scheduler,
        inference=build_part("inference", cfg.inference),
        postprocessing=postprocessing,
        target=target,
        protocols=cfg.protocols,
        config=OmegaConf.to_container(cfg),  # type: ignore[arg-type]
        seen=trained_before(cfg),
    )


def build_network(cfg: DictConfig) -> "tuple[nn.Module, str]":
    """The network of a config, with the weights of ``weights`` if it names any; and what it starts from, in words.

    Raises:
        CheckpointError: no weights can be read or used.
    """
    network = build_part("model", cfg.model)
    if empty := [name for name, weight in network.named_parameters() if not weight.numel()]:
        raise ValueError(f"model: {empty[0]} has no weights; is a number of channels 0?")
    if cfg.weights is None:
        return network, ""
    from brats_lightning.config.weights import start_from

    return network, start_from(cfg, network, partial(build_part, "model"))


def build_optimizer(cfg: DictConfig) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes the optimiser and the schedule of a config, tried on a single weight."""
    settings = cfg.optimizer.copy()
    if str(_precision(cfg)) in ("16", "16-mixed") and cfg.trainer.gradient_clip_val and settings.get("fused"):
        settings.fused = False  # a fused step unscales the gradients itself, too late for clipping
    optimizer, scheduler = build_part("optimizer", settings), build_part("scheduler", cfg.scheduler)
    _rehearse(optimizer, scheduler)
    return optimizer, scheduler


def _rehearse(make_optimizer: Callable[..., Any], make_scheduler: Callable[..., Any]) -> None:
    # Start, middle and end of a run with a single weight: bad settings fail here, not in torch during a fit.
    import torch

    with settings_of("optimizer"):
        optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    with settings_of("scheduler"):
        schedule = make_scheduler(optimizer, lambda step: min(1.0, step / 2))
        for _ in range(3):
            optimizer.step()  # changes nothing: there is no gradient
            schedule.step()


# Lightning accepts less, and then divides by it in the first step or follows the gradients uphill.
_LEAST = {"check_val_every_n_epoch": 1, "accumulate_grad_batches": 1, "gradient_clip_val": 0, "log_every_n_steps": 0}


def build_trainer(cfg: DictConfig) -> "pl.Trainer":
    """Lightning's trainer with the configured callbacks and loggers."""
    import torch
    from pytorch_lightning.plugins.io import CheckpointIO

    from brats_lightning.training.checkpoint_files import WholeCheckpoints
    from brats_lightning.training.processes import check_processes, cluster_environment

    # Deterministic algorithms don't need new tensors filled with NaN, which costs torch a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    settings: Any = OmegaConf.merge(cfg.trainer, {"precision": _precision(cfg)})
    if isinstance(interval := settings.get("val_check_interval"), int | float) and interval <= 0:
        raise ValueError(f"trainer.val_check_interval must be positive, got {interval}")
    for name, least in _LEAST.items():
        if isinstance(value := settings.get(name), int | float) and value < least:
            raise ValueError(f"trainer.{name} must be {least} or more, got {value}")
    settings.setdefault("enable_progress_bar", False)  # Lightning's; ours is callbacks.progress
    callbacks = [build_part(f"callbacks.{name}", node) for name, node in (cfg.callbacks or {}).items() if node]
    loggers = [build_part(f"logger.{name}", node) for name, node in (cfg.logger or {}).items() if node]
    plugins = [build_part("trainer.plugins", node) for node in settings.pop("plugins", None) or ()]
    with settings_of("trainer"):
        plugins += [environment] if (environment := cluster_environment()) else []
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpoints())
    trainer = build_part("trainer", settings, callbacks=callbacks, logger=loggers or False, plugins=plugins)
    check_processes(trainer)
    return trainer


def _precision(cfg: DictConfig) -> str | int:
    from brats_lightning.runtime.device import fastest_precision

    chosen = cfg.trainer.precision
    if str(chosen) in ("64", "64-true", "16-true", "bf16-true") or str(chosen).startswith("transformer-engine"):
        raise ValueError(
            f"trainer.precision={chosen} changes the type of the weights, which stay in 32 bits here; "
            "choose auto, 32-true, bf16-mixed or 16-mixed"
        )
    return fastest_precision(cfg.trainer.accelerator) if chosen == "auto" else chosen
