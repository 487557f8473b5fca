"""Weights of nnU-Net's networks in the names and order of ours."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_DUPLICATE = re.compile(r"\.all_modules\.|^decoder\.encoder\.")  # the same tensors by second names
_UNDONE = re.compile(r"\.conv\.bias$")  # of a convolution with a norm behind it, which takes any constant out
_STAGE = r"encoder\.stages\.(\d+)\."
_LAYER = r"(conv|norm)\.(weight|bias)"


def from_nnunet(
    weights: Mapping[str, Tensor], levels: int, residual: bool, heads: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """The state dict of a `ResEncUNet` or `UNet` with the logits of a ``ResidualEncoderUNet`` or ``PlainConvUNet``.

    Names change; biases that a norm undoes and second names are left out; and where a decoder joins skip and up-sampled
    features, the channels of the next convolution change places, since ours takes the skip first.

    Args:
        weights: ``state_dict()`` of a network of ``dynamic_network_architectures``.
        levels: of the network.
        residual: whether it is a ``ResidualEncoderUNet``; a ``PlainConvUNet`` has two convolutions in a block of ours.
        heads: channels of theirs in the order of ours; None: the same order.

    Raises:
        ValueError: weights of other networks.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if _DUPLICATE.search(name) or _UNDONE.search(name):
            continue
        ours = _renamed(name.removeprefix("module."), levels, residual)
        if re.fullmatch(r"decoder\.\d+\.blocks\.0\.conv1\.weight", ours):
            tensor = torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1)
        if heads is not None and ours.startswith("heads."):
            tensor = tensor[list(heads)]
        result[ours] = tensor
    for name in [name for name in result if name.endswith("up.weight")]:
        result.setdefault(name.replace("weight", "bias"), result[name].new_zeros(result[name].shape[1]))
    return result


def _renamed(name: str, levels: int, residual: bool) -> str:
    """Our name of a weight of theirs."""
    if match := re.fullmatch(rf"encoder\.stem\.convs\.0\.{_LAYER}", name):
        return f"encoder.0.0.{match[1]}1.{match[2]}"
    if match := re.fullmatch(rf"{_STAGE}blocks\.(\d+)\.(conv[12]|skip)\.(?:(\d)\.)?{_LAYER}", name):
        stage, block, part, place, kind, what = match.groups()
        block = int(block) + (stage == "0")  # the stem is the first of ours
        layer = f"{kind}{part[-1]}" if part != "skip" else f"shortcut.{int(place) + (kind == 'norm')}"
        return f"encoder.{stage}.{block}.{layer}.{what}"
    if match := re.fullmatch(rf"{_STAGE}0\.convs\.(\d+)\.{_LAYER}", name):
        stage, number, kind, what = match.groups()
        return f"encoder.{stage}.{int(number) // 2}.{kind}{int(number) % 2 + 1}.{what}"
    if match := re.fullmatch(r"decoder\.(stages|transpconvs|seg_layers)\.(\d+)\.(.+)", name):
        level, rest = levels - 2 - int(match[2]), match[3]
        if match[1] == "transpconvs":
            return f"decoder.{level}.up.{rest}"
        if match[1] == "seg_layers":
            return f"heads.{level}.{rest}"
        if match := re.fullmatch(rf"convs\.(\d+)\.{_LAYER}", rest):
            number, kind, what = int(match[1]), match[2], match[3]
            block, place = (number, 1) if residual else (number // 2, number % 2 + 1)
            return f"decoder.{level}.blocks.{block}.{kind}{place}.{what}"
    raise ValueError(f"{name} is no weight of a ResidualEncoderUNet or a PlainConvUNet of instance norms")
