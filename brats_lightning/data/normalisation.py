"""16-bit codes to network input, on any device."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int16, UInt16
from torch import Tensor

from brats_lightning.core.labels import parse_channel, source_modalities
from brats_lightning.data.preprocessing import Intensities, normalisation
from brats_lightning.runtime.device import chunk_size, knows_uint16, take
from brats_lightning.runtime.memory import empty_float32


class Standardiser:
    """Intensity standardisation per case and modality, then the differences of modalities that a channel may name.

    Args:
        channels: of the network's input: modalities, or differences like ``t1c-t1n`` of the standardised modalities.
        method: see `normalisation`.
        low: lower percentile, in %, of ``percentile``.
        high: upper percentile.
    """

    def __init__(
        self, channels: Sequence[str], method: str = "zscore", low: float | int = 0.5, high: float | int = 99.5
    ) -> None:
        self.channels = tuple(channels)
        self.sources = source_modalities(channels)  # to be read, in this order
        self._options: tuple[str, float | int, float | int] = (method, low, high)
        self._bounded = method != "zscore"  # whose bounds are infinite
        pairs = [parse_channel(channel) for channel in channels]
        self._minuends = [self.sources.index(a) for a, _ in pairs]
        self._subtrahends = [(i, self.sources.index(b)) for i, (_, b) in enumerate(pairs) if b]

    def numbers(self, intensities: Mapping[str, Intensities]) -> Float32[np.ndarray, "m 4"]:
        """(scale, offset, lowest, highest) for each of ``sources``, to be shipped with the codes of that case.

        Args:
            intensities: of a cached or prepared case.
        """
        return np.stack([normalisation(intensities[modality], *self._options) for modality in self.sources])

    def __call__(
        self, codes: UInt16[Tensor, "b m z y x"] | Int16[Tensor, "b m z y x"], numbers: Float[Tensor, "b m 4"]
    ) -> Float32[Tensor, "b c z y x"]:
        """Network input on the codes' device; 0 outside the brain.

        Args:
            codes: of ``sources``; int16 are the bits of uint16, with which torch can do more.
            numbers: from `numbers`, one row of the batch per case.
        """
        scale, offset, lowest, highest = numbers.float()[..., None, None, None].unbind(2)
        if codes.dtype == torch.int16 and knows_uint16(codes.device):
            codes = codes.view(torch.uint16)
        values = empty_float32(codes.shape, codes.device)
        step = max(1, chunk_size(codes.device) // max(1, codes[:, :, 0].numel()))
        for first in range(0, codes.shape[2], step):
            piece = values[:, :, first : first + step].copy_(codes[:, :, first : first + step])
            if codes.dtype == torch.int16:
                piece.remainder_(1 << 16)
            brain = piece.clamp(max=1)  # codes are whole numbers; made and applied faster than a bool mask or the sign
            if self._bounded:
                piece.mul_(scale).add_(offset).clamp_(lowest, highest).mul_(brain)
            else:
                piece.mul_(scale).addcmul_(brain, offset)
        if not self._subtrahends and self._minuends == list(range(len(self.sources))):
            return values
        image = take(values, self._minuends)
        for channel, subtrahend in self._subtrahends:
            image[:, channel] -= values[:, subtrahend]
        return image
