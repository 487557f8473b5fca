"""Check masks before they are submitted: ``python -m brats_lightning.submission predictions=DIR input=DIR``."""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from brats_lightning.config.build import input_cases
from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder


def submission(cfg: DictConfig) -> dict[str, Any]:
    """Check a folder of masks, report all faults in one table, and pack it if there are none.

    Args:
        cfg: a resolved config as ``conf/submission.yaml`` composes it.

    Returns:
        The number of ``masks``, and the ``bytes`` of the archive; 0 if none is asked for.

    Raises:
        CaseError: the faults that `check_submission` finds.
        FileNotFoundError: there is no such folder.
        ValueError: the archive would lie among the masks, is not named ``….zip``, or ``max_share`` is no fraction.
    """
    from brats_lightning.data.cases import CaseError
    from brats_lightning.inference.submission import check_submission, write_zip
    from brats_lightning.runtime.console import show

    folder, archive = Path(cfg.predictions), None if cfg.zip is None else Path(cfg.zip)
    if not 0 < cfg.max_share <= 1:
        raise ValueError(f"max_share must be above 0 and at most 1, got {cfg.max_share}")
    if archive is not None and archive.suffix != ".zip":
        raise ValueError(f"zip must be a file named ….zip, got {archive}")
    if archive is not None and archive.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"zip={archive} lies in predictions={folder}, which holds masks only; choose another folder")
    cases = None if cfg.input is None else input_cases(cfg)
    if problems := check_submission(folder, cfg.labels, cases, cfg.max_share):
        raise CaseError(problems)
    masks = sum(1 for _ in folder.iterdir())
    show(f"{masks} masks, no problem found" + (" (not compared with any input)" if cfg.input is None else ""))
    size = 0
    if archive is not None:
        size = write_zip(folder, make_folder(archive.parent) / archive.name)
        show(f"{archive}: {size / 1e6:.1f} MB")
    return {"masks": masks, "bytes": size}


main = partial(entry_point, "submission", submission)

if __name__ == "__main__":
    main()
