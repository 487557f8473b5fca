"""Masks from saved probabilities: ``python -m brats_lightning.decode probabilities=DIR output=DIR``."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.build import build_part
from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import remove_leftovers

if TYPE_CHECKING:
    from brats_lightning.inference.decoding import SavedCase

log = logging.getLogger(__name__)


def decode(cfg: DictConfig) -> dict[str, Any]:
    """Write the masks of all cases whose probabilities are saved below a folder, or in each of several.

    Args:
        cfg: a resolved config as ``conf/decode.yaml`` composes it.

    Returns:
        ``cases``, ``existing`` and ``problems``, as `brats_lightning.predict.predict` has them.

    Raises:
        CaseError: there are files that cannot be decoded, or cases that only some folders have, and ``on_bad_case`` is
            ``error``. The others are still decoded.
        SavedError: a folder without probabilities, or different classes.
        ForeignMasks: the output holds masks that other models or post-processing made, and ``overwrite`` is false.
        PostprocessingError: no rules are chosen, and the files record different ones.
        FusionError: several folders cannot be fused so.
    """
    from brats_lightning.config.postprocessing import recorded
    from brats_lightning.data.cases import CaseError
    from brats_lightning.inference.decoding import decode_case, saved_cases
    from brats_lightning.inference.fusion import Fusion
    from brats_lightning.inference.provenance import check_existing, tell_outdated
    from brats_lightning.inference.summary import conclude
    from brats_lightning.runtime.console import progress_bar
    from brats_lightning.runtime.workers import each_result, process_pool

    if cfg.on_bad_case not in ("error", "skip"):
        raise ValueError(f"on_bad_case must be error or skip, got {cfg.on_bad_case!r}")
    given: Any = OmegaConf.to_container(OmegaConf.create({"folders": cfg.probabilities, "weights": cfg.weights}))
    folders = [given["folders"]] if isinstance(given["folders"], str) else given["folders"]
    fusion = Fusion(cfg.fusion, given["weights"])
    fusion.check(len(folders))
    rules = build_part("postprocessing", cfg.get("postprocessing"))
    cases, problems = saved_cases([Path(folder).expanduser() for folder in folders])
    if not cases:
        raise CaseError(problems)
    chosen = rules or recorded([record for case in cases for record in case.records], tuple(cfg.trust))
    log.info("post-processing%s: %s", "" if rules else " as in predict", chosen.described())
    scheme = cases[0].records[0].scheme
    for line in chosen.lacking(scheme):
        log.warning(line)
    masks = _masks(cases, cfg)
    for folder in {mask.parent for mask in masks.values()}:
        remove_leftovers(folder)
    if not cfg.overwrite:
        check_existing({masks[case.id]: case.made_by(chosen, fusion) for case in cases})
    kept = {case.id: case for case in cases if not cfg.overwrite and masks[case.id].exists()}
    tell_outdated({masks[name]: case.files for name, case in kept.items()})
    jobs = {case.id: (case, chosen, fusion, masks[case.id]) for case in cases if case.id not in kept}

    done: dict[str, Any] = {}
    processes = min(cfg.processes, len(jobs))
    with process_pool(processes) if processes > 1 else nullcontext() as pool, progress_bar() as bar:
        task = bar.add_task("decoding", total=len(jobs))
        for name, result in each_result(pool, decode_case, jobs, "processes=1"):
            if isinstance(result, list):
                problems += result
            else:
                done[name] = result
            bar.advance(task)
    file, skip = cfg.summary and Path(cfg.summary), cfg.on_bad_case == "skip"
    return conclude(dict(sorted(done.items())), list(kept), problems, scheme, Path(cfg.output), file, skip)


def _masks(cases: Sequence["SavedCase"], cfg: DictConfig) -> dict[str, Path]:
    """Case → the mask to write.

    Raises:
        ValueError: an unknown kind of name.
    """
    if cfg.names not in ("id", "layout"):
        raise ValueError(f"names must be id or layout, got {cfg.names!r}")
    return {
        case.id: Path(cfg.output).expanduser() / f"{case.name if cfg.names == 'layout' else case.id}.nii.gz"
        for case in cases
    }


main = partial(entry_point, "decode", decode)

if __name__ == "__main__":
    main()
