"""What a case is on disk: files, patients, and what is wrong with it."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from brats_lightning.core.geometry import Grid
from brats_lightning.core.labels import IGNORE, LabelScheme, apply_label_map
from brats_lightning.data.nifti import UnreadableFile, Volume, read_volume
from brats_lightning.data.plausible import plausible
from brats_lightning.runtime.console import as_text, table_of

_NAMES = (
    re.compile(r"(?P<patient>.+-\d+|\d{5})-(?P<timepoint>\d{3})"),  # BraTS-MET-00110-000, or its number alone
    re.compile(r"(?P<patient>sub-[^_]+)_ses-(?P<timepoint>.+)"),  # of BIDS
)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a case; ``file`` is a modality, ``seg``, or ``-`` for the case as a whole.

    In the fault of a whole data set ``case`` is ``-``, and ``file`` a path.
    """

    case: str
    file: str
    found: str
    expected: str
    remedy: str


@dataclass(frozen=True)
class Case:
    """One examination of one patient: its files, none of which has been opened."""

    id: str  # the files' common name, ``BraTS-MET-00110-000``
    patient: str  # the id without the timepoint; the whole of an older name. Cases of one patient belong in one split
    timepoint: str | None  # ``"000"``, or None in an older name
    images: dict[str, Path]  # modality → file, of the modalities that exist
    mask: Path | None = None  # the reference segmentation, if there is one
    masks_from: Path | None = None  # the searched folder that has ``mask``, if that doesn't lie with the images
    others: tuple[Path, ...] = ()  # NIfTI files that may be the case's by folder or name, but follow no known naming
    volumes: dict[str, int] = field(default_factory=dict)  # modality → index along the 4th axis of a file of several
    part: str | None = None  # train, val or test, where the layout says so
    mask_name: str = ""  # of a mask of it in its layout, relative to a folder of masks
    faults: tuple[Problem, ...] = ()  # what its layout found wrong, such as two files for one modality

    @property
    def files(self) -> dict[str, Path]:
        """Every file by modality, the mask under ``"seg"``."""
        return self.images | ({"seg": self.mask} if self.mask else {})


class CaseError(ValueError):
    """Cases that cannot be used, all of them in one table."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        cases = len({problem.case for problem in problems} - {"-"})
        what = f"{cases} case{'s' * (cases != 1)}" if cases else "the data"
        super().__init__(f"{what} cannot be used\n{as_text(problem_table(problems))}")

    def __reduce__(self) -> tuple[type["CaseError"], tuple[tuple[Problem, ...]]]:
        return CaseError, (self.problems,)


def problem_table(problems: Iterable[Problem]) -> Table:
    """The rich table of a report."""
    return table_of(("case", "file", "found", "expected", "what to do"), (asdict(each).values() for each in problems))


def patient_and_timepoint(case: str) -> tuple[str, str | None]:
    """The two parts of an id such as ``BraTS-MET-00110-000`` or ``sub-X_ses-Y``; any other is a patient's alone."""
    match = next(filter(None, (name.fullmatch(case) for name in _NAMES)), None)
    return (match["patient"], match["timepoint"]) if match else (case, None)


def surplus(case: str, file: str, path: Path, first: Path) -> Problem:
    """The fault of a file that claims to be what another one is."""
    found = f"a second file of this case: {path} (the first is {first})"
    return Problem(case, file, found, "one file of each kind", "rename or remove one of them")


def masks_apart(cases: Iterable[Case]) -> str:
    """How many masks come from which folder other than that of their images, in words; "" if none does."""
    folders: dict[Path, list[Path]] = {}
    for case in cases:
        if case.mask and case.masks_from:
            folders.setdefault(case.masks_from, []).append(case.mask.parent)
    counted = ", ".join(f"{len(places)} from {os.path.commonpath(places)}" for places in folders.values())
    return f"masks: {counted}" if counted else ""


def without_mask(cases: Iterable[Case]) -> str:
    """Which cases have no mask, and which files may be theirs, in words; "" if all have one."""
    bare = [case for case in cases if case.mask is None]
    shown = [case.id + (f" ({examples(case.others)} may be it)" if case.others else "") for case in bare[:10]]
    return f"{len(bare)} without mask: {', '.join(shown)}{', …' * (len(bare) > 10)}" if bare else ""


def used_modalities(case: Case, modalities: Sequence[str], optional: Sequence[str] = ()) -> list[str]:
    """The modalities that are used of a case: the optional ones only if it has them, and then they must be sound."""
    return [name for name in modalities if name in case.images or name not in optional]


def check_files(case: Case, modalities: Sequence[str], need_mask: bool) -> list[Problem]:
    """Faults that the names alone show: files missing, ambiguous, or with names that no output can carry."""
    problems = []
    may_be, rename = (f"; {examples(case.others)} may be it", "rename that file, ") if case.others else ("", "")
    for modality in modalities:
        if modality not in case.images:
            found = f"missing (there: {', '.join(case.images) or 'none'}){may_be}"
            remedy = f"{rename}add the file, or leave {modality} out of data.modalities"
            problems.append(Problem(case.id, modality, found, "an image of this modality", remedy))
    if need_mask and case.mask is None:
        remedy = f"{rename}name its folder in data.masks, add the file or leave the case out"
        problems.append(Problem(case.id, "seg", f"missing{may_be}", "a reference mask", remedy))
    problems += required(case.faults, modalities, need_mask)
    if set("=,/") & set(case.id):
        found, remedy = "'=', ',' or '/' in the name", "rename, or link by another name"
        problems.append(Problem(case.id, "-", found, "none of them", remedy))
    return problems


@dataclass
class Examination:
    """The result of reading a case: its sound volumes and the problems of the others."""

    images: dict[str, Volume] = field(default_factory=dict)  # by modality
    mask: Volume | None = None  # uint8 class indices
    problems: list[Problem] = field(default_factory=list)  # of the files that are left out
    distance: float = 0.0  # the largest in mm between a voxel's position in a sound file and in most of the case

    @property
    def remarks(self) -> list[str]:
        """What is unusual about sound images."""
        return [f"{modality}: {volume.remark}" for modality, volume in self.images.items() if volume.remark]


def examine(case: Case, scheme: LabelScheme, label_map: Mapping[int, int] | None, tolerance: float) -> Examination:
    """Read every file of a case once and judge it.

    Args:
        case: what to read.
        scheme: classes the mask may have after ``label_map``.
        label_map: old label → class index, or `IGNORE`.
        tolerance: largest distance in mm between the positions two files of the case give to the same voxel. Within it
            the voxels are taken as aligned.
    """
    result = Examination()

    def problem(file: str, found: str, expected: str, remedy: str) -> None:
        result.problems.append(Problem(case.id, file, found, expected, remedy))

    volumes: dict[str, Volume] = {}
    for file, path in case.files.items():
        try:
            if file == "seg":
                volumes[file] = read_mask(path, scheme, label_map)
            else:
                volumes[file] = read_volume(path, case.volumes.get(file))
        except UnreadableFile as error:
            problem(file, error.found, error.expected, error.remedy)

    volumes, result.distance = _aligned(volumes, tolerance, problem)
    for file, volume in volumes.items():
        if file == "seg":
            result.mask = volume
        elif volume.values.dtype.kind == "f" and not np.isfinite(volume.values).all():
            bad = int((~np.isfinite(volume.values)).sum())
            problem(file, f"{bad} voxels are NaN or infinite", "finite intensities", "set them to 0 or leave it out")
        else:
            result.images[file] = plausible(volume)
    if result.images and not any(volume.values.size for volume in result.images.values()):
        problem("-", "all intensities are 0", "a brain", "leave the case out")
        result.images.clear()
    return result


def required(problems: Iterable[Problem], modalities: Iterable[str], need_mask: bool) -> list[Problem]:
    """The problems of files that are used: a broken image of another modality does not exclude the case."""
    used = {"-", *modalities, *(("seg",) if need_mask else ())}
    return [problem for problem in problems if problem.file in used]


def examples(paths: Sequence[Path]) -> str:
    """The first three of some files, for a message."""
    return ", ".join(map(str, paths[:3])) + ", …" * (len(paths) > 3)


def _aligned(
    volumes: Mapping[str, Volume], tolerance: float, problem: Callable[[str, str, str, str], None]
) -> tuple[dict[str, Volume], float]:
    """The files that lie where most of the case does, on one grid, and their largest distance in mm from it.

    Within the tolerance, voxels are aligned by their indices, whatever the headers say of axes; those of a file that
    stores the same places in another order, by their places. Other files are reported.
    """
    if not volumes:
        return {}, 0.0

    def on(volume: Volume, grid: Grid) -> tuple[Volume, float] | None:
        """The volume on a grid and its distance from it, if they agree."""
        if volume.grid.coincides(grid) and (distance := volume.grid.in_lps.distance(grid.in_lps)) <= tolerance:
            return replace(volume, grid=grid), distance
        if volume.grid.shape == grid.shape and (distance := volume.grid.distance(grid)) <= tolerance:
            return volume.on(grid), distance
        return None

    # Most files decide, then the canonical order, so that one bad header doesn't condemn the others.
    common = max(volumes, key=lambda file: sum(on(other, volumes[file].grid) is not None for other in volumes.values()))
    grid = volumes[common].grid
    aligned, furthest = {}, 0.0
    for file, volume in volumes.items():
        if placed := on(volume, grid):
            aligned[file], distance = placed
            furthest = max(furthest, distance)
        elif difference := volume.grid.mismatch(grid, tolerance, common):
            moved = volume.grid.shape == grid.shape
            remedy = "correct the header, or raise data.affine_tolerance if the voxels match"
            problem(file, *difference, remedy if moved else "register it to the others")
    return aligned, furthest


def read_mask(path: Path, scheme: LabelScheme, label_map: Mapping[int, int] | None) -> Volume:
    """A mask as uint8 class indices, whatever type they are stored in; voxels of unknown class are `IGNORE`.

    Raises:
        UnreadableFile: as `read_volume`, or labels that ``label_map`` makes neither the scheme's nor `IGNORE`.
    """
    volume = read_volume(path)
    values = volume.values
    expected = ", ".join(f"{i} {name}" for i, name in enumerate(scheme.class_names))
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = np.rint(values)  # 3 comes back from a file with a scaled header as 2.9999998
            odd = values[~(np.abs(whole - values) < 1e-3)]
        if odd.size:
            found = f"labels that are not whole numbers, e.g. {float(odd.flat[0]):g}"
            raise UnreadableFile(found, expected, "resample masks with nearest neighbour")
        values = whole
    highest = IGNORE if IGNORE in (label_map or {}) else IGNORE - 1  # in a file, too, it must be declared
    wild = values[(values < 0) | (values > highest)]
    known = np.where((values < 0) | (values > highest), 0, values) if wild.size else values
    mask = apply_label_map(known.astype(np.int64) if known.dtype.kind == "f" else known, label_map)
    counts = np.bincount(mask.reshape(-1), minlength=256).tolist()
    unknown = {label: n for label, n in enumerate(counts) if n and scheme.num_classes <= label < IGNORE}
    unknown |= {int(v): int(n) for v, n in zip(*np.unique(wild, return_counts=True), strict=True)}
    if unknown:
        found = ", ".join(f"{n} voxels of label {v}" for v, n in list(unknown.items())[:10])
        remedy = "map it, e.g. 'data.label_map={4:3}', add the class to data.labels, or correct the mask; if it marks "
        remedy += "what nobody has labelled, set data.ignore_label"
        raise UnreadableFile(found, expected, remedy)
    return volume.trimmed(mask)  # smaller than the file's, where its labels were scaled or mapped to 0
