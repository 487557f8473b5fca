"""Choose post-processing on held-out cases: ``python -m brats_lightning.tune ckpt=A``, or ``probabilities=DIR``."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from brats_lightning.config.build import build_part, check_not_negative, data_set, data_set_cases, input_cases
from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import check_writable, write_text

if TYPE_CHECKING:
    from brats_lightning.data.cases import Case
    from brats_lightning.inference.ensemble import TrainedModel
    from brats_lightning.inference.postprocessing import Postprocessing
    from brats_lightning.inference.tuning import RuleScores

log = logging.getLogger(__name__)

_HEADER = """\
# Post-processing chosen by brats_lightning.tune; use it with:  python -m brats_lightning.predict … postprocessing=tuned
"""


def tune(cfg: DictConfig) -> dict[str, Any]:
    """Score every combination of the grid, lesion-wise, on held-out cases; test cases are never opened.

    These are the validation cases of checkpoints, each predicted by the mean of the models that have it among their
    validation cases; or cases whose probabilities are saved. The score of a combination is the mean over cases of the
    mean lesion-wise Dice over ET, TC and WT (over all regions of a scheme without them). Of several with the same score
    the simplest is chosen.

    Args:
        cfg: a resolved config as ``conf/tune.yaml`` composes it.

    Returns:
        The content of ``<checkpoint>_postprocessing.yaml`` beside each checkpoint, or of ``postprocessing.yaml`` in the
        folder of probabilities: ``chosen``, its ``score``, the score ``without`` any step, the ``gain`` and whether it
        is within noise, the ``protocol``, the ``cases``, the settings on which the number of ``components`` depends,
        and all combinations ``tried`` with their scores and gains.

    Raises:
        ValueError: no record of the split, or cases that cannot be found.
        CaseError: cases that cannot be read, or that a model was trained or is tested on.
        UnwritableFile: the choice cannot be written to its place; this is found before anything is tried.
    """
    from brats_lightning.config.postprocessing import as_config, tuned_file
    from brats_lightning.evaluation.bootstrap import Bootstrap
    from brats_lightning.evaluation.choice import Tried, report_choice
    from brats_lightning.inference.postprocessing.grid import counting_settings, settings_of
    from brats_lightning.metrics.official import PROTOCOLS

    if cfg.protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {cfg.protocol!r}")
    check_not_negative(cfg, "resamples", "seed")
    if (cfg.ckpt is None) == (cfg.probabilities is None):
        raise ValueError("give the checkpoints whose validation cases choose, ckpt=…, or saved probabilities=…")
    rules, scores, sources = _by_checkpoints(cfg) if cfg.probabilities is None else _by_probabilities(cfg)
    tried = Tried(list(map(settings_of, rules)), scores, cfg.protocol, counting_settings(rules))
    result = {"chosen": as_config(rules[tried.chosen])} | tried.summary(Bootstrap(cfg.resamples, cfg.seed))
    files = [tuned_file(source) for source in sources]
    for file in files:
        write_text(file, _HEADER + OmegaConf.to_yaml(OmegaConf.create(result)))
    report_choice(result)
    log.info("written: %s", ", ".join(map(str, files)))
    return result


# The rules, no step first; case → its scores under each; the checkpoints, or the folders of probabilities.
_Scores = tuple[list["Postprocessing"], dict[str, "RuleScores"], Sequence[Path]]


def _by_checkpoints(cfg: DictConfig) -> "_Scores":
    """The scores of validation cases that the models predict now."""
    from brats_lightning.config.checkpoint import affine_tolerance, load_ensemble
    from brats_lightning.config.postprocessing import own_postprocessing
    from brats_lightning.core.labels import with_ignored
    from brats_lightning.data.cases import CaseError, check_files, examine, required, used_modalities
    from brats_lightning.inference.prediction import probabilities_of
    from brats_lightning.inference.tuning import score_rules
    from brats_lightning.runtime.console import progress_bar

    ensemble = load_ensemble(cfg)
    sources = [Path(path) for path in ([cfg.ckpt] if isinstance(cfg.ckpt, str) else cfg.ckpt)]
    _check_writable(sources)
    models, scheme = ensemble.models, ensemble.scheme
    tolerance = affine_tolerance(cfg, ensemble)
    validated = _validation_cases(models)
    cases = _find(cfg, models, sorted(set().union(*validated)))
    data = cfg.data if data_set(cfg) else models[0].config["data"]
    label_map = with_ignored(data["label_map"], data["ignore_label"], scheme)
    rules = _candidates(cfg, [own_postprocessing(model, tuple(cfg.trust)) for model in models], ensemble.decode)
    log.info("%d combinations on %d validation cases, %s", len(rules), len(cases), cfg.protocol)
    scores: dict[str, RuleScores] = {}
    problems = []
    with progress_bar() as bar:
        task = bar.add_task("tuning", total=len(cases))
        for number, case in enumerate(cases, 1):
            examination = examine(case, scheme, label_map, tolerance)
            modalities = used_modalities(case, ensemble.modalities, ensemble.optional)
            named = check_files(case, modalities, need_mask=True)
            if faults := named + required(examination.problems, modalities, need_mask=True):
                problems += faults
            elif not problems:  # else the others are checked, too, and nothing is chosen
                chosen = [number for number, part in enumerate(validated) if case.id in part]
                members = ensemble.only(chosen)
                found, mask = probabilities_of(case.id, members.prepare(examination.images), members), examination.mask
                assert mask is not None  # `required` has checked it
                if isinstance(found, list):
                    problems += found
                else:
                    scores[case.id] = score_rules(found, mask, rules, scheme, cfg.protocol)
            bar.update(task, completed=number)
            if bar.disable:
                log.info("%s: case %d of %d", case.id, number, len(cases))
    if problems:
        raise CaseError(problems)
    return rules, scores, sources


def _check_writable(sources: Sequence[Path]) -> None:
    from brats_lightning.config.postprocessing import tuned_file

    for folder in {tuned_file(source).parent for source in sources}:
        check_writable(folder)


def _by_probabilities(cfg: DictConfig) -> "_Scores":
    """The scores of cases whose probabilities are saved."""
    from brats_lightning.config.postprocessing import all_recorded
    from brats_lightning.core.labels import with_ignored
    from brats_lightning.data.cases import CaseError
    from brats_lightning.evaluation.pairing import references_of
    from brats_lightning.inference.decoding import saved_cases
    from brats_lightning.inference.tuning import not_held_out, score_cases

    given = [cfg.probabilities] if isinstance(cfg.probabilities, str) else list(cfg.probabilities)
    folders = [Path(folder).expanduser() for folder in given]
    cases, problems = saved_cases(folders)
    _check_writable(folders)
    problems += [problem for case in cases for problem in not_held_out(case, cfg.held_out)]
    if cfg.references is None:
        raise ValueError("say where the masks of the cases are: references=DIR, or a data set")
    listed = data_set_cases(cfg, "references") if data_set(cfg) else None
    masks, missing = references_of([case.id for case in cases], Path(cfg.references).expanduser(), listed)
    if problems := problems + missing:
        raise CaseError(problems)
    records = [record for case in cases for record in case.records]
    label_map = with_ignored(cfg.data.label_map, cfg.data.ignore_label, records[0].scheme)
    rules = _candidates(cfg, list(all_recorded(records, tuple(cfg.trust)).values()), records[0].decode)
    log.info("%d combinations on %d cases with saved probabilities, %s", len(rules), len(cases), cfg.protocol)
    tolerance = cfg.data.affine_tolerance if cfg.affine_tolerance is None else cfg.affine_tolerance
    scores = score_cases(cases, masks, label_map, tolerance, rules, cfg.protocol, cfg.processes)
    return rules, scores, folders


def _validation_cases(models: Sequence["TrainedModel"]) -> list[set[str]]:
    """The validation cases of each model, without those that are test cases of any model."""
    for model in models:
        if model.split is None:
            raise ValueError(
                f"there is no {model.path.parent.parent / 'split.json'}, which lists the validation cases; give a "
                "checkpoint in its run folder: ckpt=<run folder>/checkpoints/best.ckpt"
            )
        if model.seen is None:
            log.warning("%s: what its weights were trained on before its run is not known", model.path)
    tested = {case for model in models for case in (model.split or {}).get("test", ())}
    validated = [
        {case for case in (model.split or {}).get("val", ()) if model.part_of(case) != "train"} - tested
        for model in models
    ]
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


def _candidates(cfg: DictConfig, used: Sequence["Postprocessing"], decode: str) -> list["Postprocessing"]:
    from brats_lightning.inference.postprocessing import Postprocessing
    from brats_lightning.inference.postprocessing.grid import candidates

    steps = Postprocessing(build_part("postprocessing", cfg.postprocessing.steps, _convert_="all")).steps
    grid: Any = OmegaConf.to_container(cfg.grid)
    return candidates(steps, grid, used, decode)


main = partial(entry_point, "tune", tune)

if __name__ == "__main__":
    main()
