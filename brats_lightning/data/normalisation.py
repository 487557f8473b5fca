"""Quantised intensities to network input, on any device."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int16, UInt16
from torch import Tensor

from brats_lightning.core.labels import PRESENCE, parse_channel, source_modalities
from brats_lightning.data.preprocessing import Intensities
from brats_lightning.runtime.device import chunk_size, supports_uint16, take
from brats_lightning.runtime.memory import empty_float32

METHODS = ("zscore", "minmax", "percentile")


def normalisation_parameters(
    intensities: Intensities, method: str = "zscore", low: float | int = 0.5, high: float | int = 99.5
) -> Float32[np.ndarray, "4"]:
    """(scale, offset, lowest, highest) of a modality, for ``clip(quantised · scale + offset, lowest, highest)``.

    Args:
        intensities: of the modality.
        method: ``zscore`` (value − mean) / std; ``minmax`` (value − min) / (max − min), in 0 … 1; ``percentile`` the
            same between two quantiles, values beyond clipped. All over the brain. A constant brain becomes 0.
        low: lower percentile, in %.
        high: upper percentile, in %.
    """
    bounds = {
        "zscore": (intensities.mean, intensities.mean + intensities.std, -np.inf, np.inf),
        "minmax": (intensities.minimum, intensities.maximum, 0.0, 1.0),
        "percentile": (intensities.quantile(low), intensities.quantile(high), 0.0, 1.0),
    }
    zero, one, lowest, highest = bounds[method]
    gain = 1 / (one - zero) if one > zero else 0.0
    return np.array([intensities.scale * gain, (intensities.offset - zero) * gain, lowest, highest], dtype=np.float32)


class Normaliser:
    """Intensity normalisation per case and modality, then the differences of modalities that a channel may name.

    A channel whose modality a case lacks is 0 everywhere, as is all that lies outside the brain; so is a difference of
    which one modality is missing. A channel ``has-t2w`` is 1 in the brain of a case that has the modality, else 0.

    Args:
        channels: of the network's input: modalities, differences like ``t1c-t1n`` of the normalised modalities, or
            presences like ``has-t2w``.
        method: see `normalisation_parameters`.
        low: lower percentile, in %, of ``percentile``.
        high: upper percentile.
        optional: modalities that a case may lack.
    """

    def __init__(
        self,
        channels: Sequence[str],
        method: str = "zscore",
        low: float | int = 0.5,
        high: float | int = 99.5,
        optional: Sequence[str] = (),
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles {low} … {high}; expected 0 ≤ low < high ≤ 100")
        self.channels = tuple(channels)
        self.sources = source_modalities(channels)  # to be read, in this order
        self.optional = tuple(optional)
        if set(optional) - set(self.sources) or not set(self.sources) - set(optional):
            raise ValueError(
                f"data.optional must be some of the modalities {', '.join(self.sources)}, not all, got {list(optional)}"
            )
        self._options: tuple[str, float | int, float | int] = (method, low, high)
        self._bounded = method != "zscore"  # whose bounds are infinite
        pairs = [parse_channel(channel) for channel in channels]
        self._minuends = [self.sources.index(a) for a, _ in pairs]
        self._subtrahends = [(i, self.sources.index(b)) for i, (_, b) in enumerate(pairs) if b in self.sources]
        self.presences = [i for i, (_, b) in enumerate(pairs) if b == PRESENCE]
        self._brain = next(i for i, name in enumerate(self.sources) if name not in optional)  # that every case has

    def parameters(self, intensities: Mapping[str, Intensities]) -> Float32[np.ndarray, "m 4"]:
        """`normalisation_parameters` of each of ``sources``, to accompany the image of that case.

        Those of an optional modality that the case lacks are 0, by which any quantised intensities become 0.
        """
        return np.stack(
            [
                np.zeros(4, np.float32)
                if modality in self.optional and modality not in intensities
                else normalisation_parameters(intensities[modality], *self._options)
                for modality in self.sources
            ]
        )

    def __call__(
        self, image: UInt16[Tensor, "b m z y x"] | Int16[Tensor, "b m z y x"], parameters: Float[Tensor, "b m 4"]
    ) -> Float32[Tensor, "b c z y x"]:
        """Network input on the image's device; 0 outside the brain.

        Args:
            image: quantised intensities of ``sources``; int16 holds uint16's bits, for devices without that type.
            parameters: from `parameters`, one row of the batch per case.
        """
        scale, offset, lowest, highest = parameters.float()[..., None, None, None].unbind(2)
        if image.dtype == torch.int16 and supports_uint16(image.device):
            image = image.view(torch.uint16)
        values = empty_float32(image.shape, image.device)
        step = max(1, chunk_size(image.device) // max(1, image[:, :, 0].numel()))
        for first in range(0, image.shape[2], step):
            piece = values[:, :, first : first + step].copy_(image[:, :, first : first + step])
            if image.dtype == torch.int16:
                piece.remainder_(1 << 16)
            brain = piece.clamp(max=1)  # of whole numbers: faster than a bool mask or the sign
            if self._bounded:
                piece.mul_(scale).add_(offset).clamp_(lowest, highest).mul_(brain)
            else:
                piece.mul_(scale).addcmul_(brain, offset)
        if self.channels == self.sources:
            return values
        channels = take(values, self._minuends)
        present = (lowest < highest).to(values.dtype)  # without a value there is no interval
        for channel, subtrahend in self._subtrahends:
            channels[:, channel] -= values[:, subtrahend]
            channels[:, channel] *= present[:, self._minuends[channel]] * present[:, subtrahend]
        for channel in self.presences:
            brain = (image[:, self._brain].view(torch.int16) != 0).to(values.dtype)
            torch.mul(brain, present[:, self._minuends[channel]], out=channels[:, channel])
        return channels
