"""What a case is on disk: discovery, patients, and what is wrong with it."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from brats_lightning.core.labels import IGNORE, MODALITIES, LabelScheme, apply_label_map
from brats_lightning.data.folders import Found, likely_files, masks_in, nifti_files
from brats_lightning.data.nifti import UnreadableFile, Volume, read_volume
from brats_lightning.runtime.console import as_text, table_of

_TIMEPOINT = re.compile(r"(?P<patient>.+-\d+)-(?P<timepoint>\d{3})")


@dataclass(frozen=True)
class Case:
    """One examination of one patient: its files, none of which has been opened."""

    id: str  # the files' common name, ``BraTS-MET-00110-000``
    patient: str  # the id without the timepoint; the whole of an older name. Cases of one patient belong in one split
    timepoint: str | None  # ``"000"``, or None in an older name
    images: dict[str, Path]  # modality → file, of the modalities that exist
    mask: Path | None = None  # the reference segmentation, if there is one
    clashes: tuple[Path, ...] = ()  # further files that claim to be one of those above
    masks_from: Path | None = None  # the searched folder that has ``mask``, if that doesn't lie with the images
    others: tuple[Path, ...] = ()  # NIfTI files that may be the case's by folder or name, but follow no known naming

    @property
    def files(self) -> dict[str, Path]:
        """Every file by modality, the mask under ``"seg"``."""
        return self.images | ({"seg": self.mask} if self.mask else {})


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a case; ``file`` is a modality, ``seg``, or ``-`` for the case as a whole."""

    case: str
    file: str
    found: str
    expected: str
    remedy: str


class CaseError(ValueError):
    """Cases that cannot be used, all of them in one table."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        cases = len({problem.case for problem in problems})
        super().__init__(f"{cases} case{'s' * (cases != 1)} cannot be used\n{as_text(problem_table(problems))}")

    def __reduce__(self) -> tuple[type["CaseError"], tuple[tuple[Problem, ...]]]:
        return CaseError, (self.problems,)


def problem_table(problems: Iterable[Problem]) -> Table:
    """The rich table of a report."""
    return table_of(("case", "file", "found", "expected", "what to do"), (asdict(each).values() for each in problems))


def find_cases(
    root: Path | str, masks: Path | str | Sequence[Path | str] | None = None, setting: str = "data.root"
) -> list[Case]:
    """All cases below a folder, however nested, sorted by id. Symbolic links are followed; no file is opened.

    Images of a case lie in one folder; those of another folder become its ``clashes``, which `check_files` reports. A
    mask lies with them, or, if there is none, anywhere below ``root`` under the name ``<case>-seg.nii.gz``,
    ``<case>_seg.nii.gz`` or ``<case>_final_seg.nii.gz``.

    Args:
        root: to be searched.
        masks: one or several folders whose masks, named so or ``<case>.nii.gz``, replace those below ``root``; the last
            that has a case's mask wins.
        setting: that names ``root``, for messages.

    Raises:
        FileNotFoundError: a folder doesn't exist.
        ValueError: there is no case in ``root``, or no mask of one in a folder of ``masks``.
    """
    root = Path(root).expanduser()
    layout = "expected nested folders with <case>-t1n.nii.gz, -t1c, -t2w, -t2f, -seg (or the older <case>_t1, _t1ce, …)"
    if not os.path.isdir(root):  # noqa: PTH112  # Path's raises where a folder above may not be read
        raise FileNotFoundError(f"{setting}={root} is not a folder; {layout}")
    folders = [Path(folder).expanduser() for folder in ([masks] if isinstance(masks, str | Path) else masks or ())]
    images: dict[str, list[Found]] = {}
    own: list[Found] = []
    unknown: list[Found] = []
    for file in nifti_files(root):
        if image := file.image:
            images.setdefault(image[0], []).append(file)
        elif not file.mask_of:
            unknown.append(file)
        elif not any(file.path.absolute().is_relative_to(folder.absolute()) for folder in folders):
            own.append(file)
    found: dict[str, list[Found]] = {}
    for file in own:
        found.setdefault(next((case for case in file.mask_of if case in images), file.mask_of[-1]), []).append(file)
    names = sorted(images.keys() | found)
    if not names:
        there = f" (its NIfTI files have other names: {_listed([file.path for file in unknown])})" if unknown else ""
        raise ValueError(f"no case in {setting}={root}{there}; {layout}")
    for folder in folders:
        found |= masks_in(folder, names)
    likely = likely_files(images, unknown)
    return [_case(name, images.get(name, []), found.get(name, []), tuple(likely.get(name, ()))) for name in names]


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
    shown = [case.id + (f" ({_listed(case.others)} may be it)" if case.others else "") for case in bare[:10]]
    return f"{len(bare)} without mask: {', '.join(shown)}{', …' * (len(bare) > 10)}" if bare else ""


def used_modalities(case: Case, modalities: Sequence[str], optional: Sequence[str] = ()) -> list[str]:
    """Those of ``modalities`` that are used of a case: the optional ones only if it has them, and then they must be sound."""
    return [name for name in modalities if name in case.images or name not in optional]


def check_files(case: Case, modalities: Sequence[str], need_mask: bool) -> list[Problem]:
    """Faults that the names alone show: files missing, ambiguous, or with names that no output can carry."""
    problems = []
    may_be, rename = (f"; {_listed(case.others)} may be it", "rename that file, ") if case.others else ("", "")
    for modality in modalities:
        if modality not in case.images:
            found = f"missing (there: {', '.join(case.images) or 'none'}){may_be}"
            remedy = f"{rename}add the file, or leave {modality} out of data.modalities"
            problems.append(Problem(case.id, modality, found, "an image of this modality", remedy))
    if need_mask and case.mask is None:
        remedy = f"{rename}name its folder in data.masks, add the file or leave the case out"
        problems.append(Problem(case.id, "seg", f"missing{may_be}", "a reference mask", remedy))
    for path in case.clashes:
        first = next(iter(case.files.values())).parent
        found = f"a second file of this case: {path} (the first are in {first})"
        problems.append(Problem(case.id, "-", found, "one folder for each case", "rename or remove one of them"))
    if set("=,") & set(case.id):
        problems.append(Problem(case.id, "-", "'=' or ',' in the name", "neither", "rename, or link by another name"))
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
            volumes[file] = read_mask(path, scheme, label_map) if file == "seg" else read_volume(path)
        except UnreadableFile as error:
            problem(file, error.found, error.expected, error.remedy)

    misplaced, result.distance = _misplaced(volumes, tolerance, problem)
    for file in misplaced:
        del volumes[file]
    for file, volume in volumes.items():
        if file == "seg":
            result.mask = volume
        elif volume.values.dtype.kind == "f" and not np.isfinite(volume.values).all():
            bad = int((~np.isfinite(volume.values)).sum())
            problem(file, f"{bad} voxels are NaN or infinite", "finite intensities", "set them to 0 or leave it out")
        else:
            result.images[file] = volume
    if result.images and not any(volume.values.size for volume in result.images.values()):
        problem("-", "all intensities are 0", "a brain", "leave the case out")
        result.images.clear()
    return result


def required(problems: Iterable[Problem], modalities: Iterable[str], need_mask: bool) -> list[Problem]:
    """The problems of files that are used: a broken image of another modality does not exclude the case."""
    used = {"-", *modalities, *(("seg",) if need_mask else ())}
    return [problem for problem in problems if problem.file in used]


def _case(name: str, images: Sequence[Found], masks: Sequence[Found], others: tuple[Path, ...]) -> Case:
    files: dict[str, Path] = {}
    clashes = []
    older = False
    place = (images or masks)[0].folder
    for file in images:
        _, modality, old = file.image or ("", "", False)
        older |= old
        if modality in files or file.folder != place:
            clashes.append(file.path)
        else:
            files[modality] = file.path
    masks = sorted(masks, key=lambda mask: mask.folder != place)  # those that lie with the images first
    timed = None if older else _TIMEPOINT.fullmatch(name)
    return Case(
        id=name,
        patient=timed["patient"] if timed else name,
        timepoint=timed["timepoint"] if timed else None,
        images={modality: files[modality] for modality in MODALITIES if modality in files},
        mask=masks[0].path if masks else None,
        clashes=tuple(sorted([*clashes, *(mask.path for mask in masks[1:])])),
        masks_from=masks[0].root if masks and masks[0].folder != place else None,
        others=others,
    )


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths[:3])) + ", …" * (len(paths) > 3)


def _misplaced(
    volumes: Mapping[str, Volume], tolerance: float, problem: Callable[[str, str, str, str], None]
) -> tuple[list[str], float]:
    """Report and name the files that lie elsewhere than most of the case; and the others' largest distance in mm."""
    if not volumes:
        return [], 0.0

    def agree(a: Volume, b: Volume) -> bool:
        return a.grid.shape == b.grid.shape and a.grid.distance(b.grid) <= tolerance

    # Most files decide, then the canonical order, so that one bad header doesn't condemn the others.
    common = max(volumes, key=lambda file: sum(agree(volumes[file], other) for other in volumes.values()))
    grid = volumes[common].grid
    misplaced, furthest = [], 0.0
    for file, volume in volumes.items():
        if difference := volume.grid.mismatch(grid, tolerance, common):
            moved = volume.grid.shape == grid.shape
            remedy = "correct the header, or raise data.affine_tolerance if the voxels match"
            problem(file, *difference, remedy if moved else "register it to the others")
            misplaced.append(file)
        else:
            furthest = max(furthest, volume.grid.distance(grid))
    return misplaced, furthest


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
        values = whole.astype(np.int64)
    highest = IGNORE if IGNORE in (label_map or {}) else IGNORE - 1  # in a file, too, it must be declared
    wild = values[(values < 0) | (values > highest)]
    mask = apply_label_map(np.where((values < 0) | (values > highest), 0, values) if wild.size else values, label_map)
    counts = np.bincount(mask.reshape(-1), minlength=256).tolist()
    unknown = {label: n for label, n in enumerate(counts) if n and scheme.num_classes <= label < IGNORE}
    unknown |= {int(v): int(n) for v, n in zip(*np.unique(wild, return_counts=True), strict=True)}
    if unknown:
        found = ", ".join(f"{n} voxels of label {v}" for v, n in list(unknown.items())[:10])
        remedy = "map it, e.g. 'data.label_map={4:3}', add the class to data.labels, or correct the mask"
        raise UnreadableFile(found, expected, remedy)
    return volume.trimmed(mask)  # smaller than the file's, where its labels were scaled or mapped to 0


def find_inputs(folders: str | Path | Sequence[str]) -> list[Case]:
    """The cases below one or several folders, sorted by id.

    Raises:
        FileNotFoundError: a folder doesn't exist.
        ValueError: a folder holds no case, or two folders hold cases of one name.
    """
    cases: dict[str, Case] = {}
    for folder in [folders] if isinstance(folders, str | Path) else folders:
        for case in find_cases(folder, setting="input"):
            if case.id in cases:
                raise ValueError(f"input: the case {case.id} is in two of the folders; leave one of them out")
            cases[case.id] = case
    return [cases[name] for name in sorted(cases)]
