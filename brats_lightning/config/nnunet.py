"""Trained models of nnU-Net v2: plans, dataset.json and weights, as the start of a network of ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brats_lightning.config.allow_list import CheckpointError
from brats_lightning.config.checkpoint import load_plain
from brats_lightning.config.values import abbreviated
from brats_lightning.core.labels import LabelScheme
from brats_lightning.data.cases import CaseError
from brats_lightning.data.layouts.dataset_json import label_map, modality_of, read_json
from brats_lightning.models.nnunet import from_nnunet
from brats_lightning.models.transfer import Weights

_FINAL = "checkpoint_final.pth"
# nnU-Net's checkpoints hold its log, and that numpy scalars. Besides tensors and plain containers only these are read.
_SCALARS: list[Any] = [np.dtype, np.float64(0).__reduce__()[0]]
_SCALARS += [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")]
# Arguments of its networks that ours have no choice about, as they must be.
_FIXED = {
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
_NETWORKS = {"ResidualEncoderUNet": "n_blocks_per_stage", "PlainConvUNet": "n_conv_per_stage"}


def is_nnunet(path: Path) -> bool:
    """Whether a path is that of a trained model of nnU-Net: its folder, the folder of a fold, or a file of weights."""
    return path.suffix == ".pth" or (path / "plans.json").is_file() or (path / _FINAL).is_file()


def read_nnunet(path: Path | str, labels: Sequence[str]) -> tuple[Weights, dict[str, Any]]:
    """The weights of a trained model in our names, and the settings ``model`` of our network with its logits.

    The architecture and the channels are those of ``plans.json`` and ``dataset.json`` in the folder of the model, or
    else of the checkpoint, which holds both.

    Args:
        path: ``DATASET/TRAINER__PLANS__CONFIGURATION``, ``fold_0`` in it, or a file ``.pth`` in that.
        labels: foreground classes, as `data.labels`. What is none of them, nor a region or sequence of ours, keeps its
            name.

    Raises:
        CheckpointError: files that are absent or hold something else, or a network that ours cannot be.
    """
    file = _file_of(Path(path).expanduser().absolute())
    checkpoint = load_plain(file, "weights", _SCALARS)
    try:
        made = checkpoint["init_args"]
        tensors, configuration = checkpoint["network_weights"], made["configuration"]
        plans, dataset = (
            read_json(beside, f"{name} of nnU-Net")
            if (beside := file.parents[1] / f"{name}.json").is_file()
            else made[key]
            for name, key in (("plans", "plans"), ("dataset", "dataset_json"))
        )
        settings = _network_settings(plans, configuration)
        inputs, outputs = _channels(dataset, labels, file)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"weights: {file} is no checkpoint of nnU-Net v2 with its plans: {error!r}") from error
    residual = settings["_target_"].endswith("ResEncUNet")
    try:
        renamed = from_nnunet(tensors, len(settings["widths"]), residual)
    except ValueError as error:
        raise CheckpointError(f"weights: {file}: {error}") from error
    return Weights(renamed, inputs, outputs), settings | {"in_channels": len(inputs), "out_channels": len(outputs)}


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"weights: there is no checkpoint {path}")
        return path
    found = [path / _FINAL] if (path / _FINAL).is_file() else sorted(path.glob(f"fold_*/{_FINAL}"))
    if len(found) != 1:
        what = f"has no fold with {_FINAL}" if not found else f"has the folds {', '.join(f.parent.name for f in found)}"
        raise CheckpointError(f"weights: {path} {what}; name a file: weights={path}/fold_0/checkpoint_best.pth")
    return found[0]


def _network_settings(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """The settings ``model`` of our network for a configuration of plans, without channels."""
    if list(plans.get("transpose_forward", (0, 1, 2))) != [0, 1, 2]:
        raise CheckpointError(
            f"weights: the plans turn images by transpose_forward={plans['transpose_forward']}; only weights of "
            "networks that see them as they are, [0, 1, 2], can be used"
        )
    planned: dict[str, Any] = {}
    name: str | None = configuration
    left = dict(plans["configurations"])
    while name is not None:  # each configuration may add to another
        configured = left.pop(name)
        planned, name = configured | planned, configured.get("inherits_from")
    if "architecture" not in planned:
        raise CheckpointError("weights: the plans are those of an older nnU-Net, before 2.4, and state no architecture")
    kind = planned["architecture"]["network_class_name"].rpartition(".")[2]
    given = planned["architecture"]["arch_kwargs"]
    faults = [f"{key}={given.get(key)}, not {value}" for key, value in _FIXED.items() if given.get(key) != value]
    if kind not in _NETWORKS or faults:
        raise CheckpointError(
            f"weights: the network of {configuration} is a {kind}{' with ' * bool(faults)}{'; '.join(faults)}; only "
            f"{' and '.join(_NETWORKS)} with instance norm and leaky ReLU can be used"
        )
    encoder, decoder = list(given[_NETWORKS[kind]]), list(given["n_conv_per_stage_decoder"])[::-1]
    if kind == "PlainConvUNet":  # of whose convolutions ours has two in a block
        if any(count % 2 for count in (*encoder, *decoder)):
            raise CheckpointError(
                f"weights: {encoder} and {decoder} convolutions per level; only even numbers can be used"
            )
        encoder, decoder = [count // 2 for count in encoder], [count // 2 for count in decoder]
    return {
        "_target_": f"brats_lightning.models.{'UNet' if kind == 'PlainConvUNet' else 'ResEncUNet'}",
        "widths": list(given["features_per_stage"]),
        "blocks": encoder,
        "decoder_blocks": abbreviated(decoder),
        "kernel_sizes": abbreviated(given["kernel_sizes"]),
        "strides": abbreviated(given["strides"][1:]),
        "stem": 1,
        "norm": "instance",
        "activation": "leaky_relu",
        "upsampling": "transposed",
    }


def _channels(dataset: Mapping[str, Any], labels: Sequence[str], file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the input and output channels of a data set."""
    channels = {int(key): str(name) for key, name in dataset.get("channel_names", dataset.get("modality")).items()}
    inputs = tuple(modality_of(channels[number]) or channels[number].lower() for number in sorted(channels))
    scheme = LabelScheme(tuple(labels))
    names = {frozenset([scheme.index(name)]): name for name in scheme.names}
    names |= {frozenset(classes): region for region, classes in scheme.regions.items()}
    try:
        to_class = label_map(dataset, labels, file) or {}
    except CaseError:  # labels of other classes
        names, to_class = {}, {}
    stated = {name: value for name, value in dataset["labels"].items() if name not in ("background", "ignore")}
    regions = any(isinstance(value, list) and len(value) > 1 for value in stated.values())  # as nnU-Net tells it
    outputs = [] if regions else ["background"]
    for name in stated if regions else sorted(stated, key=stated.__getitem__):
        numbers = stated[name] if isinstance(stated[name], list) else [stated[name]]
        outputs.append(names.get(frozenset(to_class.get(number, number) for number in numbers), name.lower()))
    return inputs, tuple(outputs)
