"""From class probabilities to labels: decoding, then named steps of one rule each.

Labels are classes, so ET ⊂ TC ⊂ WT holds whatever a step does. Components are 26-connected.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8

from brats_lightning.core.labels import REGIONS, LabelScheme
from brats_lightning.core.targets import decode_regions

Number = int | float

# The classes around a region, from the inside out: voxels that the region loses become one of these.
_ENCLOSING = {"et": ("netc", "snfh"), "tc": ("snfh",)}


class PostprocessingError(ValueError):
    """Settings that cannot be applied."""


class Region(NamedTuple):
    """A region in numbers.

    Attributes:
        classes: its class indices.
        own: those in no region inside it, which a voxel gets that is in the region and in none inside.
        around: the classes that enclose it, from the inside out, the background last.
    """

    classes: list[int]
    own: list[int]
    around: list[int]


@dataclass(frozen=True)
class Labelling:
    """One case during post-processing: its labels, which the steps change, and what the steps need to know."""

    labels: UInt8[np.ndarray, "z y x"]
    probabilities: Float[np.ndarray, "k z y x"]
    voxel_volume: float  # mm³
    scheme: LabelScheme

    def regions(self, names: Sequence[str] | None, default: Iterable[str]) -> Iterator[Region]:
        """Each region that there is.

        Args:
            names: of the regions; None takes those of ``default``.
            default: further names.
        """
        known = self.scheme.regions
        for name in default if names is None else names:
            if name not in known:
                continue
            inside = {index for other in known.values() if set(other) < set(known[name]) for index in other}
            around = [self.scheme.index(other) for other in _ENCLOSING.get(name, ()) if other in self.scheme.names]
            classes = sorted(known[name])
            yield Region(classes, [index for index in classes if index not in inside] or classes, [*around, 0])


@dataclass(frozen=True)
class Step(ABC):
    """One rule, with its settings.

    Attributes:
        counting: the settings on which the number of components depends; "" stands for the step itself.
    """

    counting: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def __call__(self, case: Labelling) -> None:
        """Change the labels; what concerns a class or region that the scheme lacks is left out."""

    def lacking(self, scheme: LabelScheme) -> list[str]:
        """The regions and classes it is to change that the scheme lacks.

        Raises:
            PostprocessingError: a region that no scheme has.
        """
        named = list(getattr(self, "regions", None) or ())
        if unknown := set(named) - {*REGIONS, *scheme.regions}:
            known = ", ".join(scheme.regions)
            raise PostprocessingError(
                f"postprocessing: regions has {min(unknown)}, the regions of data.labels are {known}"
            )
        return [name for name in named if name not in scheme.regions]


@dataclass(frozen=True)
class Postprocessing:
    """Labels from class probabilities: decoded, then changed by the steps in order.

    Args:
        steps: name → `Step`; None leaves a step out.
        decode: ``argmax``: the most probable class; ``regions``: by `brats_lightning.core.targets.decode_regions`; None
            leaves the choice to the network's target (see `decoding`), without one to ``argmax``.

    Raises:
        PostprocessingError: impossible settings.
    """

    steps: Mapping[str, Any] = field(default_factory=dict)
    decode: str | None = None

    def __post_init__(self) -> None:
        steps = {name: step for name, step in (self.steps or {}).items() if step is not None}
        object.__setattr__(self, "steps", steps)
        for name, step in steps.items():
            if not isinstance(step, Step):
                raise PostprocessingError(
                    f"postprocessing.steps.{name} has the settings {step} and no _target_: this step was not chosen; "
                    f"choose it, e.g. by postprocessing=hysteresis or 'postprocessing/step=[{name}]', or leave it out, "
                    f"postprocessing.steps.{name}=null"
                )
        if self.decode not in ("argmax", "regions", None):
            raise PostprocessingError(f"postprocessing.decode must be argmax, regions or null, got {self.decode!r}")

    def decoding(self, decode: str) -> "Postprocessing":
        """The same steps, with this ``decode`` if it is None."""
        return replace(self, decode=self.decode or decode)

    def described(self) -> str:
        """For a log, in order: ``argmax → hysteresis(low=0.5, high=0.98) → solid_core``."""
        steps = {
            name: [f"{k}={v}" for k, v in asdict(step).items() if v is not None] for name, step in self.steps.items()
        }
        return " → ".join(
            [str(self.decode), *(f"{name}({', '.join(own)})" if own else name for name, own in steps.items())]
        )

    def lacking(self, scheme: LabelScheme) -> list[str]:
        """What the steps leave out since the scheme lacks it, a sentence for each step; for a log, once.

        Raises:
            PostprocessingError: a region that no scheme has.
        """
        found = {name: step.lacking(scheme) for name, step in self.steps.items()}
        classes = f"among the labels {', '.join(scheme.names)}"
        return [
            f"postprocessing.steps.{name} leaves out {', '.join(lacking)}, not {classes}"
            for name, lacking in found.items()
            if lacking
        ]

    def __call__(
        self, probabilities: Float[np.ndarray, "k z y x"], spacing: Sequence[Number], scheme: LabelScheme
    ) -> UInt8[np.ndarray, "z y x"]:
        """Class index of each voxel.

        Args:
            probabilities: of the classes, the background first; they sum to 1 in each voxel.
            spacing: (z, y, x) in mm.
            scheme: the classes.

        Raises:
            ValueError: decoding by regions does not fit the classes.
        """
        labels = np.zeros(probabilities.shape[1:], np.uint8)
        inside = probabilities[0] < 0.6  # anything else is decoded only up to ½; the rest allows for rounding
        voxels = probabilities[:, inside]
        if self.decode == "regions":
            labels[inside] = decode_regions(torch.from_numpy(voxels[:, None, None]), scheme).numpy()[0, 0]
        else:
            labels[inside] = voxels.argmax(0)  # the first of equals
        for step in self.steps.values():
            step(Labelling(labels, probabilities, math.prod(spacing), scheme))
        return labels
