"""Official scores of masks: ``python -m brats_lightning.evaluate predictions=DIR references=DIR output=DIR``."""

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder, write_text

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from brats_lightning.evaluation.scoring import Evaluation, Scoring

log = logging.getLogger(__name__)

_FILES = ("scores.csv", "voxel_scores.csv", "summary.json", "comparison.csv", "comparison.json", "report.html")


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Score one folder of masks, or compare several.

    Args:
        cfg: a resolved config as ``conf/evaluate.yaml`` composes it.

    Returns:
        What is written to ``<output>/summary.json``; of several methods to ``<output>/comparison.json``.

    Raises:
        EvaluationError: folders without masks, unknown settings.
        SplitError: a split file that cannot be used.
        CaseError: there are faulty files, and ``on_bad_case`` is ``error``. Nothing is written then.
    """
    from brats_lightning.core.labels import LabelScheme
    from brats_lightning.data.cases import CaseError
    from brats_lightning.data.splits import cases_of_part
    from brats_lightning.evaluation.pairing import EvaluationError
    from brats_lightning.evaluation.scoring import Scoring, case_workers

    for name, known in (("missing", ("score", "error")), ("on_bad_case", ("error", "skip"))):
        if cfg[name] not in known:
            raise EvaluationError(f"{name} must be {' or '.join(known)}, got {cfg[name]!r}")
    for name in ("resamples", "seed", "pictures"):
        if cfg[name] < 0:
            raise EvaluationError(f"{name} must be 0 or more, got {cfg[name]}")
    scoring = Scoring(
        LabelScheme(tuple(cfg.data.labels)),
        _listed(cfg.protocol),
        cfg.thresholds,
        cfg.spacing,
        OmegaConf.to_container(cfg.data.label_map) if cfg.data.label_map else None,  # type: ignore[arg-type]
        OmegaConf.to_container(cfg.prediction_label_map) if cfg.prediction_label_map else None,  # type: ignore[arg-type]
        cfg.data.affine_tolerance,
    )
    folders = [Path(folder).expanduser() for folder in _listed(cfg.predictions)]
    names = method_names(folders, None if cfg.names is None else _listed(cfg.names))
    references = Path(cfg.references).expanduser()
    chosen = None if cfg.split is None else cases_of_part(Path(cfg.split).expanduser(), cfg.part)
    with case_workers(cfg.processes) as pool:
        plans = [
            _plan(*method, references, scoring, cfg.missing, chosen, pool)
            for method in zip(names, folders, strict=True)
        ]
        problems = [problem for plan in plans for problem in plan.left_out]
        if problems and cfg.on_bad_case == "error":
            raise CaseError(problems)
        if empty := [plan.name for plan in plans if not plan.pairs]:
            raise EvaluationError(f"no case of {', '.join(empty)} is left to score\n{CaseError(problems)}")
        evaluations = [_scored(plan, pool) for plan in plans]
    if problems:
        log.warning("left out: %s", CaseError(problems))
    output = Path(cfg.output).expanduser()
    if len(evaluations) == 1:
        result = _write_evaluation(evaluations[0], output, cfg)
    else:
        result = _write_comparison(evaluations, output, cfg)
    log.info("report: %s", output / "report.html")
    return result


def _listed(value: Any) -> list[str]:
    return [str(value)] if isinstance(value, str) else [str(item) for item in value]


def method_names(folders: Sequence[Path], given: Sequence[str] | None) -> list[str]:
    """A name for each method that can be a folder's: those given, else as much of the paths as tells them apart.

    Raises:
        EvaluationError: names that are too few, not distinct, or no folder names.
    """
    from brats_lightning.evaluation.pairing import EvaluationError

    if given is None:
        paths = [folder.resolve().parts for folder in folders]
        for depth in range(1, max(map(len, paths)) + 1):
            names = ["_".join(part.strip("/") for part in path[-depth:]) for path in paths]
            if len(set(names)) == len(names):
                break
        else:
            raise EvaluationError(f"predictions names a folder twice: {', '.join(map(str, folders))}")
        return [name.replace("=", "_").replace(",", "_") or "predictions" for name in names]
    bad = [name for name in given if not name.strip(".") or Path(name).name != name or set(name) & set("=,\\")]
    if len(given) != len(folders) or len(set(given)) < len(given) or bad:
        raise EvaluationError(
            f"names={list(given)} must be {len(folders)} distinct folder names without '=', ',' and '/'"
        )
    return list(given)


def _plan(
    name: str,
    folder: Path,
    references: Path,
    scoring: "Scoring",
    missing: str,
    chosen: Sequence[str] | None,
    pool: "ProcessPoolExecutor | None",
) -> "Evaluation":
    """What is to be scored and what is wrong with the rest; no case is scored yet."""
    from brats_lightning.evaluation.pairing import pair_masks
    from brats_lightning.evaluation.scoring import Evaluation, over_cases

    pairs, problems = pair_masks(folder, references, missing, chosen)
    if same := sum(pair.prediction is not None and pair.prediction.samefile(pair.reference) for pair in pairs):
        log.warning("%s: %d predictions are the reference's own file", name, same)
    faults = over_cases(scoring.check, pairs, pool, f"checking {name}")
    problems += [fault for found in faults for fault in found]
    sound = tuple(pair for pair, found in zip(pairs, faults, strict=True) if not found)
    return Evaluation(name, folder, references, scoring, sound, (), tuple(problems))


def _scored(plan: "Evaluation", pool: "ProcessPoolExecutor | None") -> "Evaluation":
    from dataclasses import replace

    from brats_lightning.evaluation.scoring import over_cases

    scored = replace(plan, cases=tuple(over_cases(plan.scoring.score, plan.pairs, pool, f"scoring {plan.name}")))
    if scored.missing:
        log.warning("%s: %d of %d predictions are missing", plan.name, len(scored.missing), len(scored.cases))
    return scored


def _write_evaluation(evaluation: "Evaluation", folder: Path, cfg: DictConfig) -> dict[str, Any]:
    """All files of one method; its summary."""
    from brats_lightning.evaluation.report.evaluation import evaluation_page, terminal_table
    from brats_lightning.evaluation.report.pictures import lesion_pictures
    from brats_lightning.evaluation.summary import summary
    from brats_lightning.runtime.console import show

    result = summary(evaluation, cfg.resamples, cfg.seed)
    if cfg.split is not None:
        result["settings"] |= {"split": str(cfg.split), "part": cfg.part}
    for protocol in evaluation.scoring.protocols:
        show(terminal_table(evaluation.name, result, protocol))
    page = evaluation_page(evaluation, result, lesion_pictures(evaluation, cfg.pictures))
    tables = {
        protocol: scores_csv({case.case: case.official[protocol] for case in evaluation.cases})
        for protocol in evaluation.scoring.protocols
    }
    files = {f"scores_{protocol}.csv": text for protocol, text in tables.items()} if len(tables) > 1 else {}
    files["scores.csv"] = next(iter(tables.values()))
    files["voxel_scores.csv"] = scores_csv({case.case: case.plain for case in evaluation.cases})
    files["summary.json"] = json.dumps(without_nan(result), indent=1) + "\n"
    files["report.html"] = page
    _write_files(folder, files)
    return result


def _write_comparison(evaluations: "Sequence[Evaluation]", folder: Path, cfg: DictConfig) -> dict[str, Any]:
    """Each method's files in a folder of its name, and those of the comparison."""
    from brats_lightning.evaluation.comparison import compare, difference_rows, headline_scores
    from brats_lightning.evaluation.report.comparison import comparison_page

    comparison = compare(evaluations, cfg.resamples, cfg.seed)
    scores = {
        protocol: headline_scores(evaluations, comparison["cases"], protocol) for protocol in comparison["protocols"]
    }
    summaries = [_write_evaluation(evaluation, folder / evaluation.name, cfg) for evaluation in evaluations]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(difference_rows(scores, comparison["cases"], comparison["methods"]))
    files = {
        "comparison.csv": text.getvalue(),
        "comparison.json": json.dumps(without_nan(comparison), indent=1) + "\n",
        "report.html": comparison_page(evaluations, summaries, comparison, scores),
    }
    _write_files(folder, files)
    return comparison


def scores_csv(tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """``case, region`` and the columns; case → region → column → value. NaN is empty, all digits are kept."""
    columns = list(dict.fromkeys(column for regions in tables.values() for row in regions.values() for column in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "region", *columns])
    for case, regions in tables.items():
        for region, row in regions.items():
            values = (row.get(column, math.nan) for column in columns)
            writer.writerow([case, region, *("" if math.isnan(value) else repr(float(value)) for value in values)])
    return text.getvalue()


def without_nan(value: Any) -> Any:
    """A copy for JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write them, and drop an earlier run's others."""
    from brats_lightning.metrics import PROTOCOLS

    make_folder(folder)
    for name, text in files.items():
        write_text(folder / name, text)
    ours = {*(f"scores_{protocol}.csv" for protocol in PROTOCOLS), *_FILES}
    for name in ours - files.keys():
        (folder / name).unlink(missing_ok=True)


def main() -> None:
    """The command ``brats-evaluate``."""
    entry_point("evaluate", evaluate)()


if __name__ == "__main__":
    main()
