"""Choose post-processing on a run's validation cases: ``python -m brats_lightning.tune ckpt=A``."""

import hashlib
import itertools
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import write_text

if TYPE_CHECKING:
    import numpy as np

    from brats_lightning.core.labels import LabelScheme
    from brats_lightning.data.cases import Case, Examination
    from brats_lightning.inference.ensemble import Ensemble, TrainedModel
    from brats_lightning.inference.postprocessing import Postprocessing

log = logging.getLogger(__name__)

_HEADER = """\
# Post-processing chosen by brats_lightning.tune; used with:  python -m brats_lightning.predict … postprocessing=tuned
"""


def tune(cfg: DictConfig) -> dict[str, Any]:
    """Score every combination of the grid, lesion-wise, on the validation cases; test cases are never opened.

    A case is predicted by the mean of those models that it validates. The score of a combination is the mean over cases
    of the mean lesion-wise Dice over ET, TC and WT (over all regions of a scheme without them). Of equals the simplest
    is chosen.

    Args:
        cfg: a resolved config as ``conf/tune.yaml`` composes it.

    Returns:
        What is written to ``<checkpoint>_postprocessing.yaml`` beside each checkpoint: ``chosen``, its ``score``, the
        ``protocol``, the ``cases`` and everything ``tried`` with its scores.

    Raises:
        ValueError: no record of the split, or cases that cannot be found.
        CaseError: cases that cannot be read.
    """
    from brats_lightning.config.checkpoint import affine_tolerance, load_ensemble
    from brats_lightning.data.cases import CaseError, examine, required
    from brats_lightning.inference.ensemble import Ensemble
    from brats_lightning.metrics import PROTOCOLS
    from brats_lightning.metrics.voxel import mean_without_nan
    from brats_lightning.runtime.console import progress_bar

    if cfg.protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {cfg.protocol!r}")
    ensemble = load_ensemble(cfg)
    models, scheme = ensemble.models, ensemble.scheme
    tolerance = affine_tolerance(cfg, ensemble)
    validated = _validation_cases(models)
    cases = _find(cfg, models, sorted(set().union(*validated)))
    label_map = models[0].config["data"]["label_map"]
    rules = _candidates(cfg, ensemble)
    log.info("%d combinations on %d validation cases, %s", len(rules), len(cases), cfg.protocol)

    scores: dict[str, list[dict[str, float]]] = {}
    problems = []
    with progress_bar() as bar:
        task = bar.add_task("tuning", total=len(cases))
        for number, case in enumerate(cases, 1):
            examination = examine(case, scheme, label_map, tolerance)
            if faults := required(examination.problems, ensemble.modalities, need_mask=True):
                problems += faults
            else:
                chosen = [model for model, part in zip(models, validated, strict=True) if case.id in part]
                members = Ensemble(chosen, ensemble.device, ensemble.dtype)
                scores[case.id] = _score_all(examination, members, rules, cfg.protocol)
            bar.update(task, completed=number)
    if problems:
        raise CaseError(problems)

    tried = []
    for index, rule in enumerate(rules):
        per_case = [case[index] for case in scores.values()]
        means = {name: mean_without_nan([case[name] for case in per_case]) for name in per_case[0]}
        tried.append({**asdict(rule), **{name: _rounded(value) for name, value in means.items()}})
    best = max(range(len(rules)), key=lambda i: -1.0 if tried[i]["score"] is None else tried[i]["score"])
    result = {
        "chosen": asdict(rules[best]),
        "score": tried[best]["score"],
        "without": tried[0]["score"],
        "protocol": cfg.protocol,
        "cases": list(scores),
        "tried": sorted(tried, key=lambda row: -1.0 if row["score"] is None else row["score"], reverse=True),
    }
    _report(result, [_write(model.path, result) for model in models])
    return result


def _validation_cases(models: Sequence["TrainedModel"]) -> list[set[str]]:
    """Of each model the cases that validated it, without those that test any of the models."""
    splits = []
    for model in models:
        file = model.path.parent.parent / "split.json"
        if not file.is_file():
            raise ValueError(
                f"there is no {file}, which says which cases validate; give a checkpoint in its run folder: "
                "ckpt=<run folder>/checkpoints/best.ckpt"
            )
        splits.append(json.loads(file.read_text()))
    tested = {case for split in splits for case in split["test"]}
    validated = [set(split["val"]) - tested for split in splits]
    for model, part in zip(models, validated, strict=True):
        if not part:
            raise ValueError(f"{model.path}: no case validates this run and tests none; there is nothing to tune on")
    return validated


def _find(cfg: DictConfig, models: Sequence["TrainedModel"], wanted: Sequence[str]) -> list["Case"]:
    from brats_lightning.config.checkpoint import trained_cases
    from brats_lightning.data.cases import find_inputs
    from brats_lightning.synthetic.case_set import PhantomError

    if cfg.input is not None:
        found = find_inputs(cfg.input)
    else:
        try:
            found = trained_cases(models[0], tuple(cfg.trust))
        except (FileNotFoundError, PhantomError) as error:
            raise ValueError(f"{models[0].path}: its cases are not there; tell where: input=DIR ({error})") from error
    by_id = {case.id: case for case in found if case.mask is not None}
    if missing := [name for name in wanted if name not in by_id]:
        raise ValueError(
            f"{len(missing)} validation cases of the run are not there or have no mask: {', '.join(missing[:5])}"
            f"{' …' * (len(missing) > 5)}; tell where they are: input=DIR"
        )
    return [by_id[name] for name in wanted]


def _candidates(cfg: DictConfig, ensemble: "Ensemble") -> list["Postprocessing"]:
    """None, the grid's, the simplest first, then what the runs themselves were tested with."""
    from brats_lightning.config.checkpoint import own_postprocessing
    from brats_lightning.inference.postprocessing import Postprocessing

    if wrong := [f"{name}={values}" for name, values in cfg.grid.items() if not isinstance(values, ListConfig)]:
        raise ValueError(f"the values to try are lists, as in 'grid.core=[0.9]'; got grid.{', grid.'.join(wrong)}")
    pairs: list[tuple[float | None, float | None]] = [(None, None)]
    pairs += [(low, high) for low, high in itertools.product(cfg.grid.low, cfg.grid.high) if low <= high]
    cores, sizes = (sorted({0, *(value or 0 for value in cfg.grid[name])}) for name in ("core", "min_volume"))
    used = [own_postprocessing(model).decoding(ensemble.decode) for model in ensemble.models]
    common = {
        name: all(getattr(rule, name) for rule in used) if cfg[name] is None else cfg[name]
        for name in ("keep_surest", "require_core", "solid_core", "fill_holes")
    }
    rules = [
        Postprocessing(
            low=low,
            high=high,
            core=core or None,
            **common,
            min_volume=size or None,
            decode=ensemble.decode,
        )
        for size, core, (low, high) in itertools.product(sizes, cores, pairs)
    ]
    rules = [Postprocessing(decode=ensemble.decode), *rules, *used]
    return [rule for i, rule in enumerate(rules) if rule not in rules[:i]]


def _score_all(
    examination: "Examination", ensemble: "Ensemble", rules: Sequence["Postprocessing"], protocol: str
) -> list[dict[str, float]]:
    """Scores of one case under each of the rules."""
    from brats_lightning.core.geometry import GridTransform

    mask = examination.mask
    assert mask is not None  # required
    whole = GridTransform.whole(mask.grid)
    reference = whole.restore(whole.sample(mask.values, mask.start, order=0))
    probabilities = ensemble(ensemble.prepare(examination.images))
    transform = probabilities.transform
    known: dict[bytes, dict[str, float]] = {}
    scores = []
    for rule in rules:
        labels = rule(probabilities.values, transform.spacing, ensemble.scheme)
        same = hashlib.blake2b(labels.tobytes()).digest()  # many rules agree on many cases
        if same not in known:
            known[same] = _score(reference, transform.restore(labels), mask.grid.spacing, ensemble.scheme, protocol)
        scores.append(known[same])
    return scores


def _score(
    reference: "np.ndarray",
    prediction: "np.ndarray",
    spacing: Sequence[float],
    scheme: "LabelScheme",
    protocol: str,
) -> dict[str, float]:
    from brats_lightning.metrics.official import HEADLINES, score_case
    from brats_lightning.metrics.voxel import mean_without_nan

    column = next(iter(HEADLINES[protocol].values()))  # the lesion-wise Dice comes first
    table = score_case(reference, prediction, spacing, scheme, protocol)
    regions = {region: values[column] for region, values in table.items()}
    return {"score": mean_without_nan([regions[name] for name in scheme.headline_regions]), **regions}


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _write(checkpoint: Path, result: dict[str, Any]) -> Path:
    from brats_lightning.inference.postprocessing import tuned_file

    path = tuned_file(checkpoint)
    write_text(path, _HEADER + OmegaConf.to_yaml(OmegaConf.create(result)))
    return path


def _report(result: dict[str, Any], files: Sequence[Path]) -> None:
    from rich.table import Table

    from brats_lightning.runtime.console import show

    rows = result["tried"]
    table = Table(*rows[0], title=f"lesion-wise Dice, {result['protocol']}, {len(result['cases'])} validation cases")
    for row in rows[:10]:
        table.add_row(*("–" if value is None else str(value) for value in row.values()))
    show(table)
    log.info("chosen: %s · score %s, without %s", result["chosen"], result["score"], result["without"])
    log.info("written: %s", ", ".join(map(str, files)))


def main() -> None:
    """The command ``brats-tune``."""
    entry_point("tune", tune)()


if __name__ == "__main__":
    main()
