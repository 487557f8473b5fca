"""Fill the cache, and nothing else: ``python -m brats_lightning.preprocess data=brats_mets data.root=DIR``."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder, write_text

log = logging.getLogger(__name__)


def preprocess(cfg: DictConfig) -> dict[str, Any]:
    """Preprocess all cases, labelled or not, and report each one.

    Args:
        cfg: a resolved config as ``conf/preprocess.yaml`` composes it.

    Returns:
        What is written to ``<cache>/<key>/report.json``: for each case whether it is accepted, and why not.

    Raises:
        CaseError: there are faulty cases, and ``data.on_bad_case`` is ``error``. The report is written all the
            same, and the sound cases are in the cache.
    """
    from rich.table import Table

    from brats_lightning.config.build import build_data
    from brats_lightning.data.cache.entry import CachedCase
    from brats_lightning.data.cases import CaseError, Problem, masks_apart, without_mask
    from brats_lightning.runtime.console import show

    data = build_data(cfg)
    log.info("data: %s", cfg.data.description)
    found = data.source()
    for line in filter(None, (masks_apart(found), without_mask(found))):
        log.info(line)
    faults: dict[str, list[dict[str, str]]] = {}
    problems: list[Problem] = []
    cached: dict[str, CachedCase] = {}
    built = 0
    for labelled in (True, False):
        part = [case for case in found if (case.mask is not None) == labelled]
        filled = data.cache.fill(part, data.normaliser.sources, need_mask=labelled, workers=data.cache_workers)
        problems += filled.problems
        cached |= {case.id: case for case in filled.cases}
        built += len(filled.built)
    for problem in problems:
        faults.setdefault(problem.case, []).append(problem.to_dict())

    rows = []
    table = Table("case", "status", "lesions", "shape (z, y, x)", "spacing in mm", "why not, or remarks")
    table.columns[0].no_wrap = True
    for case in found:
        entry = cached.get(case.id)
        row: dict[str, Any] = {"case": case.id, "accepted": entry is not None, "problems": faults.get(case.id, [])}
        if entry is not None:
            row |= {
                "mask": entry.has_mask,
                "lesions": len(entry.lesions),
                "shape": entry.shape,
                "spacing": entry.spacing,
                "remarks": entry.remarks,
            }
        rows.append(row)
        why = "; ".join([*(f"{p['file']}: {p['found']}" for p in row["problems"]), *row.get("remarks", ())])
        status = "rejected" if entry is None else "accepted" if entry.has_mask else "accepted, no mask"
        lesions = str(len(entry.lesions)) if entry is not None and entry.has_mask else "–"
        grid = ("", "") if entry is None else (_triple(entry.shape), _triple(entry.spacing))
        table.add_row(case.id, status, lesions, *grid, why)
    show(table)

    report = {
        "data": cfg.data.description,
        "accepted": len(cached),
        "rejected": len(faults),
        "built": built,
        "cases": rows,
    }
    target = make_folder(data.cache.directory) / "report.json"
    write_text(target, json.dumps(report, indent=1) + "\n")
    log.info("%d accepted (%d built now), %d rejected · %s", len(cached), built, len(faults), target)
    if problems and cfg.data.on_bad_case == "error":
        raise CaseError(problems)
    return report


def _triple(values: Sequence[int | float]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)


def main() -> None:
    """The command ``brats-preprocess``."""
    entry_point("preprocess", preprocess)()


if __name__ == "__main__":
    main()
