"""In which settings, code, data and scores runs differ: ``python -m brats_lightning.compare 'runs=[A,B]'``."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from brats_lightning.config.build import check_not_negative
from brats_lightning.config.entry_point import entry_point
from brats_lightning.config.values import listed


def compare(cfg: DictConfig) -> dict[str, dict[str, list[Any]]]:
    """Show a table of each kind of difference between runs, and say what is the same.

    Args:
        cfg: a resolved config as ``conf/compare.yaml`` composes it.

    Returns:
        The `differences`: section → name → the value of each run; a section without differences is empty.

    Raises:
        NoRun: a folder that is not the folder of a run.
    """
    from brats_lightning.config.differences import differences, missing
    from brats_lightning.runtime.console import show, table_of

    check_not_negative(cfg, "rows")
    runs = [Path(run).expanduser() for run in listed(cfg.runs)]
    found = differences(runs)
    unknown = [missing(run) for run in runs]
    names = [run.resolve().name for run in runs]
    names = names if len(set(names)) == len(names) else [str(run) for run in runs]
    for section, rows in found.items():
        if rows:
            cells = [[name, *map(_cell, values)] for name, values in rows.items()]
            show(table_of([section, *names], cells[: cfg.rows]))
            if cfg.rows is not None and len(rows) > cfg.rows:
                show(f"{len(rows) - cfg.rows} more; rows=null shows all\n")
    for run, sections in zip(runs, unknown, strict=True):
        if sections:
            show(f"{run} has no record of: {', '.join(sections)}")
    show(_summary(found, unknown))
    return found


def _summary(found: Mapping[str, Any], unknown: Sequence[Sequence[str]]) -> str:
    """Which sections are the same in all runs that have a record of them, if at least two have."""
    lacking = [section for sections in unknown for section in sections]
    same = [name for name, rows in found.items() if not rows and lacking.count(name) <= len(unknown) - 2]
    differ = [name for name, rows in found.items() if rows]
    if not differ:
        return f"no difference in {', '.join(same)}"
    return f"different: {', '.join(differ)}; the same: {', '.join(same) or 'nothing'}"


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


main = partial(entry_point, "compare", compare)

if __name__ == "__main__":
    main()
