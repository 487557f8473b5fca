"""Fill the cache, and nothing else: ``python -m brats_lightning.preprocess data=brats_mets data.root=DIR``."""

import logging
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder, write_json

if TYPE_CHECKING:
    from brats_lightning.data.cache.entry import CachedCase

log = logging.getLogger(__name__)


def preprocess(cfg: DictConfig) -> dict[str, Any]:
    """Preprocess all cases, labelled or not, and report each one.

    Args:
        cfg: a resolved config as ``conf/preprocess.yaml`` composes it.

    Returns:
        The content of ``<cache>/<key>/report.json``: for each case whether it is accepted, or why not.

    Raises:
        CaseError: there are faulty cases, and ``data.on_bad_case`` is ``error``. The report is still written.
    """
    from brats_lightning.config.build import build_data, describe_data, with_spacing
    from brats_lightning.data.cases import CaseError, masks_apart, without_mask
    from brats_lightning.runtime.console import show, table_of

    cfg = with_spacing(cfg)
    data = build_data(cfg)
    log.info("data: %s", describe_data(cfg))
    found = data.source()
    for line in filter(None, (masks_apart(found), without_mask(found))):
        log.info(line)
    parts = {labelled: [case for case in found if (case.mask is not None) == labelled] for labelled in (True, False)}
    filled = [
        data.cache.fill(part, data.normaliser.sources, labelled, data.cache_workers) for labelled, part in parts.items()
    ]
    cached = {case.id: case for part in filled for case in part.cases}
    problems = [problem for part in filled for problem in part.problems]
    rows = [
        _row(case.id, cached.get(case.id), [asdict(problem) for problem in problems if problem.case == case.id])
        for case in found
    ]
    columns = ("case", "status", "sequences", "lesions", "shape (z, y, x)", "spacing in mm", "faults or remarks")
    show(table_of(columns, map(_cells, rows)))
    report = {
        "data": cfg.data.description,
        "spacing": data.cache.preprocessing.spacing,
        "accepted": len(cached),
        "rejected": len({problem.case for problem in problems}),
        "built": sum(len(part.built) for part in filled),
        "cases": rows,
    }
    target = make_folder(data.cache.directory) / "report.json"
    write_json(target, report)
    log.info(
        "%d accepted (%d built now), %d rejected · %s", *map(report.get, ("accepted", "built", "rejected")), target
    )
    if problems and cfg.data.on_bad_case == "error":
        raise CaseError(problems)
    return report


def _row(case: str, entry: "CachedCase | None", problems: list[dict[str, str]]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case, "accepted": entry is not None, "problems": problems}
    if entry is not None:
        row |= {"mask": entry.has_mask, "lesions": len(entry.lesions), "shape": entry.shape, "spacing": entry.spacing}
        row |= {"modalities": entry.modalities, "remarks": entry.remarks}
    return row


def _cells(row: dict[str, Any]) -> list[str]:
    status = "rejected" if not row["accepted"] else "accepted" if row["mask"] else "accepted, no mask"
    lesions = str(row["lesions"]) if row.get("mask") else "–"
    grid = (" × ".join(f"{value:.4g}" for value in row.get(name, ())) for name in ("shape", "spacing"))
    faults = (f"{problem['file']}: {problem['found']}" for problem in row["problems"])
    return [
        row["case"],
        status,
        " ".join(row.get("modalities", ())),
        lesions,
        *grid,
        "; ".join([*faults, *row.get("remarks", ())]),
    ]


main = partial(entry_point, "preprocess", preprocess)

if __name__ == "__main__":
    main()
