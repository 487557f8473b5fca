"""What a case is on disk: discovery, patients, and what is wrong with it."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from brats_lightning.data.nifti import UnreadableFile, Volume, read_volume
from brats_lightning.labels import BRATS_METS, MODALITIES, OLDER_NAMES, LabelScheme, apply_label_map

# <case>-t1n.nii.gz since BraTS 2023, <case>_t1.nii.gz before.
_FILE = re.compile(r"(?P<case>[^.].*?)(?:-(?P<new>t1n|t1c|t2w|t2f|seg)|_(?P<old>t1|t1ce|t2|flair|seg))\.nii(?:\.gz)?")
_TIMEPOINT = re.compile(r"(?P<patient>.+-\d+)-(?P<timepoint>\d{3})")


@dataclass(frozen=True)
class Case:
    """One examination of one patient: its files, none of which has been opened.

    Attributes:
        id: the files' common name, ``BraTS-MET-00110-000``.
        patient: the id without the timepoint; the whole of an older name. Cases of one patient belong in one split.
        timepoint: ``"000"``, or None in an older name.
        images: modality → file, of the modalities that exist.
        mask: the reference segmentation, if there is one.
        clashes: further files that claim to be one of those above.
    """

    id: str
    patient: str
    timepoint: str | None
    images: dict[str, Path]
    mask: Path | None = None
    clashes: tuple[Path, ...] = ()

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

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


class CaseError(ValueError):
    """Cases that cannot be used, all of them in one table."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        console = Console(width=160, no_color=True)
        with console.capture() as capture:
            console.print(problem_table(problems))
        cases = len({problem.case for problem in problems})
        super().__init__(f"{cases} case{'s' * (cases != 1)} cannot be used\n{capture.get()}")

    def __reduce__(self) -> tuple[type["CaseError"], tuple[tuple[Problem, ...]]]:
        return CaseError, (self.problems,)


def problem_table(problems: Iterable[Problem]) -> Table:
    """The rich table of a report."""
    table = Table("case", "file", "found", "expected", "what to do", show_lines=False)
    for problem in problems:
        table.add_row(*map(escape, asdict(problem).values()))
    return table


def find_cases(root: Path | str) -> list[Case]:
    """All cases below a folder, however nested, sorted by id. Symbolic links are followed; no file is opened.

    Files of a case lie in one folder; those of another folder become its ``clashes``, which `check_files` reports.

    Raises:
        FileNotFoundError: the folder doesn't exist.
        ValueError: there is no case in it.
    """
    root = Path(root).expanduser()
    layout = "expected nested folders with <case>-t1n.nii.gz, -t1c, -t2w, -t2f, -seg (or the older <case>_t1, _t1ce, …)"
    if not root.is_dir():
        raise FileNotFoundError(f"the data root {root} is no folder; {layout}; set data.root=DIR")
    found: dict[str, dict[str, Path]] = {}
    clashes: dict[str, list[Path]] = {}
    older: set[str] = set()
    for folder, name in _walk(root):
        if not (match := _FILE.fullmatch(name)):
            continue
        case, path = match["case"], Path(folder, name)
        kind = match["new"] or OLDER_NAMES.get(match["old"], match["old"])
        if match["old"]:
            older.add(case)
        files = found.setdefault(case, {})
        home = next(iter(files.values()), path).parent
        if kind in files or path.parent != home:
            clashes.setdefault(case, []).append(path)
        else:
            files[kind] = path
    if not found:
        raise ValueError(f"no case in {root}; {layout}; set data.root=DIR")
    return [_case(case, found[case], case in older, clashes.get(case, [])) for case in sorted(found)]


def check_files(case: Case, modalities: Sequence[str], need_mask: bool) -> list[Problem]:
    """What the names alone show: files missing, ambiguous, or named so that no output could be named after them."""
    problems = []
    for modality in modalities:
        if modality not in case.images:
            have = ", ".join(case.images) or "none"
            remedy = f"add the file, or leave {modality} out of data.modalities"
            problems.append(Problem(case.id, modality, f"missing (there: {have})", "an image of this modality", remedy))
    if need_mask and case.mask is None:
        problems.append(Problem(case.id, "seg", "missing", "a reference mask", "add the file or leave the case out"))
    for path in case.clashes:
        first = next(iter(case.files.values())).parent
        found = f"a second file of this case: {path} (the first are in {first})"
        problems.append(Problem(case.id, "-", found, "one folder for each case", "rename or remove one of them"))
    if set("=,") & set(case.id):
        problems.append(Problem(case.id, "-", "'=' or ',' in the name", "neither", "rename, or link by another name"))
    return problems


@dataclass
class Examination:
    """What reading a case gave: the sound volumes and the problems of the others."""

    images: dict[str, Volume] = field(default_factory=dict)
    mask: Volume | None = None  # uint8 class indices
    problems: list[Problem] = field(default_factory=list)


def examine(case: Case, scheme: LabelScheme, label_map: Mapping[int, int] | None, tolerance: float) -> Examination:
    """Read every file of a case once and judge it.

    Args:
        case: what to read.
        scheme: classes the mask may have after ``label_map``.
        label_map: old label → class index.
        tolerance: largest distance in mm between the positions two files of the case give to the same voxel. Within it
            the voxels are taken as aligned.
    """
    result = Examination()

    def problem(file: str, found: str, expected: str, remedy: str) -> None:
        result.problems.append(Problem(case.id, file, found, expected, remedy))

    volumes: dict[str, Volume] = {}
    for file, path in case.files.items():
        try:
            volumes[file] = read_volume(path)
        except UnreadableFile as error:
            problem(file, error.found, error.expected, error.remedy)

    for file in _misplaced(volumes, tolerance, problem):
        del volumes[file]
    for file, volume in volumes.items():
        if file == "seg":
            mask, wrong = _classes(volume.values, scheme, label_map)
            if mask is None:
                problem(file, *wrong)
            else:
                result.mask = Volume(volume.grid, mask, volume.start)
        elif volume.values.dtype.kind == "f" and not np.isfinite(volume.values).all():
            bad = int((~np.isfinite(volume.values)).sum())
            problem(file, f"{bad} voxels are NaN or infinite", "finite intensities", "set them to 0 or leave it out")
        else:
            result.images[file] = volume
    if result.images and not any(volume.values.size for volume in result.images.values()):
        problem("-", "all intensities are 0", "a brain", "leave the case out")
        result.images.clear()
    return result


def check_case(
    case: Case,
    modalities: Sequence[str] = MODALITIES,
    scheme: LabelScheme = BRATS_METS,
    label_map: Mapping[int, int] | None = None,
    need_mask: bool = True,
    tolerance: float = 0.1,
) -> list[Problem]:
    """Everything that keeps a case from being used with these modalities; reads every file. See `examine`."""
    problems = check_files(case, modalities, need_mask)
    return problems + required(examine(case, scheme, label_map, tolerance).problems, modalities, need_mask)


def check_cases(
    cases: Iterable[Case],
    modalities: Sequence[str] = MODALITIES,
    scheme: LabelScheme = BRATS_METS,
    label_map: Mapping[int, int] | None = None,
    need_mask: bool = True,
    tolerance: float = 0.1,
) -> list[Problem]:
    """`check_case` over many cases: one report."""
    return [p for case in cases for p in check_case(case, modalities, scheme, label_map, need_mask, tolerance)]


def required(problems: Iterable[Problem], modalities: Sequence[str], need_mask: bool) -> list[Problem]:
    """The problems of files that are used: a broken image of another modality doesn't cost the case."""
    used = {"-", *modalities, *(("seg",) if need_mask else ())}
    return [problem for problem in problems if problem.file in used]


def _walk(root: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) of all files below root, each real folder once."""
    pending, seen = [os.fspath(root)], set()
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:  # links may point back up
            continue
        seen.add(real)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name, reverse=True):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append(entry.path)
                else:
                    yield folder, entry.name


def _case(name: str, files: dict[str, Path], older: bool, clashes: list[Path]) -> Case:
    timed = None if older else _TIMEPOINT.fullmatch(name)
    images = {modality: files[modality] for modality in MODALITIES if modality in files}
    patient, timepoint = (timed["patient"], timed["timepoint"]) if timed else (name, None)
    return Case(name, patient, timepoint, images, files.get("seg"), tuple(sorted(clashes)))


def _misplaced(
    volumes: Mapping[str, Volume], tolerance: float, problem: Callable[[str, str, str, str], None]
) -> list[str]:
    """Report and name the files that lie elsewhere than most of the case."""
    if not volumes:
        return []

    def agree(a: Volume, b: Volume) -> bool:
        return a.grid.shape == b.grid.shape and a.grid.distance(b.grid) <= tolerance

    # Most files decide, then the canonical order, so that one bad header doesn't condemn the others.
    common = max(volumes, key=lambda file: sum(agree(volumes[file], other) for other in volumes.values()))
    grid = volumes[common].grid
    misplaced = []
    for file, volume in volumes.items():
        if volume.grid.shape != grid.shape:
            problem(file, f"shape {volume.grid.shape}", f"{grid.shape}, as {common}", "register it to the others")
        elif (distance := volume.grid.distance(grid)) > tolerance:
            found = f"lies {distance:.3g} mm off {common} (origin {_origin(volume)}, there {_origin(volumes[common])})"
            remedy = "correct the header, or raise data.affine_tolerance if the voxels match"
            problem(file, found, f"≤ {tolerance:g} mm", remedy)
        else:
            continue
        misplaced.append(file)
    return misplaced


def _origin(volume: Volume) -> str:
    return "(" + ", ".join(f"{v:g}" for v in volume.grid.affine[:3, 3]) + ")"


def _classes(
    values: Shaped[np.ndarray, "z y x"], scheme: LabelScheme, label_map: Mapping[int, int] | None
) -> tuple[UInt8[np.ndarray, "z y x"] | None, tuple[str, str, str]]:
    """Class indices of a mask of any type, or None and (found, expected, remedy)."""
    expected = ", ".join(f"{i} {name}" for i, name in enumerate(scheme.class_names))
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        if not (odd := values[whole != values]).size:
            values = whole
        else:
            found = f"labels that are no whole numbers, e.g. {float(odd.flat[0]):g}"
            return None, (found, expected, "resample masks with nearest neighbour")
    wild = values[(values < 0) | (values > 255)]
    mask = apply_label_map(np.where((values < 0) | (values > 255), 0, values) if wild.size else values, label_map)
    counts = np.bincount(mask.reshape(-1), minlength=256).tolist()
    unknown = {label: n for label, n in enumerate(counts) if n and label >= scheme.num_classes}
    unknown |= {int(v): int(n) for v, n in zip(*np.unique(wild, return_counts=True), strict=True)}
    if unknown:
        found = ", ".join(f"{n} voxels of label {v}" for v, n in list(unknown.items())[:10])
        return None, (found, expected, "map it with data.label_map, add the class to data.labels, or correct the mask")
    return mask, ("", "", "")
