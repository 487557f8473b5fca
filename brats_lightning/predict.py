"""Predict masks: ``python -m brats_lightning.predict ckpt=A input=DIR output=DIR``; ``'ckpt=[A,B]'`` is an ensemble."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from brats_lightning.config.build import input_cases
from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder, remove_leftovers

if TYPE_CHECKING:
    from brats_lightning.data.cases import Case, Problem

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> dict[str, Any]:
    """Predict all cases below the input folders; each mask is written in its input's own geometry.

    Args:
        cfg: a resolved config as ``conf/predict.yaml`` composes it.

    Returns:
        ``cases``: by id, for each region its ``lesions`` (26-connected components), ``volume_ml`` and, for each lesion,
        ``confidence``; the fraction of the box around its brain that is ``labelled``; and the ``seconds`` it took.
        ``existing``: ids of cases that the same models and post-processing predicted earlier. ``problems``: of
        the cases left out.

    Raises:
        CaseError: there are faulty cases, and ``on_bad_case`` is ``error``. The others are still predicted.
        CheckpointError: a checkpoint that cannot be used.
        ForeignMasks: the output holds masks that other models or post-processing made, and ``overwrite`` is false.
        SplitError: a split file that cannot be used, or cases of it that are missing.
        DeadWorker: one of several processes was ended from outside; what is written stays.
    """
    from brats_lightning.config.prediction import load_predictor
    from brats_lightning.data.cases import check_files, used_modalities
    from brats_lightning.inference.prediction import by_processes
    from brats_lightning.inference.provenance import check_existing, tell_outdated
    from brats_lightning.inference.summary import conclude
    from brats_lightning.runtime.console import progress_bar
    from brats_lightning.runtime.device import check_settings

    if cfg.on_bad_case not in ("error", "skip"):
        raise ValueError(f"on_bad_case must be error or skip, got {cfg.on_bad_case!r}")
    check_settings(cfg.device, cfg.devices, cfg.precision)
    cases = _chosen(_cases(cfg), cfg)
    wanted = _wanted(cases, cfg)
    predictor = load_predictor(cfg)
    ensemble = predictor.ensemble
    for line in predictor.rules.lacking(ensemble.scheme):
        log.warning(line)
    make_folder(cfg.output)
    for folder in {file.parent for files in wanted.values() for file in files}:
        remove_leftovers(folder)
    if not cfg.overwrite:
        check_existing({file: predictor.made_by for files in wanted.values() for file in files})

    existing: list[str] = []
    problems: list[Problem] = []
    todo: dict[str, tuple[Case, Sequence[Path]]] = {}
    for case in cases:
        modalities = used_modalities(case, ensemble.modalities, ensemble.optional)
        if faults := check_files(case, modalities, need_mask=False):
            problems += faults
        elif not cfg.overwrite and all(file.exists() for file in wanted[case.id]):
            existing.append(case.id)
        else:
            todo[case.id] = case, wanted[case.id]
    tell_outdated({wanted[case.id][0]: case.images.values() for case in cases if case.id in set(existing)})

    done: dict[str, Any] = {}
    processes = min(cfg.devices, len(todo))
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(todo))
        if processes > 1:
            outcomes = by_processes(partial(load_predictor, cfg), processes, todo)
        else:
            outcomes = predictor.each(todo, lambda fraction: bar.advance(task, fraction))
        with closing(outcomes):
            for number, (name, outcome) in enumerate(outcomes, 1):
                problems += outcome.problems
                for remark in outcome.remarks:
                    log.warning("%s: %s", name, remark)
                if outcome.summary is not None:
                    done[name] = outcome.summary
                if processes > 1 or outcome.summary is None:
                    bar.advance(task)
                if bar.disable:
                    log.info("%s: case %d of %d", name, number, len(todo))

    order = [case.id for case in cases]
    problems.sort(key=lambda problem: order.index(problem.case))
    done = {name: done[name] for name in todo if name in done}
    file, skip = cfg.summary and Path(cfg.summary), cfg.on_bad_case == "skip"
    return conclude(done, existing, problems, ensemble.scheme, Path(cfg.output), file, skip)


def _wanted(cases: Sequence["Case"], cfg: DictConfig) -> dict[str, list[Path]]:
    """Case → the files to write: its mask and, if asked for, its probabilities.

    Raises:
        ValueError: two cases have one name, or the files would replace the input's or be taken for some of it.
    """
    from brats_lightning.data.probabilities import ENDING

    if cfg.names not in ("id", "layout"):
        raise ValueError(f"names must be id or layout, got {cfg.names!r}")
    output = Path(cfg.output)
    ends = (".nii.gz", ENDING) if cfg.probabilities else (".nii.gz",)
    names = {case.id: case.mask_name.removesuffix(".nii.gz") if cfg.names == "layout" else case.id for case in cases}
    names = {case: name or case for case, name in names.items()}
    count = Counter(names.values())
    if twice := [case for case, name in names.items() if count[name] > 1]:
        raise ValueError(f"names=layout: {' and '.join(twice[:2])} would both be {names[twice[0]]}; set names=id")
    wanted = {case: [output / f"{name}{end}" for end in ends] for case, name in names.items()}
    files = {os.path.realpath(file) for case in cases for file in case.files.values()}
    if taken := [file for own in wanted.values() for file in own if os.path.realpath(file) in files]:
        raise ValueError(f"output: {taken[0]} is a file of the input, which is never changed; choose another output")
    for root in [cfg.input] if isinstance(cfg.input, str) else cfg.input or ():
        folder = Path(root).parent if Path(root).is_file() else Path(root)
        if cfg.names == "layout" and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder)):
            raise ValueError(
                f"output={output} lies in {folder}, where masks named as there would be taken for references; choose a "
                "folder outside, or names=id"
            )
    return wanted


def _cases(cfg: DictConfig) -> Sequence["Case"]:
    """The cases of the config, or, with a split alone, those of the run of the first checkpoint."""
    from brats_lightning.config.checkpoint import load_model, trained_cases
    from brats_lightning.config.ensemble_file import ensemble_members

    if cfg.input is not None:
        return input_cases(cfg)
    if cfg.split is None:
        raise ValueError("input=null takes the cases of the checkpoint's run; say which: split=RUN/split.json part=val")
    first = ensemble_members([cfg.ckpt] if isinstance(cfg.ckpt, str) else cfg.ckpt)[0]
    return trained_cases(load_model(first.ckpt, tuple(cfg.trust)), tuple(cfg.trust))


def _chosen(cases: Sequence["Case"], cfg: DictConfig) -> Sequence["Case"]:
    """The cases of the config's split, or all if it names none."""
    from brats_lightning.data.splits import SplitError, cases_of_part

    if cfg.split is None:
        return cases
    wanted = cases_of_part(Path(cfg.split), cfg.part)
    if absent := sorted(set(wanted) - {case.id for case in cases}):
        raise SplitError(f"split: {cfg.split} lists cases under {cfg.part} that are not in input: {', '.join(absent)}")
    return [case for case in cases if case.id in set(wanted)]


main = partial(entry_point, "predict", predict)

if __name__ == "__main__":
    main()
