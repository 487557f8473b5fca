"""Official scores of masks: ``python -m brats_lightning.evaluate predictions=DIR references=DIR output=DIR``."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from brats_lightning.config.build import check_not_negative, data_set, data_set_cases
from brats_lightning.config.entry_point import entry_point
from brats_lightning.config.values import listed
from brats_lightning.runtime.files import check_writable, make_folder

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score one folder of masks, or compare several.

    Args:
        cfg: a resolved config as ``conf/evaluate.yaml`` composes it.

    Returns:
        The content of ``<output>/summary.json``, for several methods of ``<output>/comparison.json``.

    Raises:
        EvaluationError: folders without masks, or unknown settings.
        SplitError: a split file that cannot be used.
        CaseError: there are faulty files, and ``on_bad_case`` is ``error``. Nothing is written.
        UnwritableFile: nothing can be written to ``output``; this is found before the masks are scored.
    """
    from brats_lightning.core.labels import LabelScheme, with_ignored
    from brats_lightning.data.cases import CaseError
    from brats_lightning.data.splits import cases_of_part
    from brats_lightning.evaluation.bootstrap import Bootstrap
    from brats_lightning.evaluation.pairing import EvaluationError, method_names
    from brats_lightning.evaluation.scoring import Scoring, case_workers, prepare_evaluation, score_pairs

    known_values = {"missing": ("score", "error"), "on_bad_case": ("error", "skip"), "report": ("file", "folder")}
    for name, known in known_values.items():
        if cfg[name] not in known:
            raise EvaluationError(f"{name} must be {' or '.join(known)}, got {cfg[name]!r}")
    check_not_negative(cfg, "resamples", "seed", "pictures")
    scheme = LabelScheme(tuple(cfg.data.labels))
    scoring = Scoring(
        scheme,
        listed(cfg.protocol),
        cfg.thresholds,
        cfg.spacing,
        with_ignored(cfg.data.label_map, cfg.data.ignore_label, scheme),
        cfg.prediction_label_map,
        cfg.data.affine_tolerance,
    )
    folders = [Path(folder).expanduser() for folder in listed(cfg.predictions)]
    names = method_names(folders, None if cfg.names is None else listed(cfg.names))
    references = Path(cfg.references).expanduser()
    chosen = None if cfg.split is None else cases_of_part(Path(cfg.split).expanduser(), cfg.part)
    cases = data_set_cases(cfg, "references") if data_set(cfg) else None
    with case_workers(cfg.processes) as pool:
        prepared = [
            prepare_evaluation(*method, references, scoring, cfg.missing, chosen, cases, pool)
            for method in zip(names, folders, strict=True)
        ]
        problems = [problem for evaluation in prepared for problem in evaluation.left_out]
        if problems and cfg.on_bad_case == "error":
            raise CaseError(problems)
        if empty := [evaluation.name for evaluation in prepared if not evaluation.pairs]:
            raise EvaluationError(f"no case of {', '.join(empty)} is left to score\n{CaseError(problems)}")
        output = make_folder(Path(cfg.output).expanduser())
        check_writable(output)
        evaluations = [score_pairs(evaluation, pool) for evaluation in prepared]
        if problems:
            log.warning("left out: %s", CaseError(problems))
        # Imported here because the pages need Matplotlib and Jinja, which errors should not wait for.
        from brats_lightning.evaluation.results import ReportSettings, write_results

        figures = None if cfg.figures is None else Path(cfg.figures).expanduser()
        chosen_by = {} if cfg.split is None else {"split": str(cfg.split), "part": cfg.part}
        settings = ReportSettings(Bootstrap(cfg.resamples, cfg.seed), cfg.report, cfg.pictures, figures, chosen_by)
        result = write_results(evaluations, output, settings, pool)
    log.info("report: %s", output / "report.html")
    return result


main = partial(entry_point, "evaluate", evaluate)

if __name__ == "__main__":
    main()
