"""From class probabilities to labels: decoding, holes, and components too small to believe in."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer, UInt8
from omegaconf import OmegaConf
from scipy import ndimage

from brats_lightning.core.components import NEIGHBOURS_26, label_components
from brats_lightning.core.geometry import nonzero_box
from brats_lightning.core.labels import LabelScheme, in_classes
from brats_lightning.core.targets import decode_regions

Number = int | float
Box = tuple[slice, slice, slice]

# What a voxel of a removed component may become, if it touches it: what encloses this region, from inside out.
_ENCLOSING = {"et": ("netc", "snfh"), "tc": ("snfh",)}


class PostprocessingError(ValueError):
    """Settings that cannot be applied."""


@dataclass(frozen=True)
class Postprocessing:
    """The rules, applied in this order. Labels are classes, so ET ⊂ TC ⊂ WT holds whatever is done.

    *Decoding*: ``argmax`` gives each voxel its most probable class; ``regions`` the class of the innermost region
    whose probability is at least ½ (`brats_lightning.core.targets.decode_regions`).

    *Hysteresis*, with ``low`` and ``high``: foreground are the 26-connected components of the voxels whose foreground
    probability ``1 - p(background)`` is above ``low``, if it is above ``high`` in at least one voxel of the component.
    Inside, a voxel decoded as background gets its most probable foreground class. It keeps a small lesion that is seen
    faintly but with one clear peak, which a size or mean-confidence filter would lose.

    *Core*, with ``core``: a 26-connected component of ET that exceeds this probability of ET nowhere becomes NETC; then
    likewise one of TC becomes SNFH, whatever lies around it. Lesion-wise scores count each speck of core that a network
    suspects inside an oedema as a lesion of its own, though the whole tumour around it is beyond doubt.

    *The surest*, with ``keep_surest``: of the components that ``high`` and ``core`` judge, the one with the highest
    probability stays whatever that is, of TC also the one with the surest ET. On scans unlike those it was trained on,
    a network is sure of nothing, and would else lose the whole tumour.

    *Solid core*, with ``solid_core``: oedema (SNFH) becomes NETC where tumour core encloses it in the slices of at
    least two of the three orientations: in the slice, no path of 4-connected voxels outside the core leads from it to
    the slice's border. Oedema lies around a core, never in it, but in a patch smaller than the tumour its inside looks
    like oedema. A cavity (RC) is no core. Classes that lack NETC, SNFH or ET are left as they are.

    *Holes*: background that tumour core encloses (6-connected background that doesn't reach the volume's border)
    becomes NETC, and what remains enclosed by the whole tumour becomes SNFH.

    *Minimum volume*: a 26-connected component of a region smaller than so many mm³ goes. A component of ET becomes
    NETC if it touches that, else SNFH if it touches that, else background; one of TC becomes SNFH or background; all
    others background. Regions are taken in the order ET, TC, WT, then the rest.

    *Core required*, with ``require_core``: a 26-connected component of all foreground that is nothing but oedema (SNFH)
    goes, all other classes being core here; with ``keep_surest`` the surest one stays if all are such, of equals the
    largest. Oedema surrounds a metastasis or a cavity and is neither. Classes without SNFH have none to remove.

    Args:
        low: probability; None leaves hysteresis out.
        high: probability, at least ``low``; given together with it.
        core: probability; None leaves all components of the core.
        keep_surest: with ``high``, ``core`` or ``require_core``; for data where hardly a case has no lesion.
        fill_holes: whether to fill them; needs the classes netc and snfh.
        min_volume: in mm³: one for every region, or by region name.
        decode: ``argmax`` or ``regions``; None leaves it to the network's target (`decoding`), and is else ``argmax``.
        require_core: whether components of oedema alone go.
        solid_core: whether enclosed oedema becomes NETC.

    Raises:
        PostprocessingError: impossible settings.
    """

    low: Number | None = None
    high: Number | None = None
    core: Number | None = None
    keep_surest: bool = False
    fill_holes: bool = False
    min_volume: Number | Mapping[str, Number] | None = None
    decode: str | None = None
    require_core: bool = False
    solid_core: bool = False

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise PostprocessingError(f"give postprocessing.low and .high together, got {self.low} and {self.high}")
        if self.low is not None and self.high is not None and not 0 <= self.low <= self.high < 1:
            raise PostprocessingError(
                f"postprocessing needs 0 ≤ low ≤ high < 1 (probabilities), got low={self.low} high={self.high}"
            )
        if self.core is not None and not 0 <= self.core < 1:
            raise PostprocessingError(f"postprocessing.core is a probability, 0 ≤ core < 1, got {self.core}")
        sizes = self.min_volume.values() if isinstance(self.min_volume, Mapping) else [self.min_volume or 0]
        if not all(size >= 0 for size in sizes):
            raise PostprocessingError(f"postprocessing.min_volume is in mm³, at least 0, got {self.min_volume}")
        if self.decode not in ("argmax", "regions", None):
            raise PostprocessingError(f"postprocessing.decode must be argmax, regions or null, got {self.decode!r}")

    def decoding(self, decode: str) -> "Postprocessing":
        """These rules, with their ``decode`` set where it was left open."""
        return replace(self, decode=self.decode or decode)

    def __call__(
        self, probabilities: Float[np.ndarray, "k z y x"], spacing: Sequence[Number], scheme: LabelScheme
    ) -> UInt8[np.ndarray, "z y x"]:
        """Class index of each voxel.

        Args:
            probabilities: of the classes, the background first.
            spacing: (z, y, x) in mm.
            scheme: the classes.

        Raises:
            PostprocessingError: a rule needs a class or region that the scheme lacks.
            ValueError: decoding by regions that do not tell the classes apart.
        """
        labels = self._decode(probabilities, scheme) if self.low is None else self._hysteresis(probabilities, scheme)
        if self.core is not None:
            for region in ("et", "tc"):
                self._demote_unsure(labels, probabilities, region, self.core, scheme)
        if self.solid_core and {"netc", "snfh", "et"} <= set(scheme.names):
            _fill_core(labels, scheme)
        if self.fill_holes:
            _fill_holes(labels, scheme)
        for region, volume in self._min_volumes(scheme).items():
            _remove_small(labels, region, volume / math.prod(spacing), scheme)
        if self.require_core and "snfh" in scheme.names:
            self._remove_bare_oedema(labels, probabilities, scheme.index("snfh"))
        return labels

    def _decode(self, probabilities: Float[np.ndarray, "k z y x"], scheme: LabelScheme) -> UInt8[np.ndarray, "z y x"]:
        if self.decode == "regions":
            return decode_regions(torch.from_numpy(probabilities), scheme).numpy()
        return most_probable(probabilities)

    def _hysteresis(
        self, probabilities: Float[np.ndarray, "k z y x"], scheme: LabelScheme
    ) -> UInt8[np.ndarray, "z y x"]:
        assert self.low is not None and self.high is not None  # noqa: PT018 — checked together above
        labels = np.zeros(probabilities.shape[1:], np.uint8)
        candidates = 1 - probabilities[0] > self.low
        box = nonzero_box(candidates)
        part = probabilities[(slice(None), *box)]
        components, n = label_components(candidates[box])
        if n:
            kept = self._sure(1 - part[0], components, n, self.high)
            decoded = self._decode(part, scheme)
            foreground = np.where(decoded == 0, most_probable(part[1:]) + 1, decoded)
            labels[box] = np.where(kept[components], foreground, 0)
        return labels

    def _demote_unsure(
        self,
        labels: UInt8[np.ndarray, "z y x"],
        probabilities: Float[np.ndarray, "k z y x"],
        region: str,
        least: Number,
        scheme: LabelScheme,
    ) -> None:
        """Give a region's components whose probability exceeds ``least`` nowhere to what encloses the region."""
        if region not in scheme.regions:
            return
        classes = sorted(scheme.regions[region])
        mask = in_classes(labels, classes)
        box = nonzero_box(mask)
        components, n = label_components(mask[box])
        if n:
            sure = self._sure(probabilities[(classes, *box)].sum(0), components, n, least)
            sure[0] = True  # outside the region nothing changes
            if region == "tc" and "et" in scheme.regions:  # ET that has stayed
                sure[components[in_classes(labels[box], scheme.regions["et"])]] = True
            labels[box][~sure[components]] = next(
                (scheme.index(name) for name in _ENCLOSING[region] if name in scheme.names), 0
            )

    def _remove_bare_oedema(
        self, labels: UInt8[np.ndarray, "z y x"], probabilities: Float[np.ndarray, "k z y x"], oedema: int
    ) -> None:
        """Remove the components of foreground that hold nothing but oedema."""
        box = nonzero_box(labels)
        part = labels[box]
        components, n = label_components(part > 0)
        if n:
            kept = np.zeros(n + 1, bool)
            kept[components[(part > 0) & (part != oedema)]] = True
            if self.keep_surest and not kept.any():
                peaks = ndimage.maximum(1 - probabilities[(0, *box)], components, np.arange(n + 1))
                sizes = np.bincount(components.reshape(-1))
                kept[max(range(1, n + 1), key=lambda number: (peaks[number], sizes[number]))] = True
            part[~kept[components]] = 0

    def _sure(
        self,
        probabilities: Float[np.ndarray, "z y x"],
        components: Integer[np.ndarray, "z y x"],
        n: int,
        least: Number,
    ) -> Bool[np.ndarray, " m"]:
        """Which of 0 … n components exceed ``least`` somewhere, or are the surest and may stay for that; 0 is False."""
        peaks = np.asarray(ndimage.maximum(probabilities, components, np.arange(n + 1)))
        sure = peaks > least
        if self.keep_surest:
            sure[1:] |= peaks[1:] == peaks[1:].max()
        sure[0] = False
        return sure

    def _min_volumes(self, scheme: LabelScheme) -> dict[str, float]:
        if self.min_volume is None:
            return {}
        if not isinstance(self.min_volume, Mapping):
            return {region: float(self.min_volume) for region in scheme.regions}
        if unknown := set(self.min_volume) - set(scheme.regions):
            raise PostprocessingError(
                f"postprocessing.min_volume names {', '.join(sorted(unknown))}; the regions of these classes are "
                + ", ".join(scheme.regions)
            )
        return {name: float(self.min_volume[name]) for name in scheme.regions if name in self.min_volume}


def most_probable(probabilities: Float[np.ndarray, "k z y x"]) -> UInt8[np.ndarray, "z y x"]:
    """Index of the largest value along the first axis, the first of equals."""
    labels = np.empty(probabilities.shape[1:], np.uint8)
    for z in range(len(labels)):  # argmax makes 8-byte indices; of a slice they are few
        labels[z] = probabilities[:, z].argmax(0)
    return labels


def tuned_file(checkpoint: Path | str) -> Path:
    """Where `brats_lightning.tune` leaves what it found for a checkpoint."""
    checkpoint = Path(checkpoint)
    return checkpoint.with_name(f"{checkpoint.stem}_postprocessing.yaml")


def tuned(checkpoint: str | Path | Sequence[str | Path]) -> Postprocessing:
    """The rules that `brats_lightning.tune` chose for a checkpoint, or for the members of an ensemble alike.

    Raises:
        PostprocessingError: not tuned, or members that were tuned to different rules.
    """
    found = {}
    for path in [checkpoint] if isinstance(checkpoint, str | Path) else checkpoint:
        file = tuned_file(path)
        if not file.is_file():
            raise PostprocessingError(f"there is no {file}; make it with: python -m brats_lightning.tune ckpt={path}")
        content: Any = OmegaConf.to_container(OmegaConf.load(file))
        found[str(file)] = Postprocessing(**content["chosen"])
    return agreed(found, "the members were tuned to different rules; tune them together: 'ckpt=[A,B]'")


def agreed(rules: Mapping[str, Postprocessing], otherwise: str) -> Postprocessing:
    """The rules of an ensemble's members, by their files, which must be the same.

    Raises:
        PostprocessingError: ``otherwise``, and which file has which.
    """
    first, *others = rules.values()
    if any(other != first for other in others):
        raise PostprocessingError("\n  ".join([otherwise, *(f"{file}: {found}" for file, found in rules.items())]))
    return first


def _fill_core(labels: UInt8[np.ndarray, "z y x"], scheme: LabelScheme) -> None:
    """Make NETC of the SNFH that the core encloses in at least two orientations."""
    core = in_classes(labels, scheme.regions["tc"])
    box = nonzero_box(core)  # nothing outside is enclosed
    part, core = labels[box], core[box]
    oedema = part == scheme.index("snfh")
    if not oedema.any():
        return
    planes = [np.expand_dims(ndimage.generate_binary_structure(2, 1), axis) for axis in range(3)]
    enclosed = [ndimage.binary_fill_holes(core, plane) for plane in planes]
    part[(np.sum(enclosed, axis=0, dtype=np.uint8) >= 2) & oedema] = scheme.index("netc")


def _fill_holes(labels: UInt8[np.ndarray, "z y x"], scheme: LabelScheme) -> None:
    if not {"netc", "snfh"} <= set(scheme.names):
        raise PostprocessingError("postprocessing.fill_holes needs the classes netc and snfh among data.labels")
    part = labels[nonzero_box(labels)]
    for region, name in (("tc", "netc"), ("wt", "snfh")):
        if region in scheme.regions:
            mask = in_classes(part, scheme.regions[region])
            part[ndimage.binary_fill_holes(mask) & (part == 0)] = scheme.index(name)


def _remove_small(labels: UInt8[np.ndarray, "z y x"], region: str, voxels: float, scheme: LabelScheme) -> None:
    """Replace a region's components of fewer than ``voxels`` voxels."""
    classes = scheme.regions[region]
    enclosing = [scheme.index(name) for name in _ENCLOSING.get(region, ()) if name in scheme.names]
    for box, component in _components(in_classes(labels, classes)):
        if np.count_nonzero(component) < voxels * (1 - 1e-6):  # spacings carry rounding errors
            touching = set(np.unique(labels[box][ndimage.binary_dilation(component, NEIGHBOURS_26)]).tolist())
            new = next((index for index in enclosing if index in touching), 0)
            labels[box][component] = new


def _components(mask: Bool[np.ndarray, "z y x"]) -> Iterator[tuple[Box, Bool[np.ndarray, "d h w"]]]:
    """Each 26-connected component in its box, one voxel wider than itself where the volume goes on."""
    outer = nonzero_box(mask)
    components, n = label_components(mask[outer])
    for number, inner in enumerate(ndimage.find_objects(components) if n else [], 1):
        bounds = [
            (max(0, o.start + i.start - 1), min(n, o.start + i.stop + 1))
            for o, i, n in zip(outer, inner, mask.shape, strict=True)
        ]
        a, b, c = (slice(*bound) for bound in bounds)
        component = np.zeros(tuple(high - low for low, high in bounds), dtype=bool)
        offsets = [o.start + i.start - low for o, i, (low, _) in zip(outer, inner, bounds, strict=True)]
        placed = tuple(slice(o, o + i.stop - i.start) for o, i in zip(offsets, inner, strict=True))
        component[placed] = components[inner] == number
        yield (a, b, c), component
