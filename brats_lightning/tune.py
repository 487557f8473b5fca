"""Choose post-processing on a run's validation cases: ``python -m brats_lightning.tune ckpt=A``."""

import hashlib
import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.build import build_part, data_set, input_cases
from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import write_text

if TYPE_CHECKING:
    from brats_lightning.data.cases import Case, Examination
    from brats_lightning.inference.ensemble import Ensemble, TrainedModel
    from brats_lightning.inference.postprocessing import Postprocessing, Step

log = logging.getLogger(__name__)

_HEADER = """\
# Post-processing chosen by brats_lightning.tune; use it with:  python -m brats_lightning.predict … postprocessing=tuned
"""


def tune(cfg: DictConfig) -> dict[str, Any]:
    """Score every combination of the grid, lesion-wise, on the validation cases; test cases are never opened.

    A case is predicted by the mean of the models that have it among their validation cases. The score of a combination
    is the mean over cases of the mean lesion-wise Dice over ET, TC and WT (over all regions of a scheme without them).
    Of several with the same score the simplest is chosen.

    Args:
        cfg: a resolved config as ``conf/tune.yaml`` composes it.

    Returns:
        The content of ``<checkpoint>_postprocessing.yaml`` beside each checkpoint: ``chosen``, its ``score``, the score
        ``without`` any step, the ``protocol``, the ``cases`` and all combinations ``tried`` with their scores.

    Raises:
        ValueError: no record of the split, or cases that cannot be found.
        CaseError: cases that cannot be read.
    """
    from brats_lightning.config.checkpoint import affine_tolerance, load_ensemble
    from brats_lightning.config.postprocessing import as_config, tuned_file
    from brats_lightning.core.labels import with_ignored
    from brats_lightning.data.cases import CaseError, check_files, examine, required, used_modalities
    from brats_lightning.inference.ensemble import Ensemble
    from brats_lightning.metrics.official import PROTOCOLS, mean_without_nan
    from brats_lightning.runtime.console import progress_bar

    if cfg.protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {cfg.protocol!r}")
    ensemble = load_ensemble(cfg)
    models, scheme = ensemble.models, ensemble.scheme
    tolerance = affine_tolerance(cfg, ensemble)
    validated = _validation_cases(models)
    cases = _find(cfg, models, sorted(set().union(*validated)))
    data = cfg.data if data_set(cfg) else models[0].config["data"]
    label_map = with_ignored(data["label_map"], data["ignore_label"], scheme)
    rules = _candidates(cfg, ensemble)
    log.info("%d combinations on %d validation cases, %s", len(rules), len(cases), cfg.protocol)

    scores: dict[str, list[dict[str, float]]] = {}
    problems = []
    with progress_bar() as bar:
        task = bar.add_task("tuning", total=len(cases))
        for number, case in enumerate(cases, 1):
            examination = examine(case, scheme, label_map, tolerance)
            modalities = used_modalities(case, ensemble.modalities, ensemble.optional)
            named = check_files(case, modalities, need_mask=True)
            if faults := named + required(examination.problems, modalities, need_mask=True):
                problems += faults
            else:
                chosen = [model for model, part in zip(models, validated, strict=True) if case.id in part]
                members = Ensemble(chosen, ensemble.device, ensemble.dtype)
                scores[case.id] = _score_all(examination, members, rules, cfg.protocol)
            bar.update(task, completed=number)
            if bar.disable:
                log.info("%s: case %d of %d", case.id, number, len(cases))
    if problems:
        raise CaseError(problems)

    tried: list[dict[str, Any]] = []
    for rule, per_case in zip(rules, zip(*scores.values(), strict=True), strict=True):
        means = {name: mean_without_nan([case[name] for case in per_case]) for name in per_case[0]}
        rounded = {name: None if math.isnan(value) else round(value, 6) for name, value in means.items()}
        tried.append({"steps": _parameters(rule), **rounded})
    order = sorted(range(len(rules)), key=lambda i: 1.0 if tried[i]["score"] is None else -tried[i]["score"])
    result = {
        "chosen": as_config(rules[order[0]]),
        "score": tried[order[0]]["score"],
        "without": tried[0]["score"],
        "protocol": cfg.protocol,
        "cases": list(scores),
        "tried": [tried[index] for index in order],
    }
    files = [tuned_file(model.path) for model in models]
    for file in files:
        write_text(file, _HEADER + OmegaConf.to_yaml(OmegaConf.create(result)))
    _report(result, files)
    return result


def _validation_cases(models: Sequence["TrainedModel"]) -> list[set[str]]:
    """The validation cases of each model, without those that are test cases of any model."""
    from brats_lightning.data.splits import read_split

    splits = []
    for model in models:
        file = model.path.parent.parent / "split.json"
        if not file.is_file():
            raise ValueError(
                f"there is no {file}, which lists the validation cases; give a checkpoint in its run folder: "
                "ckpt=<run folder>/checkpoints/best.ckpt"
            )
        splits.append(read_split(file, "ckpt"))
    tested = {case for split in splits for case in split["test"]}
    validated = [set(split["val"]) - tested for split in splits]
    for model, part in zip(models, validated, strict=True):
        if not part:
            raise ValueError(f"{model.path}: its run has no validation case that is not a test case of some model")
    return validated


def _find(cfg: DictConfig, models: Sequence["TrainedModel"], wanted: Sequence[str]) -> list["Case"]:
    from brats_lightning.config.allow_list import CheckpointError
    from brats_lightning.config.checkpoint import trained_cases

    if cfg.input is not None:
        found = input_cases(cfg)
    else:
        try:
            found = trained_cases(models[0], tuple(cfg.trust))
        except CheckpointError:
            raise
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{models[0].path}: its cases are not there; say where: input=DIR ({error})") from error
    by_id = {case.id: case for case in found if case.mask is not None}
    if missing := [name for name in wanted if name not in by_id]:
        raise ValueError(
            f"{len(missing)} validation cases of the run are not there or have no mask: {', '.join(missing[:5])}"
            f"{' …' * (len(missing) > 5)}; say where they are: input=DIR"
        )
    return [by_id[name] for name in wanted]


def _candidates(cfg: DictConfig, ensemble: "Ensemble") -> list["Postprocessing"]:
    """No step, then the grid's combinations, the simplest first, then the rules of the runs themselves."""
    from brats_lightning.config.postprocessing import own_postprocessing
    from brats_lightning.inference.postprocessing import Postprocessing

    steps = Postprocessing(build_part("postprocessing", cfg.postprocessing.steps, _convert_="all")).steps
    used = [own_postprocessing(model, tuple(cfg.trust)).decoding(ensemble.decode) for model in ensemble.models]
    first, *others = [rules.steps for rules in used]
    common = {name: step for name, step in first.items() if all(other.get(name) == step for other in others)}
    order, place = list(steps), 0
    for name in common:  # steps that only the runs know keep their place behind their predecessor
        if name not in order:
            order.insert(place, name)
        place = order.index(name) + 1
    known = {**steps, **common}
    grid = _grid(OmegaConf.to_container(cfg.grid), known)
    versions = [_versions(known[name], grid[name]) if name in grid else [common.get(name)] for name in order]
    rules = [Postprocessing(decode=ensemble.decode)]
    for combined in itertools.product(*reversed(versions)):  # the first step varies fastest
        rules.append(Postprocessing(dict(zip(order, reversed(combined), strict=True)), ensemble.decode))
    return list({str(rule): rule for rule in [*rules, *used]}.values())


def _grid(node: Any, steps: Mapping[str, "Step"]) -> dict[str, dict[str, list[Any]]]:
    """Step → parameter, or "" for the step itself → the values to try, without those that are null."""
    known = [*steps, *(f"{name}.{key}" for name, step in steps.items() for key in vars(step))]
    grid: dict[str, dict[str, list[Any]]] = {}
    for name, varied in node.items():
        for key, values in (varied if isinstance(varied, dict) else {"": varied}).items():
            where = f"{name}.{key}".rstrip(".")
            if values is None:
                continue
            if not isinstance(values, list):
                raise ValueError(f"grid.{where}={values}: the values to try are a list, e.g. 'grid.{where}=[{values}]'")
            if where not in known:
                raise ValueError(f"grid.{where} is not among the steps and parameters: {', '.join(known)}")
            grid.setdefault(name, {})[key] = values
    return grid


def _versions(step: "Step", values: dict[str, list[Any]]) -> list["Step | None"]:
    """The versions of a step that are tried; None leaves it out."""
    from brats_lightning.inference.postprocessing import PostprocessingError

    if "" in values:
        return [step if take else None for take in values[""]]
    versions: list[Step] = []
    refused = []
    for chosen in itertools.product(*values.values()):
        try:
            versions.append(replace(step, **dict(zip(values, chosen, strict=True))))
        except PostprocessingError as error:  # such as a peak below the threshold
            refused.append(error)
    if refused and not versions:
        raise refused[0]
    for reason in refused:
        log.warning("not tried: %s", reason)
    return [None, *versions]


def _score_all(
    examination: "Examination", ensemble: "Ensemble", rules: Sequence["Postprocessing"], protocol: str
) -> list[dict[str, float]]:
    """Scores of one case under each of the rules."""
    from brats_lightning.metrics.official import headline_columns, mean_without_nan, score_case

    column = headline_columns(protocol)[0]  # the lesion-wise Dice
    mask = examination.mask
    assert mask is not None  # `required` has checked it
    reference = mask.whole()
    probabilities = ensemble(ensemble.prepare(examination.images))
    transform = probabilities.transform
    known: dict[bytes, dict[str, float]] = {}
    scores = []
    for rule in rules:
        labels = rule(probabilities.values, transform.spacing, ensemble.scheme)
        same = hashlib.blake2b(labels.tobytes()).digest()  # many rules give the same labels
        if same not in known:
            prediction = transform.restore(labels)
            table = score_case(reference, prediction, mask.grid.zooms, ensemble.scheme, protocol)
            regions = {region: values[column] for region, values in table.items()}
            mean = mean_without_nan([regions[name] for name in ensemble.scheme.headline_regions])
            known[same] = {"score": mean, **regions}
        scores.append(known[same])
    return scores


def _parameters(rules: "Postprocessing") -> dict[str, Any]:
    """Dotted name → value of each parameter that is set; a step without any is True."""
    found: dict[str, Any] = {}
    for name, step in rules.steps.items():
        values = {
            f"{name}.{key}": value for key, value in vars(step).items() if value is not None and value is not False
        }
        found |= values or {name: True}
    return found


def _report(result: dict[str, Any], files: Sequence[Path]) -> None:
    from brats_lightning.runtime.console import show, table_of

    rows = result["tried"]
    parameters, scores = list(dict.fromkeys(name for row in rows for name in row["steps"])), list(rows[0])[1:]
    title = f"lesion-wise Dice, {result['protocol']}, {len(result['cases'])} cases, best 10 of {len(rows)}"
    cells = [[*map(row["steps"].get, parameters), *map(row.get, scores)] for row in rows[:10]]
    text = (["–" if value is None else value for value in row] for row in cells)
    show(table_of([*parameters, *scores], text, title))
    log.info("chosen: %s · score %s, without post-processing %s", rows[0]["steps"], result["score"], result["without"])
    log.info("written: %s", ", ".join(map(str, files)))


main = partial(entry_point, "tune", tune)

if __name__ == "__main__":
    main()
