"""Look at a data set and propose settings for it: ``python -m brats_lightning.plan data=brats_mets data.root=DIR``."""

import logging
import re
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder, write_text

log = logging.getLogger(__name__)

_OWN = ("name", "memory", "seconds", "measure", "pictures")  # keys of this command alone


def plan(cfg: DictConfig) -> dict[str, Any]:
    """Fill the cache, describe the data set, and write an experiment that fits it and the memory.

    Args:
        cfg: a resolved config as ``conf/plan.yaml`` composes it.

    Returns:
        The content of ``<run folder>/report.json``: that of `preprocess`, and the proposal under ``plan``.

    Raises:
        CaseError: there are faulty cases, and ``data.on_bad_case`` is ``error``.
        PlanError: settings that cannot be planned for, or too little memory.
    """
    from brats_lightning.config.build import build_data, check_not_negative, describe_data, with_spacing
    from brats_lightning.config.command_line import command_text, config_dirs
    from brats_lightning.config.experiment_file import experiment_text
    from brats_lightning.config.measure import measured_steps
    from brats_lightning.config.planning import Machine, PlanError, Planner
    from brats_lightning.config.values import nested
    from brats_lightning.data.cases import CaseError
    from brats_lightning.data.overview import Overview
    from brats_lightning.data.survey import survey
    from brats_lightning.evaluation.report.data_set import plan_lines, write_data_set
    from brats_lightning.runtime.console import show, table_of

    if not re.fullmatch(r"[\w.-]+", cfg.name):
        raise PlanError(f"name becomes the name of an experiment: letters, digits, '-', '_' and '.', got {cfg.name!r}")
    check_not_negative(cfg, "pictures", "seconds")
    machine = Machine.of(cfg.trainer.accelerator, cfg.memory)
    seconds = 1.0 if cfg.seconds is None and machine.kind == "cpu" else cfg.seconds
    cfg = with_spacing(cfg)
    planner = Planner(cfg, machine, seconds)
    if cfg.measure and not machine.here:
        raise PlanError("measure=true takes steps on the GPU, and there is none here")
    data = build_data(cfg)
    log.info("data: %s", describe_data(cfg))
    found = survey(data.cache, data.source(), data.normaliser.sources, data.cache_workers)
    if found.problems and cfg.data.on_bad_case == "error":
        raise CaseError(found.problems)
    if not found.cases:
        raise PlanError(f"none of the {len(found.found)} cases is accepted: there is nothing to plan for")
    overview = Overview.of(found, data.scheme, data.cache_workers)
    for line in found.advice():
        log.warning("%s", line)

    grids = (np.array([getattr(case, name) for case in found.cases]) for name in ("spacing", "shape"))
    settings, predicted = planner.propose(*grids)
    # On the cache that is there: which spacing the voxels of a patch have makes no difference.
    there = nested({key: value for key, value in settings.items() if key != "data.preprocessing.spacing"})
    completed: Any = OmegaConf.to_container(OmegaConf.merge(cfg, there))
    measured = measured_steps(completed) if cfg.measure else None
    folder = make_folder(cfg.paths.run_dir)
    own = ",".join(f"file://{path}" for path in config_dirs(HydraConfig.get()))
    search = [f"hydra.searchpath=[{own}]"] if own else []
    proposal = {
        "command": command_text("train", "--config-dir", _short(folder), f"experiment={cfg.name}", *search),
        "settings": settings,
        "machine": asdict(machine),
        "predicted": asdict(predicted),
        "measured": measured and asdict(measured),
    }
    comment = [f"Proposed by brats_lightning.plan for {describe_data(cfg)}:", f"  {proposal['command']}"]
    comment += [f"{name}: {value}" for name, value in plan_lines(proposal)]
    write_text(
        make_folder(folder / "experiment") / f"{cfg.name}.yaml",
        experiment_text(comment, {"name": cfg.name, **settings}, _OWN),
    )
    report = write_data_set(folder, overview, describe_data(cfg), cfg.pictures, proposal)
    show(table_of(("setting", "proposed"), settings.items()))
    for name, value in plan_lines(proposal):
        log.info("%s: %s", name, value)
    log.info("%s · train with it:\n%s", folder / "report.html", proposal["command"])
    return report


def _short(folder: Path) -> str:
    """A folder as it is named from the current one, if it lies below."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


main = partial(entry_point, "plan", plan)

if __name__ == "__main__":
    main()
