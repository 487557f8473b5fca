"""From configuration to objects: where the YAML files are, what their resolvers mean, how a run's parts are built.

Only this module and the entry points know Hydra. Nothing heavy is imported before a config is complete, so that
``--help`` and a mistyped option answer at once.
"""

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from brats_lightning.command_line import expanded
from brats_lightning.runtime.files import make_folder
from brats_lightning.runtime.workers import cpu_count

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from brats_lightning.data.datamodule import CaseData
    from brats_lightning.data.splits import Split
    from brats_lightning.segmentation import Segmentation


def config_dir() -> Path:
    """The checkout's ``conf`` if the package lies in one, else the copy inside the installed package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


def register_resolvers() -> None:
    """Make the counts that follow from other values known to OmegaConf."""
    OmegaConf.register_new_resolver("channel_count", len, replace=True)
    OmegaConf.register_new_resolver("output_count", _output_count, replace=True)
    OmegaConf.register_new_resolver("expanded", expanded, replace=True)
    OmegaConf.register_new_resolver("equal", lambda one, other: one == other, replace=True)
    OmegaConf.register_new_resolver("cpu_count", cpu_count, replace=True)
    OmegaConf.register_new_resolver("new_folder", _new_folder, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("patch_size", _patch_size, replace=True)
    OmegaConf.register_new_resolver("volume_scaled", _volume_scaled, replace=True)
    OmegaConf.register_new_resolver("direction", {"max": "maximize", "min": "minimize"}.__getitem__, replace=True)


_new_folders: dict[str, str] = {}  # as asked for → as made, in this process


def _new_folder(path: str) -> str:
    """A folder of that name that nobody had before, with a number behind it if need be; made at once.

    Of two runs that start within a second each gets its own. Asked again, it is the same one.
    """
    if path not in _new_folders:
        for number in itertools.count(1):
            folder = Path(path if number == 1 else f"{path}-{number}").expanduser()
            try:
                make_folder(folder.parent)
                with suppress(FileExistsError):
                    folder.mkdir()
                    break
            except OSError as error:  # Hydra would print the way through its code
                print(f"error: the run folder: {error}; or set paths.outputs=DIR", file=sys.stderr)
                raise SystemExit(1) from None
        _new_folders[path] = str(folder)
    return _new_folders[path]


def _volume_scaled(value: float, side: int, size: Sequence[int]) -> float:
    """A value meant for patches of ``side``³ voxels, in proportion for those of another size (z, y, x)."""
    return value * math.prod(size) / side**3


def _output_count(labels: Sequence[str], target: str) -> int:
    """Channels a network returns: classes with the background; or regions, of which there are as many as labels."""
    return len(labels) + (target == "classes")


def _patch_size(sampling: DictConfig) -> list[int]:
    """The largest patch (z, y, x) a sampler draws: its size, or its deepest block of slices."""
    if "size" in sampling:
        return list(sampling.size)
    deepest = max(sampling.depth) - max(sampling.depth) % (sampling.multiple_of or 1)  # 0 is refused by the sampler
    return [deepest, *sampling.in_plane]


def resolved(cfg: DictConfig) -> DictConfig:
    """A copy without interpolations, ``~/`` being the home folder: it means the same in another process and folder.

    Raises:
        ValueError: a mandatory value was not given, or there is no home folder.
    """
    missing = sorted(_missing(OmegaConf.to_container(cfg)))
    if missing:
        raise ValueError("these values must be given on the command line: " + " ".join(f"{key}=…" for key in missing))
    return OmegaConf.create(_with_home(OmegaConf.to_container(cfg, resolve=True)))


def _with_home(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _with_home(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_with_home(value) for value in node]
    return expanded(node) if isinstance(node, str) else node


def _missing(node: Any, path: str = "") -> Iterator[str]:
    """Keys of a plain container whose mandatory value was not given; references to them are not listed again."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _missing(value, f"{path}.{name}" if path else str(name))
    elif node == "???":
        yield path


# What a class says of its settings; anything else is an error of its own.
_REFUSALS = (ValueError, TypeError, ArithmeticError, RuntimeError, ImportError, InstantiationException)


def build_part(key: str, node: Any, **more: Any) -> Any:
    """What the node of a config describes, with further arguments; None if it is null.

    Args:
        key: where the node stands, for messages.
        node: with ``_target_``.
        more: arguments besides those of the node.

    Raises:
        ValueError: its class does not take the settings.
    """
    try:
        return hydra.utils.instantiate(node, **more)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, _REFUSALS):
            raise _refusal(key, cause) from error
        raise cause from None


def _refusal(key: str, error: BaseException) -> ValueError:
    message = str(error)
    return ValueError(message if message.startswith(f"{key}.") else f"{key}: {message}")


def build_data(cfg: DictConfig, split: "Split | None" = None) -> "CaseData":
    """The data module of a config; without the groups ``sampling`` and ``augmentation`` it can only fill the cache.

    Args:
        cfg: the config.
        split: of the run that is gone on with; None splits as the config says.
    """
    from brats_lightning.data.cache import Cache
    from brats_lightning.data.datamodule import CaseData
    from brats_lightning.data.loading import LoaderSettings
    from brats_lightning.data.preprocessing import Preprocessing
    from brats_lightning.data.splits import SplitSettings
    from brats_lightning.data.standardisation import Standardiser
    from brats_lightning.labels import LabelScheme

    data = cfg.data
    scheme = LabelScheme(tuple(data.labels))
    cache = Cache(
        root=Path(cfg.paths.cache_dir),
        preprocessing=Preprocessing(**data.preprocessing),
        scheme=scheme,
        label_map=None if data.label_map is None else dict(data.label_map),
        source=_source_identity(data),
        verify=data.verify,
        tolerance=float(data.affine_tolerance),
    )
    return CaseData(
        source=build_part("data.source", data.source, _partial_=True),
        cache=cache,
        standardiser=Standardiser(data.modalities, **data.normalisation),
        scheme=scheme,
        split=split
        or SplitSettings(
            data.val_share,
            data.test_share,
            data.folds,
            data.fold,
            data.split_file,
            data.split_seed,
            data.split_from,
            data.on_bad_case == "skip",
        ),
        on_bad_case=data.on_bad_case,
        loader=LoaderSettings(data.batch_size, data.patches_per_case, data.workers, data.loader_timeout),
        sampler=build_part("sampling", cfg.get("sampling")),
        augmentation=build_part("augmentation", cfg.get("augmentation")),
        copy_paste=build_part("copy_paste", cfg.get("copy_paste")),
        cache_workers=data.cache_workers,
        seed=cfg.get("seed") or 0,
    )


def _source_identity(data: DictConfig) -> Path:
    """What tells one data set's cache from another's: its root, and whatever else its source is told."""
    root = Path(data.root).absolute()
    told = {name: str(root) if value == data.root else value for name, value in data.source.items()}
    return root / json.dumps(told, sort_keys=True, default=str)


def build_segmentation(cfg: DictConfig, data: "CaseData") -> "Segmentation":
    """Network, loss, optimiser and schedule of a config, for the classes or regions of ``data``."""
    from brats_lightning.checkpoint import CheckpointError, read_checkpoint
    from brats_lightning.losses import DeepSupervision
    from brats_lightning.segmentation import Segmentation
    from brats_lightning.targets import make_target

    target = make_target(cfg.target, data.scheme)

    def weighted(node: Any) -> Any:
        """The loss's config with the word ``balanced`` replaced by weights from the training set."""
        if isinstance(node, dict):
            return {name: weighted(value) for name, value in node.items()}
        return target.weights(data.balanced_class_weights()) if node == "balanced" else node

    settings = cfg.optimizer.copy()
    if str(_precision(cfg)) in ("16", "16-mixed") and cfg.trainer.gradient_clip_val and settings.get("fused"):
        settings.fused = False  # a fused step unscales the gradients itself, too late to clip them
    optimizer, scheduler = build_part("optimizer", settings), build_part("scheduler", cfg.scheduler)
    _rehearse(optimizer, scheduler)
    loss = build_part("loss", weighted(OmegaConf.to_container(cfg.loss)))
    network = build_part("model", cfg.model)
    if empty := [name for name, weight in network.named_parameters() if not weight.numel()]:
        raise ValueError(f"model: {empty[0]} has no weights; is a number of channels 0?")
    module = Segmentation(
        network=network,
        loss=loss if isinstance(loss, DeepSupervision) else DeepSupervision(loss),
        optimizer=optimizer,
        scheduler=scheduler,
        inference=build_part("inference", cfg.inference),
        postprocessing=build_part("postprocessing", cfg.postprocessing).decoding(target.decode),
        target=target,
        protocols=cfg.protocols,
        config=OmegaConf.to_container(cfg),  # type: ignore[arg-type]
    )
    if cfg.weights is not None:
        saved = read_checkpoint(cfg.weights, "weights")["state_dict"]
        try:
            module.network.load_state_dict({k.removeprefix("network."): v for k, v in saved.items()})
        except RuntimeError as error:
            raise CheckpointError(f"weights={cfg.weights} are of another network than model: {error}") from error
    return module


def _rehearse(make_optimizer: Callable[..., Any], make_scheduler: Callable[..., Any]) -> None:
    """Begin, middle and end of a run with one weight; what is refused would else show after the cache is filled.

    Raises:
        ValueError: settings of one of the two.
    """
    import torch

    key = "optimizer"
    try:
        optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))])
        key = "scheduler"
        schedule = make_scheduler(optimizer, lambda step: min(1.0, step / 2))
        for _ in range(3):
            optimizer.step()
            schedule.step()
    except _REFUSALS as error:
        raise _refusal(key, error) from error


_POSITIVE = sys.float_info.min
# Lightning takes less, and divides by it in the first step or follows the gradients uphill.
_TRAINER_NUMBERS = {
    "val_check_interval": _POSITIVE,
    "check_val_every_n_epoch": 1,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
}


def build_trainer(cfg: DictConfig) -> "pl.Trainer":
    """Lightning's trainer with the configured callbacks and logger."""
    import torch
    from pytorch_lightning.plugins.io import CheckpointIO
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from brats_lightning.checkpoint_files import WholeCheckpoints
    from brats_lightning.distributed import check_processes, cluster_environment

    # Deterministic algorithms need no NaN in every new tensor, which torch would spend a pass over memory on.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    settings: Any = OmegaConf.merge(cfg.trainer, {"precision": _precision(cfg)})
    for name, value in settings.items():
        if name in _TRAINER_NUMBERS and isinstance(value, int | float) and value < _TRAINER_NUMBERS[name]:
            least = "positive" if _TRAINER_NUMBERS[name] == _POSITIVE else f"{_TRAINER_NUMBERS[name]} or more"
            raise ValueError(f"trainer.{name} must be {least}, got {value}")

    def part(key: str, node: Any, **more: Any) -> Any:
        try:
            return build_part(key, node, **more)
        except MisconfigurationException as error:
            raise _refusal(key, error) from error

    callbacks = [part(f"callbacks.{name}", node) for name, node in (cfg.callbacks or {}).items() if node]
    logger = part("logger", cfg.logger) if cfg.logger else False
    plugins = [part("trainer.plugins", node) for node in settings.pop("plugins", None) or ()]
    try:
        plugins += [environment] if (environment := cluster_environment()) else []
    except RuntimeError as error:
        raise _refusal("trainer", error) from error
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(WholeCheckpoints())
    trainer = part("trainer", settings, callbacks=callbacks, logger=logger, plugins=plugins)
    check_processes(trainer)
    return trainer


def _precision(cfg: DictConfig) -> str | int:
    chosen = cfg.trainer.precision
    return fastest_precision(cfg.trainer.accelerator) if chosen == "auto" else chosen


def fastest_precision(accelerator: str) -> str:
    """``bf16-mixed`` where the hardware computes in bfloat16, ``16-mixed`` on older GPUs, else ``32-true``."""
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    flags = Path("/proc/cpuinfo")  # elsewhere the answer is unknown, and 32 bits are always right
    words = set(flags.read_text().split()) if flags.is_file() else set()
    return "bf16-mixed" if words & {"avx512_bf16", "amx_bf16"} else "32-true"
