"""Predict masks: ``python -m brats_lightning.predict ckpt=A input=DIR output=DIR``; ``'ckpt=[A,B]'`` is an ensemble."""

import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from brats_lightning.config.build import build_part, input_cases
from brats_lightning.config.entry_point import entry_point
from brats_lightning.runtime.files import make_folder, write_json

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
    """
    from brats_lightning.config.checkpoint import affine_tolerance, load_ensemble
    from brats_lightning.config.postprocessing import as_config, trained_postprocessing
    from brats_lightning.data.cases import CaseError, check_files, problem_table, used_modalities
    from brats_lightning.data.nifti import read_header
    from brats_lightning.data.probabilities import Member, Record, write_probabilities
    from brats_lightning.inference.prediction import infer, write_mask
    from brats_lightning.inference.provenance import check_existing, identities, origin
    from brats_lightning.inference.summary import case_summary, report_masks
    from brats_lightning.runtime.console import progress_bar, show

    if cfg.on_bad_case not in ("error", "skip"):
        raise ValueError(f"on_bad_case must be error or skip, got {cfg.on_bad_case!r}")
    rules = build_part("postprocessing", cfg.get("postprocessing"))
    cases = _chosen(_cases(cfg), cfg)
    wanted = _wanted(cases, cfg)
    ensemble = load_ensemble(cfg)
    postprocess = (rules or trained_postprocessing(ensemble.models, tuple(cfg.trust))).decoding(ensemble.decode)
    log.info("post-processing%s: %s", "" if rules else " as in training", postprocess)
    for line in postprocess.lacking(ensemble.scheme):
        log.warning(line)
    tolerance = affine_tolerance(cfg, ensemble)
    make_folder(cfg.output)
    models = identities(ensemble)
    made_by = origin(models, postprocess)
    if not cfg.overwrite:
        check_existing({file: made_by for files in wanted.values() for file in files})

    summary: dict[str, Any] = {"cases": {}, "existing": []}
    problems: list[Problem] = []
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(cases))
        for number, case in enumerate(cases, 1):
            modalities = used_modalities(case, ensemble.modalities, ensemble.optional)
            if faults := check_files(case, modalities, need_mask=False):
                problems += faults
            elif not cfg.overwrite and all(file.exists() for file in wanted[case.id]):
                summary["existing"].append(case.id)
            else:
                started = time.monotonic()
                found = infer(case, ensemble, tolerance, lambda fraction: bar.advance(task, fraction))
                if isinstance(found, list):
                    problems += found
                else:
                    labels = postprocess(found.values, found.transform.spacing, ensemble.scheme)
                    header = read_header(case.images[modalities[0]], case.volumes.get(modalities[0]))
                    mask_file, *probability_files = wanted[case.id]
                    make_folder(mask_file.parent)
                    for probability_file in probability_files:
                        parts = [model.part_of(case.id) for model in ensemble.models]
                        network = ensemble.scheme.names, ensemble.decode, header, tuple(map(Member, models, parts))
                        record = Record(case.id, *network, as_config(postprocess), made_by)
                        write_probabilities(probability_file, found, record)
                    write_mask(mask_file, found.transform.restore(labels), header, made_by)
                    seconds = round(time.monotonic() - started, 1)
                    summary["cases"][case.id] = case_summary(labels, found, ensemble.scheme) | {"seconds": seconds}
            bar.update(task, completed=number)
            if bar.disable:
                log.info("%s: case %d of %d", case.id, number, len(cases))

    summary["problems"] = list(map(asdict, problems))
    report_masks(summary["cases"], len(summary["existing"]), problems, ensemble.scheme, Path(cfg.output))
    if cfg.summary is not None:
        write_json(make_folder(Path(cfg.summary).parent) / Path(cfg.summary).name, summary)
    if problems and cfg.on_bad_case == "error":
        raise CaseError(problems)
    if problems:
        show(problem_table(problems))
    return summary


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
