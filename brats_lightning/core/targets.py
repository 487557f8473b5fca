"""What a network learns: exclusive classes (a softmax), or regions that lie inside each other (a sigmoid for each).

Losses see the difference; everything after the network works with class probabilities, which sum to 1.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from brats_lightning.core.labels import IGNORE, LabelScheme
from brats_lightning.runtime.device import chunk_size

_IMPOSSIBLE = -1000.0  # a logit, whose probability is 0 in every precision


class ClassTarget:
    """A channel for each class, the background first; a softmax makes them probabilities.

    Args:
        scheme: the classes.
    """

    decode = "argmax"

    def __init__(self, scheme: LabelScheme) -> None:
        self.scheme = scheme
        self.channels = scheme.num_classes
        self.names = scheme.class_names  # of the channels
        self.background = (0.0,) + (_IMPOSSIBLE,) * len(scheme.names)  # logits of what no window covers

    def encode(self, mask: UInt8[Tensor, "b z y x"]) -> UInt8[Tensor, "b z y x"]:
        """What losses take: the class indices themselves."""
        return mask

    def weights(self, class_weights: Sequence[float]) -> list[float]:
        """Balanced weights of the channels from those of the classes."""
        return list(class_weights)

    def probabilities(self, logits: Float32[Tensor, "k z y x"]) -> Float32[Tensor, "k z y x"]:
        """Class probabilities, written over the logits: of a large volume they are the largest array there is."""
        for (slab,) in _slabs(logits):
            slab.copy_(slab.softmax(0))
        return logits

    def decide(self, logits: Float[Tensor, "b k z y x"]) -> UInt8[Tensor, "b z y x"]:
        """The most probable class of each voxel."""
        return logits.argmax(1).to(torch.uint8)


class RegionTarget:
    """A channel for each of ``scheme.regions``, in their order; a sigmoid makes each the probability of its region.

    Probabilities of regions inside the same larger one (WT, TC, … or the whole volume, of probability 1) that sum to
    more than its own are scaled down to it; a single one is thereby clamped. A class is its smallest region
    without the regions inside that, e.g. with σ for the sigmoids::

        P(ET) = min(σ_ET, P(TC))    P(TC) = min(σ_TC, P(WT))    P(WT) = σ_WT
        p(et) = P(ET)    p(netc) = P(TC) - P(ET)    p(snfh) = P(WT) - P(TC)    p(background) = 1 - P(WT)

    so that the probability of a region is again the sum over its classes.

    Further channels, one for each class of ``extra``, are trained alike and otherwise unused: shells such as NETC,
    which is TC without ET, and SNFH, which is WT without TC.

    Args:
        scheme: the classes, their regions nested or disjoint.
        partly_labelled: whether masks may have voxels of unknown class.
        extra: names of classes that are no region by themselves.

    Raises:
        ValueError: classes that regions do not tell apart, or other names in ``extra``.
    """

    decode = "regions"

    def __init__(self, scheme: LabelScheme, partly_labelled: bool = False, extra: Sequence[str] = ()) -> None:
        self.scheme, self.partly_labelled = scheme, partly_labelled
        self._nested = nested_regions(scheme)
        shells = [name for name in scheme.names if (scheme.index(name),) not in scheme.regions.values()]
        if len(set(extra)) < len(extra) or not set(extra) <= set(shells):
            raise ValueError(
                f"target_extra must name classes that are no region by themselves, each once: of data.labels="
                f"[{','.join(scheme.names)}] {' and '.join(shells) or 'there is none'}; got {list(extra)}"
            )
        self._extra = [scheme.index(name) for name in extra]
        self.names = (*scheme.regions, *extra)  # of the channels
        self.channels = len(self.names)
        self.background = (_IMPOSSIBLE,) * self.channels  # logits of what no window covers

    def encode(self, mask: UInt8[Tensor, "b z y x"]) -> UInt8[Tensor, "b k z y x"]:
        """What losses take: 1 in each region, 0 outside; `IGNORE` where the class is."""
        memberships = mask.new_empty((len(mask), self.channels, *mask.shape[1:]))
        for region in reversed(self._nested[1:]):  # from inside out, without the whole volume
            inside = mask == region.own
            for child in region.children:
                inside |= memberships[:, child].view(torch.bool)
            memberships[:, region.channel] = inside
        for channel, index in enumerate(self._extra, start=len(self.scheme.regions)):
            memberships[:, channel] = mask == index
        if self.partly_labelled:
            memberships.masked_fill_((mask == IGNORE).unsqueeze(1), IGNORE)
        return memberships

    def weights(self, class_weights: Sequence[float]) -> list[float]:
        """Balanced weights of the channels from those of the classes, all being 1/√voxels: ``1/√Σ w⁻²``."""
        channels = [*self.scheme.regions.values(), *((index,) for index in self._extra)]
        return [sum(class_weights[c] ** -2 for c in classes) ** -0.5 for classes in channels]

    def probabilities(self, logits: Float32[Tensor, "k z y x"]) -> Float32[Tensor, "_ z y x"]:
        """Class probabilities, the background first."""
        result = logits.new_empty((self.scheme.num_classes, *logits.shape[1:]))
        for slab, classes in _slabs(logits[: len(self.scheme.regions)], result):
            _tell_apart(slab.sigmoid(), self._nested, classes)
        return result

    def decide(self, logits: Float[Tensor, "b k z y x"]) -> UInt8[Tensor, "b z y x"]:
        """The class of each voxel, by `decode_regions`."""
        return torch.stack([decode_regions(self.probabilities(sample.float()), self.scheme) for sample in logits])


def class_probabilities(regions: Float32[Tensor, "r z y x"], scheme: LabelScheme) -> Float32[Tensor, "k z y x"]:
    """Class probabilities, the background first, from those of ``scheme.regions`` as `RegionTarget` has them.

    The regions' are scaled down where they are.

    Raises:
        ValueError: as `nested_regions`.
    """
    result, nested = regions.new_empty((scheme.num_classes, *regions.shape[1:])), nested_regions(scheme)
    for slab, classes in _slabs(regions, result):
        _tell_apart(slab, nested, classes)
    return result


def _tell_apart(
    inside: Float32[Tensor, "r z y x"], nested: Sequence["NestedRegion"], classes: Float32[Tensor, "k z y x"]
) -> None:
    """Scale regions down to what holds them, and write the probability of each class into ``classes``."""
    for region in nested:
        p = torch.ones_like(inside[0]) if region.channel is None else inside[region.channel]
        # One by one: a list as an index would be copied to a GPU, which then waits.
        if parts := [inside[child] for child in region.children]:
            total = reduce(torch.add, parts).clamp_min(torch.finfo(p.dtype).tiny)
            scale = (p / total).clamp_max_(1)
            for part in parts:
                part.mul_(scale)
            p = (p - reduce(torch.add, parts)).clamp_min_(0)
        classes[region.own] = p


def _slabs(*arrays: Float[Tensor, "_ z y x"]) -> Iterator[tuple[Tensor, ...]]:
    """As many planes of each array at a time as the device works best on, at least one."""
    step = max(1, chunk_size(arrays[0].device) // max(1, arrays[0][:, 0].numel()))
    return zip(*(array.split(step, 1) for array in arrays), strict=True)


Target = ClassTarget | RegionTarget


def make_target(
    name: str, scheme: LabelScheme, partly_labelled: bool = False, extra: Sequence[str] | None = None
) -> Target:
    """The target of the config keys ``target``, which is ``classes`` or ``regions``, and ``target_extra``."""
    if name not in ("classes", "regions"):
        raise ValueError(f"target must be classes (a softmax) or regions (sigmoids), got {name!r}")
    if name == "regions":
        return RegionTarget(scheme, partly_labelled, extra or ())
    if extra:
        raise ValueError(
            f"target_extra={list(extra)} needs target=regions; with target=classes each class has a channel"
        )
    return ClassTarget(scheme)


class NestedRegion(NamedTuple):
    """A region, or the whole volume, by what lies directly inside it."""

    channel: int | None  # its place in ``scheme.regions``; None for the whole volume
    classes: frozenset[int]
    own: int  # the class that is in it but in no region inside; the background for the whole volume
    children: tuple[int, ...]  # channels of the largest regions inside


def nested_regions(scheme: LabelScheme) -> list[NestedRegion]:
    """The whole volume and the regions of a scheme, each before those inside it.

    Raises:
        ValueError: regions that overlap without one inside the other, or that do not tell all classes apart.
    """
    regions = sorted(enumerate(map(frozenset, scheme.regions.values())), key=lambda region: -len(region[1]))
    nested = []
    for channel, classes in [(None, frozenset(range(scheme.num_classes))), *regions]:
        inner = [other for other in regions if other[1] < classes]
        children = [a for a in inner if not any(a[1] < b[1] for b in inner)]
        own = classes.difference(*(members for _, members in children))
        crossing = any(classes & other and not (classes <= other or other <= classes) for _, other in regions)
        if len(own) != 1 or crossing:
            listed = ", ".join(
                f"{region.upper()} = {' ∪ '.join(scheme.class_names[index] for index in members)}"
                for region, members in scheme.regions.items()
            )
            raise ValueError(
                "target=regions, and members of an ensemble with regions, need regions, nested or apart, that tell the "
                f"classes apart; data.labels=[{','.join(scheme.names)}] has {listed or 'none'}. Use target=classes, "
                "or labels like [netc,snfh,et]"
            )
        nested.append(NestedRegion(channel, classes, min(own), tuple(number for number, _ in children)))
    return nested


def decode_regions(probabilities: Float[Tensor, "k z y x"], scheme: LabelScheme) -> UInt8[Tensor, "z y x"]:
    """The class of each voxel from the probabilities of all: that of the innermost region with at least ½, else 0.

    The probability of a region is the sum over its classes, so that a voxel of TC is one of WT. Unlike the most
    probable class, it finds the tumour where several classes share what the background lacks.

    Raises:
        ValueError: as `nested_regions`.
    """
    labels = torch.zeros(probabilities.shape[1:], dtype=torch.uint8, device=probabilities.device)
    for region in nested_regions(scheme)[1:]:
        p = reduce(torch.add, (probabilities[index] for index in sorted(region.classes)))
        labels.masked_fill_(p >= 0.5, region.own)
    return labels
