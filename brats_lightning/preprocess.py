"""Fill the cache, and nothing else: ``python -m brats_lightning.preprocess data=brats_mets data.root=DIR``."""

import logging
from functools import partial
from typing import Any

from omegaconf import DictConfig

from brats_lightning.config.entry_point import entry_point

log = logging.getLogger(__name__)


def preprocess(cfg: DictConfig) -> dict[str, Any]:
    """Preprocess all cases, labelled or not, report each one, and describe the data set.

    Args:
        cfg: a resolved config as ``conf/preprocess.yaml`` composes it.

    Returns:
        The content of ``<cache>/<key>/report.json``: for each case whether it is accepted, or why not; the fingerprint
        of the data set; what looks wrong.

    Raises:
        CaseError: there are faulty cases, and ``data.on_bad_case`` is ``error``. The report is still written.
    """
    from brats_lightning.config.build import build_data, check_not_negative, describe_data, with_spacing
    from brats_lightning.data.cases import CaseError, masks_apart, without_mask
    from brats_lightning.data.overview import Overview
    from brats_lightning.data.survey import survey
    from brats_lightning.evaluation.report.data_set import write_data_set
    from brats_lightning.runtime.console import show

    check_not_negative(cfg, "pictures")
    cfg = with_spacing(cfg)
    data = build_data(cfg)
    log.info("data: %s", describe_data(cfg))
    cases = data.source()
    for line in filter(None, (masks_apart(cases), without_mask(cases))):
        log.info(line)
    found = survey(data.cache, cases, data.normaliser.sources, data.cache_workers)
    show(found.table())
    overview = Overview.of(found, data.scheme, data.cache_workers)
    report = write_data_set(data.cache.directory, overview, describe_data(cfg), cfg.pictures)
    for warning in (*found.advice(), *overview.warnings()):
        log.warning("%s", warning)
    log.info("%d accepted (%d built now), %d rejected", *map(report.get, ("accepted", "built", "rejected")))
    log.info("report: %s", data.cache.directory / "report.html")
    if found.problems and cfg.data.on_bad_case == "error":
        raise CaseError(found.problems)
    return report


main = partial(entry_point, "preprocess", preprocess)

if __name__ == "__main__":
    main()
