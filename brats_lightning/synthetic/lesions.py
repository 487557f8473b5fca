"""The metastases of a phantom: how many, how large, where, and of what shape."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from scipy import ndimage

from brats_lightning.core.components import NEIGHBOURS_26, components_at, label_components
from brats_lightning.core.geometry import widened
from brats_lightning.core.labels import LabelScheme
from brats_lightning.synthetic.anatomy import GREY_MM, Brain, Frame, ramp, smooth_field
from brats_lightning.synthetic.case_set import generator

SCHEME = LabelScheme(("netc", "snfh", "et", "rc"))
NETC, SNFH, ET, RC = (SCHEME.index(name) for name in SCHEME.names)

# BraTS-METS 2025 training data, 26-connected components of ET: of 1,296 cases 46 have none and 274 have one; 10,119
# in all. The count of the cases with several is log-linear between these quantiles; the real tail (to 393) is cut.
FIELD_MEAN = 10119 / 1296
_NONE, _ONE = 46 / 1296, (46 + 274) / 1296
_SEVERAL = ((0.0, 0.5, 0.9, 1.0), (1.5, 6.0, 20.0, 60.0))
# Volumes in mm³: 41 % under 27, median 39.7, 19 % over 275; the upper end gives the mean of 569.
_VOLUMES = ((0.0, 0.41, 0.5, 0.81, 1.0), (2.0, 27.0, 39.7, 275.0, 10300.0))
# Each case's first lesion is one of the larger (what brought the patient in); the others make up for it.
_FIRST_FROM = 0.6
GOLDEN = 0.6180339887498949  # steps of this fraction of a circle fill it evenly
_COUNTS_START = 0.6275  # from here on the first eight cases or more have the field's mean count, ± 15 %

GAP_VOXELS = 3  # between lesions: more than any of the challenge's protocols bridges
LARGEST_FRACTION = 0.025  # of the brain, for one lesion
STRONGEST = 1.3  # enhancement, as in `Metastasis`


def _log_quantile(u: float, table: tuple[tuple[float, ...], tuple[float, ...]]) -> float:
    return float(np.exp(np.interp(u, table[0], np.log(table[1]))))


def lesion_count(u: float, mean: float | None) -> int:
    """Lesions of the case at quantile ``u``: the field's distribution, or 1 … 2·mean − 1 evenly."""
    if mean is not None:
        return round(1 + u * (2 * mean - 2))
    if u < _ONE:
        return int(u >= _NONE)
    return max(2, round(_log_quantile((u - _ONE) / (1 - _ONE), _SEVERAL)))


def lesion_volumes(seed: int, case: int, mean: float | None) -> list[float]:
    """ET volumes in mm³ of a case's lesions, largest first.

    Counts and volumes are not drawn but taken at the points of low-discrepancy sequences that run over all cases and
    all lesions, so that even a few dozen cases have the distribution asked for; no case depends on those after it.
    """
    shift = generator(seed, 2).random(2)
    counts = [lesion_count((_COUNTS_START + GOLDEN * k) % 1, mean) for k in range(case + 1)]
    before, count = sum(max(n - 1, 0) for n in counts[:case]), counts[case]
    if not count:
        return []
    first = _FIRST_FROM + (1 - _FIRST_FROM) * ((shift[0] + 2**0.5 * case) % 1)
    first_fraction = (1 - _NONE) / FIELD_MEAN if mean is None else 1 / mean
    knee = min(1.0, _FIRST_FROM / max(1 - first_fraction, 1e-9))
    others = (shift[1] + GOLDEN * np.arange(before, before + count - 1)) % 1
    quantiles = [first, *np.interp(others, (0, knee, 1), (0, _FIRST_FROM, 1))]
    return sorted((_log_quantile(u, _VOLUMES) for u in quantiles), reverse=True)


@dataclass(frozen=True)
class Metastasis:
    """One lesion in its box: coverages that fall softly at the edges, and its contrast."""

    box: tuple[slice, ...]
    whole: Float32[np.ndarray, "z y x"]  # ET and NETC
    core: Float32[np.ndarray, "z y x"]  # NETC
    halo: Float32[np.ndarray, "z y x"]  # SNFH, ET and NETC
    enhancement: float  # of T1c over white matter, where white matter is 0.82
    density: float  # how far solid tumour differs from white matter before contrast, as a fraction
    oedema: float  # how far SNFH differs from the tissue it spreads in, as a fraction
    core_t2: float  # the core's brightness in T2w, from 0 as solid tissue to 1 as fluid


def place_lesions(
    rng: np.random.Generator, sites_rng: np.random.Generator, brain: Brain, volumes: list[float], cavity: bool
) -> tuple[UInt8[np.ndarray, "z y x"], list[Metastasis], Float32[np.ndarray, "z y x"]]:
    """Labels, the lesions for painting, and the coverage of the resection cavity.

    Args:
        rng: shapes and contrasts.
        sites_rng: where: the same for all timepoints of a patient, so lesions stay where they were.
        brain: where they lie.
        volumes: ET volumes in mm³, largest first, capped at ``LARGEST_FRACTION`` of the brain; what finds no room is
            left out (brains of a few centimetres only).
        cavity: whether the case has a resection cavity (label 4).
    """
    frame = brain.frame
    labels = np.zeros(frame.shape, np.uint8)
    free = brain.room.copy()
    cavity_coverage = np.zeros(frame.shape, np.float32)
    brain_mm3 = float(brain.inside.sum()) * frame.voxel_mm**3
    tissue = brain.room & (brain.layers["csf"] < 0.3)
    junction = np.flatnonzero(tissue & (np.abs(brain.pia - GREY_MM * frame.fine_scale) < 1.5 * frame.fine_scale))
    anywhere = np.flatnonzero(tissue)
    if not len(anywhere):
        return labels, [], cavity_coverage
    sites = sites_rng.choice(anywhere, 2000)
    if len(junction):  # metastases lodge where the arterioles narrow, between grey and white matter
        sites = np.where(sites_rng.random(2000) < 0.85, sites_rng.choice(junction, 2000), sites)

    if cavity:
        volume = min(rng.uniform(4000, 20000), 2 * LARGEST_FRACTION * brain_mm3)
        for site in sites_rng.choice(sites, 50):
            grown = _grow(rng, brain, free, int(site), round(volume / frame.voxel_mm**3))
            if grown:
                box, _, whole = grown
                labels[box][whole >= 0.5] = RC
                cavity_coverage[box] = whole
                _keep_off(free, labels[box] == RC, box)
                break

    lesions = []
    for volume in volumes:
        volume = min(volume, LARGEST_FRACTION * brain_mm3)
        for site in sites:
            lesion = _lesion(rng, brain, free, labels, int(site), volume)
            if lesion:
                lesions.append(lesion)
                break
    return labels, lesions, cavity_coverage


def _lesion(
    rng: np.random.Generator, brain: Brain, free: np.ndarray, labels: np.ndarray, site: int, volume: float
) -> Metastasis | None:
    """A lesion of ``volume`` mm³ of ET grown at a site and written into ``labels``; None if there is no room."""
    frame = brain.frame
    if not free.flat[site]:
        return None
    # A tumour outgrows its blood supply: the larger, the more of it is a core that no longer enhances.
    necrosis = np.clip(np.log(volume / 100) / np.log(30), 0, 1) * rng.uniform(0.1, 0.6) if rng.random() < 0.85 else 0.0
    enhancing = max(2, round(volume / frame.voxel_mm**3))
    dead = round(enhancing * necrosis / (1 - necrosis))
    halo_mm = _halo_width(rng, volume)
    grown = _grow(rng, brain, free, site, enhancing + dead, margin=halo_mm)
    if grown is None:
        return None
    box, inner, whole = grown
    mask = whole >= 0.5
    core = np.zeros_like(whole)
    if dead:
        # The deepest voxels, so that a rim of ET stays all around, here thicker and there thinner.
        deep = ndimage.distance_transform_edt(mask, sampling=frame.spacing)
        deep *= np.exp(0.35 * smooth_field(rng, frame, 12.0, mask.shape))
        cut = np.partition(deep[mask], -dead)[-dead]
        core = (ramp((deep - cut) / frame.voxel_mm) * mask).astype(np.float32)
    et = mask & (core < 0.5)
    if label_components(et)[1] != 1:
        return None

    view = labels[box]
    halo = np.zeros_like(whole)
    if halo_mm:
        # Oedema spreads in white matter and stops at fluid.
        reach = inner + np.float32(6.0) * (brain.pia[box] < GREY_MM * frame.fine_scale)
        reach -= np.float32(0.35 * halo_mm) * smooth_field(rng, frame, 12.0, mask.shape)
        solid = brain.room[box] & (brain.layers["csf"][box] < 0.5) & (view != RC)
        halo = np.maximum(ramp((halo_mm - reach) / frame.voxel_mm) * solid, whole).astype(np.float32)
        halo *= components_at(halo > 0, mask)
    view[(halo >= 0.5) & (view == 0)] = SNFH
    view[mask] = ET
    view[mask & ~et] = NETC
    _keep_off(free, mask, box)
    # What is small leaks little contrast medium and may show in T1c alone: its signal falls to vessels' and noise's.
    small = np.exp(-volume / 60)
    enhancement = np.clip(0.7 * np.exp(0.4 * rng.standard_normal()), 0.25, STRONGEST) * (1 - 0.5 * small)
    density = rng.uniform(0.5, 1.0) * (1 - small * rng.uniform(0.0, 0.9))
    oedema = rng.uniform(0.3, 0.9)
    return Metastasis(
        box, whole, core, halo, float(enhancement), float(density), float(oedema), float(rng.uniform(0.2, 1))
    )


def _halo_width(rng: np.random.Generator, volume: float) -> float:
    """Width of the oedema in mm: loosely with the lesion's radius, none around many of the small ones."""
    if rng.random() < (0.6 if volume < 27 else 0.35 if volume < 275 else 0.12):
        return 0.0
    radius = (0.75 * volume / np.pi) ** (1 / 3)
    return float(rng.uniform(1.5, 4.0) + radius * rng.uniform(0.2, 1.2))


def _grow(
    rng: np.random.Generator, brain: Brain, free: np.ndarray, site: int, voxels: int, margin: float = 0.0
) -> tuple[tuple[slice, ...], np.ndarray, np.ndarray] | None:
    """An irregular ellipsoid of exactly ``voxels`` free voxels around a site.

    Returns:
        Its box with ``margin`` mm around, the distance beyond its surface in mm (negative inside) and its coverage;
        None if the free voxels around the site do not suffice or do not hang together.
    """
    frame: Frame = brain.frame
    radius = (0.75 * voxels * frame.voxel_mm**3 / np.pi) ** (1 / 3)
    centre = (np.asarray(np.unravel_index(site, frame.shape)) - (np.asarray(frame.shape) - 1) / 2) * frame.spacing
    centre = centre + rng.uniform(-0.5, 0.5, 3) * frame.spacing
    reach = 1.6 * radius + 1.5 * margin + 2 * max(frame.spacing)
    box = frame.box(centre - reach, centre + reach)
    room = free[box]
    if room.sum() < voxels:
        return None
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretch = rotation * rng.uniform(0.8, 1.25, (3, 1))
    offset = [grid - np.float32(c) for grid, c in zip(frame.axes(box), centre, strict=True)]
    distance = np.sqrt(sum(sum(np.float32(w) * d for w, d in zip(row, offset, strict=True)) ** 2 for row in stretch))
    for amplitude, wavelength in ((0.15, 2.0 * radius), (0.07, 0.8 * radius)):
        distance *= np.exp(np.float32(amplitude) * smooth_field(rng, frame, max(wavelength, 4.0), distance.shape))
    surface = np.partition(distance[room], voxels - 1)[voxels - 1]
    if surface > 1.2 * radius + 0.5:  # wrapped around what it may not enter
        return None
    inner = (distance - surface).astype(np.float32)
    whole = ramp(-inner / frame.voxel_mm + 1e-3).astype(np.float32) * room
    if label_components(whole >= 0.5)[1] != 1:  # the free voxels lie apart
        return None
    return box, inner, whole


def _keep_off(free: np.ndarray, mask: np.ndarray, box: tuple[slice, ...]) -> None:
    """Bars later lesions from a mask and ``GAP_VOXELS`` around it."""
    wide, inner = widened(box, [GAP_VOXELS] * 3)
    region = np.zeros(free[wide].shape, bool)
    region[inner] = mask
    free[wide] &= ~ndimage.binary_dilation(region, NEIGHBOURS_26, iterations=GAP_VOXELS)
