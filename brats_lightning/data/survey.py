"""What became of each case of a data set: in the cache, or rejected with the reasons."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from brats_lightning.data.cache.entry import CachedCase
from brats_lightning.data.cache.store import Cache
from brats_lightning.data.cases import Case, Problem
from brats_lightning.runtime.console import table_of

_COLUMNS = ("case", "status", "sequences", "lesions", "shape (z, y, x)", "spacing in mm", "faults or remarks")


@dataclass(frozen=True)
class Survey:
    """The cases of a data set, labelled or not."""

    found: list[Case]
    cases: list[CachedCase]  # the accepted ones, in the order found
    problems: list[Problem]  # of the others
    built: int  # how many entries of the cache are new
    sequences: tuple[str, ...]  # that are used
    optional: tuple[str, ...]  # those of them that a case may lack
    spacing: Sequence[int | float] | None  # (z, y, x) in mm to which all were resampled; None: each has its own

    @property
    def rejected(self) -> int:
        """How many cases are rejected."""
        return len({problem.case for problem in self.problems})

    @property
    def lacking(self) -> dict[str, int]:
        """How many cases, accepted or not, lack each sequence that some case lacks."""
        counts = {name: sum(name not in case.images for case in self.found) for name in self.sequences}
        return {name: count for name, count in counts.items() if count}

    def advice(self) -> list[str]:
        """What to set in order to use more of the cases, in words."""
        missing = {p.file for p in self.problems if p.file in self.sequences and p.found.startswith("missing")}
        return [
            f"{count} of {len(self.found)} cases lack {name} and are rejected; data.optional=[{name}] keeps them"
            for name, count in self.lacking.items()
            if name in missing and count < len(self.found)
        ]

    def rows(self) -> list[dict[str, Any]]:
        """For each case, JSON-able, whether it is accepted and what it is, or why not."""
        accepted = {case.id: case for case in self.cases}
        problems: dict[str, list[dict[str, str]]] = {}
        for problem in self.problems:
            problems.setdefault(problem.case, []).append(asdict(problem))
        return [_row(case.id, accepted.get(case.id), problems.get(case.id, [])) for case in self.found]

    def table(self) -> Table:
        """The same for the terminal."""
        return table_of(_COLUMNS, map(_cells, self.rows()))


def survey(cache: Cache, found: Sequence[Case], sequences: Sequence[str], workers: int) -> Survey:
    """Fill the cache with all cases, labelled or not; see `Cache.fill`."""
    parts = [[case for case in found if (case.mask is not None) == labelled] for labelled in (True, False)]
    labelled, bare = (
        cache.fill(part, sequences, need, workers) for part, need in zip(parts, (True, False), strict=True)
    )
    accepted = {case.id: case for case in (*labelled.cases, *bare.cases)}
    return Survey(
        list(found),
        [accepted[case.id] for case in found if case.id in accepted],
        [*labelled.problems, *bare.problems],
        len(labelled.built) + len(bare.built),
        tuple(sequences),
        tuple(cache.optional),
        cache.preprocessing.spacing,
    )


def _row(case: str, entry: CachedCase | None, problems: list[dict[str, str]]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case, "accepted": entry is not None, "problems": problems}
    if entry is not None:
        row |= {"mask": entry.has_mask, "lesions": len(entry.lesions), "shape": entry.shape, "spacing": entry.spacing}
        row |= {"modalities": entry.modalities, "remarks": entry.remarks}
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    lesions = str(row["lesions"]) if row.get("mask") else "–"
    grid = (" × ".join(f"{value:.4g}" for value in row.get(name, ())) for name in ("shape", "spacing"))
    faults = (f"{problem['file']}: {problem['found']}" for problem in row["problems"])
    remarks = "; ".join([*faults, *row.get("remarks", ())])
    return [row["case"], status(row), " ".join(row.get("modalities", ())), lesions, *grid, remarks]


def status(row: dict[str, Any]) -> str:
    """The status of a case's row in words."""
    return "rejected" if not row["accepted"] else "accepted" if row["mask"] else "accepted, no mask"
