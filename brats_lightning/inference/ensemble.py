"""Trained models and ensembles of them: from a case's images to its class probabilities."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int16
from torch import Tensor, nn

from brats_lightning.core.geometry import GridTransform
from brats_lightning.core.labels import LabelScheme, source_modalities
from brats_lightning.core.targets import Target, class_probabilities, nested_regions
from brats_lightning.data.cases import patient_and_timepoint
from brats_lightning.data.nifti import Volume
from brats_lightning.data.normalisation import Normaliser
from brats_lightning.data.preprocessing import Prepared, Preprocessing, prepare
from brats_lightning.data.probabilities import Probabilities
from brats_lightning.inference.windows import Advance, SlidingWindow
from brats_lightning.runtime.device import on_host, take, to_device

CHECKPOINT_FORMAT = 2  # of the files that a `TrainedModel` is read from; increase it when their content changes


class UndefinedProbabilities(ValueError):
    """The output of a network has no meaning."""


@dataclass(frozen=True)
class TrainedModel:
    """A network and everything needed to apply it to a case in the way it was trained.

    Attributes:
        path: of the checkpoint.
        network: in evaluation mode: (b, c, z, y, x) → logits (b, k, z, y, x).
        normaliser: quantised intensities to network input.
        preprocessing: images to quantised intensities.
        target: what the logits mean.
        inference: how whole volumes are predicted.
        config: of the run, in plain containers.
        split: part → cases of the run's split; None if it is not known.
        seen: cases that the weights were trained on before this run; None if they are not known.
    """

    path: Path
    network: nn.Module
    normaliser: Normaliser
    preprocessing: Preprocessing
    target: Target
    inference: SlidingWindow
    config: Mapping[str, Any]
    split: Mapping[str, Collection[str]] | None = None
    seen: Collection[str] | None = ()

    @property
    def scheme(self) -> LabelScheme:
        """The classes."""
        return self.target.scheme

    def part_of(self, case: str) -> str | None:
        """Which part of the run's split has a case, or another one of its patient; ``none``, or None if unknown.

        What the weights were trained on before the run is of its ``train`` part.
        """
        patient, _ = patient_and_timepoint(case)
        split = self.split or {}
        parts = {**split, "train": (*split.get("train", ()), *(self.seen or ()))}
        having = {
            part for part, names in parts.items() if patient in {patient_and_timepoint(name)[0] for name in names}
        }
        if "train" in having:
            return "train"
        return None if self.split is None or self.seen is None else min(having, default="none")


class Ensemble:
    """Weighted mean of the class probabilities of one or more models, each of which gets a case as it was trained.

    Members may differ in architecture, target, modalities, preprocessing, normalisation and windows, but not in the
    classes. ``decode`` names the decoding of the mean: that of the first member's target.

    A region that some members name in ``regions`` comes from these alone, the others from the members that name none:
    the mean is then one of the regions' probabilities, each the sum over its classes, and `class_probabilities` makes
    class probabilities of it.

    Memory: a case takes 2 bytes per voxel and modality, 4 per voxel and class for the running mean, the same again for
    the member that is being computed, and 4 per voxel; with several models 8 more.

    Args:
        models: the members.
        device: where to compute.
        dtype: of the autocast; None computes in 32 bits.
        weights: of the members, above 0, of any sum; None weighs all alike.
        regions: of each member, those it is there for alone; None or empty: all that no member names.

    Raises:
        ValueError: no models, members with different classes, weights that are no shares, or regions that are unknown
            or come from no member.
    """

    def __init__(
        self,
        models: Sequence[TrainedModel],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        weights: Sequence[float] | None = None,
        regions: Sequence[Sequence[str]] | None = None,
    ) -> None:
        if not models:
            raise ValueError("an ensemble needs at least one model")
        self.scheme, self.decode = models[0].scheme, models[0].target.decode
        self.regions = tuple(map(tuple, regions or [()] * len(models)))
        given = [1.0] * len(models) if weights is None else weights
        if faults := [*_of_other_classes(models), *_unweighed(models, given), *_without_region(models, self.regions)]:
            raise ValueError("\n  ".join(faults))
        self.modalities = source_modalities([name for model in models for name in model.normaliser.sources])
        required = {
            name for model in models for name in model.normaliser.sources if name not in model.normaliser.optional
        }
        self.optional = tuple(name for name in self.modalities if name not in required)
        self.models = tuple(models)
        self.weights = tuple(weight / sum(given) for weight in given)
        self.device, self.dtype = device or torch.device("cpu"), dtype
        self._groups: dict[Preprocessing, list[int]] = {}  # numbers of the members
        for number, model in enumerate(models):
            self._groups.setdefault(model.preprocessing, []).append(number)
        self._shares = self._by_region() if any(self.regions) else None

    def only(self, numbers: Sequence[int]) -> "Ensemble":
        """The ensemble of some of the members.

        Raises:
            ValueError: a region comes from none of these.
        """
        members = [(self.models[number], self.weights[number], self.regions[number]) for number in numbers]
        models, weights, regions = zip(*members, strict=True)
        return Ensemble(models, self.device, self.dtype, weights, regions)

    def _by_region(self) -> Float32[np.ndarray, "members r 1 1 1"]:
        """The weight of each member in the mean of each region."""
        nested_regions(self.scheme)  # refuses regions of which no classes can be made
        shares = np.zeros((len(self.models), len(self.scheme.regions), 1, 1, 1), np.float32)
        for channel, region in enumerate(self.scheme.regions):
            chosen = _members_for(region, self.regions)
            for number in chosen:
                shares[number, channel] = self.weights[number] / sum(self.weights[other] for other in chosen)
        return shares

    def prepare(self, images: Mapping[str, Volume]) -> list[Prepared]:
        """A case as the members need it, once for each different preprocessing.

        Args:
            images: those of ``modalities``, of which a case may lack the ``optional`` ones, all on the same grid.
        """
        wanted = {name: images[name] for name in self.modalities if name in images or name not in self.optional}
        return [prepare(wanted, None, settings) for settings in self._groups]

    def __call__(self, prepared: Sequence[Prepared], advance: Advance | None = None) -> Probabilities:
        """Probabilities of a case.

        If all members work on the same original voxels, they are averaged there. Otherwise they are averaged on the
        brain's box in the original grid after linear interpolation; what a member did not see is background.

        Args:
            prepared: by `prepare`.
            advance: is called with the fraction of the case completed since the last call.

        Raises:
            UndefinedProbabilities: a network's output is NaN, or so large that its softmax is.
        """
        places = [part.transform for part in prepared]
        target = places[0] if places[0].exact and all(place == places[0] for place in places) else prepared[0].brain
        mean: np.ndarray | None = None
        # Of the foreground's probability; West's recurrence, since the difference of sums of squares cancels.
        centre, deviations = np.zeros((2, *target.shape), np.float32)
        done = 0.0  # sum of the weights
        for part, numbers in zip(prepared, self._groups.values(), strict=True):
            # torch supports few operations on uint16, none on Apple's GPUs; the normaliser reads these bits as uint16.
            quantised = torch.from_numpy(part.image).view(torch.int16).to(self.device)
            for number in numbers:
                model, weight = self.models[number], self.weights[number]
                model.network.to(self.device)  # not before it is used: a process may leave that to others
                step = None if advance is None else lambda fraction: advance(fraction / len(self.models))
                values = self._predict(model, quantised, part, step)
                values = values if part.transform == target else transfer(values, part.transform, target)
                if len(self.models) > 1:
                    done += weight
                    foreground = 1 - values[0]
                    change = foreground - centre
                    centre += change * (weight / done)
                    deviations += weight * change * (foreground - centre)
                    del foreground, change
                if self._shares is None:
                    values *= weight
                else:
                    values = np.stack([values[list(classes)].sum(0) for classes in self.scheme.regions.values()])
                    values *= self._shares[number]
                mean = values if mean is None else np.add(mean, values, out=mean)
                del values  # before the next member needs as much
        assert mean is not None  # there is a member
        if self._shares is not None:
            mean = class_probabilities(torch.from_numpy(mean), self.scheme).numpy()
        return Probabilities(mean, target, np.sqrt(deviations) if done else None)

    @torch.inference_mode()
    def _predict(
        self, model: TrainedModel, quantised: Int16[Tensor, "m z y x"], part: Prepared, advance: Advance | None
    ) -> Float32[np.ndarray, "k z y x"]:
        # Of a modality that the case lacks any channel will do: its parameters make it 0.
        channels = [part.modalities.index(m) if m in part.modalities else 0 for m in model.normaliser.sources]
        parameters = to_device(model.normaliser.parameters(part.intensities), self.device)

        def logits(windows: Tensor) -> Tensor:
            image = model.normaliser(take(windows, channels), parameters.expand(len(windows), -1, -1))
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                return model.network(image.contiguous(memory_format=torch.channels_last_3d))

        total = model.inference(logits, quantised, advance, model.target.background)
        values = on_host(model.target.probabilities(total))
        if math.isnan(values.sum()):  # of NaN no rule of post-processing would make a lesion
            raise UndefinedProbabilities(f"NaN from the network of {model.path}")
        return values


def _of_other_classes(models: Sequence[TrainedModel]) -> list[str]:
    """What is wrong if not all models have the classes of the first."""
    first = models[0]
    others = [model for model in models if model.scheme != first.scheme]
    listed = "; ".join(f"{model.path} has the classes {', '.join(model.scheme.names)}" for model in others)
    own = f"{first.path} {', '.join(first.scheme.names)}"
    return [f"{listed}, {own}; only models with the same data.labels can be averaged"] if others else []


def _unweighed(models: Sequence[TrainedModel], weights: Sequence[float]) -> list[str]:
    """What is wrong with the models' weights."""
    if len(weights) == len(models) and all(0 < weight < math.inf for weight in weights):
        return []
    return [f"weights={list(weights)} must be a number above 0 for each of {len(models)} models"]


def _without_region(models: Sequence[TrainedModel], regions: Sequence[Sequence[str]]) -> list[str]:
    """What is wrong with the regions that the models are for."""
    known = models[0].scheme.regions
    faults = [
        f"{model.path} is for the regions {', '.join(names)}; the regions of data.labels="
        f"[{','.join(models[0].scheme.names)}] are {', '.join(known)}"
        for model, names in zip(models, regions, strict=True)
        if not set(names) <= set(known)
    ]
    if absent := [region for region in known if not _members_for(region, regions)]:
        faults.append(
            f"no member is for {', '.join(absent)}: each names other regions; leave regions out of one, or add them"
        )
    return faults


def _members_for(region: str, regions: Sequence[Sequence[str]]) -> list[int]:
    """Numbers of the members that name the region, or if there is none, of those that name no region."""
    naming = [number for number, names in enumerate(regions) if region in names]
    return naming or [number for number, names in enumerate(regions) if not names]


def transfer(
    values: Float32[np.ndarray, "k z y x"], transform: GridTransform, target: GridTransform
) -> Float32[np.ndarray, "k d h w"]:
    """Class probabilities interpolated linearly from their working voxels to a box of original voxels.

    Voxels that the working array doesn't cover are background, with probability 1.

    Args:
        values: on the working voxels.
        transform: of the working voxels.
        target: an exact grid transform in the same original grid.
    """
    restored = transform.restore_probabilities(values)
    values = np.stack([target.apply(channel) for channel in restored])
    values[0] += 1 - values.sum(0)
    return values
