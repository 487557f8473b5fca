"""Which case trains, validates and tests: by patient, by fold, or by a file."""

import difflib
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from brats_lightning.data.layouts.datalist import PART_OF, entries_of, entry_id
from brats_lightning.runtime.files import write_json

PARTS = ("train", "val", "test")


class SplitError(ValueError):
    """A split that cannot be made, or whose results could not be trusted."""


@dataclass(frozen=True)
class Split:
    """Case ids of each part."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write a JSON that `SplitSettings.file` reads."""
        write_json(path, asdict(self))

    def of(self, cases: Collection[str]) -> tuple["Split", list[str]]:
        """The same split for a resumed run, and the ids of cases added since, which it leaves out.

        Raises:
            SplitError: cases of the split that are not among those given.
        """
        mine = (*self.train, *self.val, *self.test)
        newcomers = sorted(set(cases).difference(mine))
        if missing := [name for name in mine if name not in cases]:
            raise SplitError(
                f"{_missing(missing, newcomers)}; a resumed run needs the very cases it began with. Put them back, or "
                "start a new run: weights=RUN/checkpoints/last.ckpt data.split_from=RUN data.on_bad_case=skip"
            )
        return self, newcomers


@dataclass(frozen=True)
class SplitSettings:
    """How patients are dealt out.

    Args:
        val_share: fraction of the patients that validate; ignored with folds.
        test_share: fraction of the patients that test.
        folds: K, the folds the other patients are dealt into; null for one split by ``val_share``.
        fold: which fold validates, 0 … K-1, of ``folds`` or of those in ``file``.
        file: JSON or YAML ``{train: [case, …], val: […], test: […]}``, nnU-Net's ``splits_final.json`` or a datalist;
            the other settings but ``fold`` are then ignored.
        seed: of the shuffle; not the run's, so that runs of different seeds see the same split.
        extends: a run folder, or its ``split.json``: patients stay on the side they have there, new ones are dealt.
        lenient: leave out, with a warning, cases of that split that are missing.
    """

    val_share: int | float = 0.15
    test_share: int | float = 0.15
    folds: int | None = None
    fold: int | None = None
    file: str | None = None
    seed: int = 0
    extends: str | None = None
    lenient: bool = False

    def __post_init__(self) -> None:
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share >= 1:
            raise SplitError(
                "data.val_share and data.test_share must be at least 0 and leave patients for training, "
                f"got {self.val_share} and {self.test_share}"
            )
        if self.seed < 0:
            raise SplitError(f"data.split_seed must be 0 or more, got {self.seed}")
        if self.file is None and (self.folds is None) != (self.fold is None):
            raise SplitError(f"set data.folds and data.fold together, got folds={self.folds} fold={self.fold}")
        if (
            self.file is None
            and self.folds is not None
            and not (self.folds >= 2 and 0 <= (self.fold or 0) < self.folds)
        ):
            raise SplitError(f"data.fold must be 0 … folds-1 of at least 2 folds, got fold {self.fold} of {self.folds}")
        if self.file is not None and self.extends is not None:
            raise SplitError(
                f"data.split_file={self.file} and data.split_from={self.extends} are two splits; give one of them"
            )

    def split(self, patient_of: Mapping[str, str], stated: Mapping[str, str] | None = None) -> Split:
        """Deal the cases out; all timepoints of a patient go the same way.

        Args:
            patient_of: case → patient; the split keeps this order.
            stated: case → part, where the data set says so; for a part that it fills no other patients are drawn.

        Raises:
            SplitError: too few patients for the fractions or folds, or a faulty split file.
        """
        if self.file is not None:
            return _from_file(Path(self.file).expanduser(), patient_of, self.fold, stated or {})
        given = _stated_parts(patient_of, stated or {})
        known = given | ({} if self.extends is None else self._known(patient_of))
        patients = sorted(set(patient_of.values()))
        new = [patient for patient in patients if patient not in known]
        shuffled = [new[i] for i in np.random.default_rng(self.seed).permutation(len(new))]
        n_test = 0 if "test" in given.values() else self._more("test", self.test_share, patients, known)
        test, rest = shuffled[:n_test], shuffled[n_test:]
        if self.folds is not None and self.fold is not None:
            if not known and len(rest) < self.folds:
                raise SplitError(
                    f"{len(rest)} patients are left for data.folds={self.folds}; use fewer folds, or a smaller "
                    "data.test_share"
                )
            val = rest[self.fold :: self.folds]
        else:
            val = rest[: 0 if "val" in given.values() else self._more("val", self.val_share, patients, known)]
        part_of = dict.fromkeys(rest, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test") | known
        split = Split(*(tuple(case for case, p in patient_of.items() if part_of[p] == part) for part in PARTS))
        if not split.train:
            raise SplitError(
                f"{len(patients)} labelled patient(s) cannot be split with data.val_share={self.val_share} and "
                f"data.test_share={self.test_share}: none is left to train. Lower them (0 is allowed) or give "
                "data.split_file"
            )
        return split

    def _more(self, part: str, fraction: float | int, patients: Sequence[str], known: Mapping[str, str]) -> int:
        """How many new patients a part gets, so that it has its fraction of all, at least one for any above 0."""
        wanted = max(1, round(fraction * len(patients))) if fraction else 0
        return max(0, wanted - sum(known.get(patient) == part for patient in patients))

    def _known(self, patient_of: Mapping[str, str]) -> dict[str, str]:
        """Which part each patient has in the split that is extended."""
        path = Path(str(self.extends)).expanduser()
        split = read_split(path / "split.json" if path.is_dir() else path, "data.split_from")
        if missing := [name for names in split.values() for name in names if name not in patient_of]:
            what = _missing(missing, patient_of.keys() - {name for names in split.values() for name in names})
            if not self.lenient:
                raise SplitError(
                    f"data.split_from={self.extends}: {what}. Put them back, or leave them out: data.on_bad_case=skip"
                )
            warnings.warn(f"data.split_from={self.extends}: left out: {what}", stacklevel=3)
        part_of: dict[str, str] = {}
        for part, names in split.items():
            for name in names:
                patient = patient_of.get(name)
                if patient is not None and part_of.setdefault(patient, part) != part:
                    raise SplitError(
                        f"data.split_from={self.extends}: patient {patient} is in {part_of[patient]} and {part} there"
                    )
        return part_of


def _missing(names: Sequence[str], new: Collection[str]) -> str:
    """``3 cases of the split are not there, faulty or without mask: A (is it B now?), …``; ``new`` are not in it."""
    hints = []
    for name in names[:10]:
        near = difflib.get_close_matches(name, new, n=1, cutoff=0.8)
        hints.append(f"{name} (is it {near[0]} now?)" if near else name)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    one = len(names) == 1
    return (
        f"{len(names)} case{'' if one else 's'} of the split {'is' if one else 'are'} not there, faulty or without mask"
        f": {', '.join(hints)}{more}"
    )


def cases_of_part(file: str | Path, part: str) -> tuple[str, ...]:
    """The cases that a split file, such as a run's ``split.json``, lists under ``train``, ``val`` or ``test``.

    Raises:
        SplitError: no such file or part, or none is listed there.
    """
    if part not in PARTS:
        raise SplitError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    cases = read_split(Path(file), "split")[part]
    if not cases:
        raise SplitError(f"split: {file} lists no case under {part}")
    return tuple(dict.fromkeys(cases))


def read_split(path: Path, setting: str, fold: int | None = None) -> dict[str, list[str]]:
    """The lists of a split file; ``setting`` names it in messages.

    ``fold`` chooses one of nnU-Net's ``splits_final.json``, or the entries of a datalist that validate.

    Raises:
        SplitError: there is no such file or fold, or it holds no split.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        content: Any = json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        raise SplitError(f"{setting}: there is no {path}") from None
    except Exception as error:
        raise SplitError(f"{setting}: {path} is neither JSON nor YAML: {error}") from error
    if isinstance(content, Mapping) and "training" in content:
        return _datalist_split(content, path, setting, fold)
    if content and isinstance(content, list) and all(isinstance(one, Mapping) for one in content):  # nnU-Net's
        if fold is None or not 0 <= fold < len(content):
            raise SplitError(
                f"{setting}: {path} holds {len(content)} folds; choose one, data.fold=0 … {len(content) - 1}"
            )
        content = content[fold]
    elif fold is not None:
        raise SplitError(f"{setting}: {path} has no folds; leave data.fold={fold} out")
    if not isinstance(content, Mapping) or not content or set(content) - set(PARTS):
        raise SplitError(f"{setting}: {path} must be a mapping with lists 'train', 'val' and 'test', or some of them")
    return {part: [str(case) for case in content.get(part) or []] for part in PARTS}


def _datalist_split(content: Mapping[str, Any], path: Path, setting: str, fold: int | None) -> dict[str, list[str]]:
    """The parts of a datalist's labelled entries; those of the training list with this ``fold`` validate."""
    entries = [(part, entry) for part, entry in entries_of(content, path) if entry.get("label")]
    folds = sorted({entry["fold"] for part, entry in entries if part == "training" and "fold" in entry})
    if (fold is None) != (not folds) or (folds and fold not in folds):
        there = f"has the folds {', '.join(map(str, folds))}; choose one: data.fold=…" if folds else "has no folds"
        raise SplitError(f"{setting}: {path} {there}, got {fold}")
    split: dict[str, list[str]] = {part: [] for part in PARTS}
    for part, entry in entries:
        validates = part == "training" and fold is not None and entry.get("fold") == fold
        split["val" if validates else PART_OF[part] or "train"].append(entry_id(entry))
    return split


def _from_file(path: Path, patient_of: Mapping[str, str], fold: int | None, stated: Mapping[str, str]) -> Split:
    split = read_split(path, "data.split_file", fold)
    if fold is not None and not split["test"]:
        split["test"] = [name for name in patient_of if stated.get(name) == "test"]
    if not split["train"]:
        raise SplitError(f"data.split_file: {path} lists no case under 'train'")
    faults = []
    for part, names in split.items():
        for name in names:
            if name not in patient_of:
                near = difflib.get_close_matches(name, patient_of, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                faults.append(f"{part}: there is no labelled case {name}{hint}")
        faults += [f"{part}: {name} is listed twice" for name in sorted({n for n in names if names.count(n) > 1})]
    seen = {patient_of[name]: name for part in ("train", "val") for name in split[part] if name in patient_of}
    faults += [
        f"test: {name} is of a patient that also trains or validates ({seen[patient_of[name]]}); its score would be no "
        "test. Use test_on=train or test_on=val to score those"
        for name in split["test"]
        if patient_of.get(name) in seen
    ]
    if faults:
        raise SplitError(f"data.split_file: {path}\n  " + "\n  ".join(faults))
    trained = {patient_of[name] for name in split["train"]}
    shared = [name for name in split["val"] if patient_of[name] in trained]
    if shared:
        warnings.warn(
            f"{path}: these validation cases are of patients that also train, so val/… is no estimate of unseen cases: "
            + ", ".join(shared),
            stacklevel=3,
        )
    return Split(*(tuple(split[part]) for part in PARTS))


def _stated_parts(patient_of: Mapping[str, str], stated: Mapping[str, str]) -> dict[str, str]:
    """Patient → part, of the patients whose cases a data set has dealt out.

    Raises:
        SplitError: a patient has cases in two parts, or in one part and among the others.
    """
    parts: dict[str, set[str | None]] = {}
    for case, patient in patient_of.items():
        parts.setdefault(patient, set()).add(stated.get(case))
    if shared := [patient for patient, own in parts.items() if len(own) > 1]:
        names = ", ".join(shared[:10]) + ", …" * (len(shared) > 10)
        raise SplitError(
            f"the data set has cases of one patient in several parts, so its test would be no test: {names}. Give a "
            "split by data.split_file, or leave these cases out"
        )
    return {patient: part for patient, own in parts.items() for part in own if part is not None}
