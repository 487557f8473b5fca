"""Masks of new cases: ``python -m brats_lightning.predict ckpt=A input=DIR output=DIR``; ``'ckpt=[A,B]'`` averages."""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from brats_lightning.composition import build_part
from brats_lightning.entry_point import entry_point
from brats_lightning.runtime.files import make_folder, write_text

if TYPE_CHECKING:
    import numpy as np
    import torch

    from brats_lightning.data.cases import Case, Problem
    from brats_lightning.inference import Advance, Ensemble, Probabilities
    from brats_lightning.labels import LabelScheme

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> dict[str, Any]:
    """Predict all cases below the input folders; labels are written in each input's own geometry.

    Args:
        cfg: a resolved config as ``conf/predict.yaml`` composes it.

    Returns:
        ``cases``: by id, for each region its ``lesions`` (26-connected components) and ``volume_ml``, and the
        ``seconds`` it took; ``existing``: ids that the same models and rules had predicted before; ``problems``: of the
        cases left out.

    Raises:
        CaseError: there are faulty cases, and ``on_bad_case`` is ``error``. The others are predicted all the same.
        CheckpointError: a checkpoint that cannot be used.
        ForeignMasks: some cases have masks of other models or rules in the output, and ``overwrite`` is false.
        SplitError: a split file that cannot be used, or cases of it that are not there.
    """
    from brats_lightning.checkpoint import trained_postprocessing
    from brats_lightning.data.cases import CaseError, check_files
    from brats_lightning.provenance import check_existing, origin

    if cfg.on_bad_case not in ("error", "skip"):
        raise ValueError(f"on_bad_case must be error or skip, got {cfg.on_bad_case!r}")
    chosen = cfg.get("postprocessing")
    rules = build_part("postprocessing", chosen)
    cases = _chosen(find_inputs(cfg.input), cfg)
    ensemble = load_ensemble(cfg)
    rules = rules or trained_postprocessing(ensemble.models)
    postprocess = rules.decoding(ensemble.decode)
    log.info("post-processing%s: %s", " as in training" if chosen is None else "", postprocess)
    tolerance = affine_tolerance(cfg, ensemble)
    output = make_folder(Path(cfg.output))
    ends = (".nii.gz", "_probabilities.nii.gz") if cfg.probabilities else (".nii.gz",)
    wanted = {case.id: [output / f"{case.id}{end}" for end in ends] for case in cases}
    made_by = origin(ensemble, postprocess)
    if not cfg.overwrite:
        check_existing([file for files in wanted.values() for file in files], made_by)

    done: dict[str, Any] = {}
    existing: list[str] = []
    problems: list[Problem] = []
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(cases))
        for number, case in enumerate(cases, 1):
            mask_file, *probability_files = wanted[case.id]
            faults = check_files(case, ensemble.modalities, need_mask=False)
            if faults:
                problems += faults
            elif not cfg.overwrite and all(file.exists() for file in wanted[case.id]):
                existing.append(case.id)
            else:
                started = time.monotonic()
                found = infer(case, ensemble, tolerance, lambda share: bar.advance(task, share))
                if isinstance(found, list):
                    problems += found
                else:
                    labels = postprocess(found.values, found.placement.spacing, ensemble.scheme)
                    header_of = case.images[ensemble.modalities[0]]
                    for probability_file in probability_files:
                        write_probabilities(probability_file, found, header_of, str(made_by))
                    write_mask(mask_file, found.placement.restore(labels), header_of, str(made_by))
                    done[case.id] = region_sizes(labels, found.placement.spacing, ensemble.scheme)
                    done[case.id]["seconds"] = round(time.monotonic() - started, 1)
            bar.update(task, completed=number)

    summary = {"cases": done, "existing": existing, "problems": [problem.to_dict() for problem in problems]}
    _report(summary, problems, cfg, ensemble.scheme)
    if problems and cfg.on_bad_case == "error":
        raise CaseError(problems)
    return summary


def _chosen(cases: Sequence["Case"], cfg: DictConfig) -> Sequence["Case"]:
    """Those of the config's split, if it names one."""
    from brats_lightning.data.splits import SplitError, cases_of_part

    if cfg.split is None:
        return cases
    wanted = cases_of_part(Path(cfg.split), cfg.part)
    if absent := sorted(set(wanted) - {case.id for case in cases}):
        raise SplitError(f"split: {cfg.split} lists under {cfg.part} what is not in input: {', '.join(absent)}")
    return [case for case in cases if case.id in set(wanted)]


def find_inputs(folders: str | Sequence[str] | ListConfig) -> list["Case"]:
    """The cases below one or several folders, sorted by id.

    Raises:
        ValueError: a folder does not exist or holds no case, or two folders hold cases of one name.
    """
    from brats_lightning.data.cases import find_cases

    cases: dict[str, Case] = {}
    for folder in [folders] if isinstance(folders, str) else folders:
        try:
            found = find_cases(folder)
        except (FileNotFoundError, ValueError) as error:
            layout = "expected folders with <case>-t1n.nii.gz, -t1c, -t2w, -t2f"
            raise ValueError(f"input: there is no case in {folder}; {layout}, however nested") from error
        for case in found:
            if case.id in cases:
                raise ValueError(f"input: the case {case.id} is in two of the folders; leave one of them out")
            cases[case.id] = case
    return [cases[name] for name in sorted(cases)]


def load_ensemble(cfg: DictConfig) -> "Ensemble":
    """The models of ``ckpt`` with ``inference``'s overrides, on the ``device`` and at the ``precision`` of a config."""
    from brats_lightning.checkpoint import load_model
    from brats_lightning.inference import Ensemble
    from brats_lightning.memory import keep_freed_memory

    keep_freed_memory()
    paths = [cfg.ckpt] if isinstance(cfg.ckpt, str) else cfg.ckpt
    overrides: Any = OmegaConf.to_container(cfg.inference)
    models = [load_model(path, tuple(cfg.trust), overrides) for path in paths]
    device = _device(cfg.device)
    dtype = _autocast(cfg.precision, device)
    log.info("%d model(s) on %s, %s", len(models), device, "32 bits" if dtype is None else dtype)
    return Ensemble(models, device, dtype)


def affine_tolerance(cfg: DictConfig, ensemble: "Ensemble") -> float:
    """The config's, else what the models were trained with."""
    if cfg.affine_tolerance is not None:
        return float(cfg.affine_tolerance)
    return float(max(model.config["data"]["affine_tolerance"] for model in ensemble.models))


def _device(name: str) -> "torch.device":
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name != "auto" and name not in available:
        raise ValueError(f"device must be auto, {', '.join(available)}, got {name!r}")
    chosen = name if name != "auto" else "cuda" if available["cuda"] else "cpu"
    if not available[chosen]:
        raise ValueError(f"device={name}, but torch finds no GPU for it; device=cpu works everywhere")
    return torch.device(chosen)


def _autocast(precision: str | int, device: "torch.device") -> "torch.dtype | None":
    import torch

    from brats_lightning.composition import fastest_precision

    chosen = fastest_precision(device.type) if precision == "auto" else str(precision)
    types = {"bf16": torch.bfloat16, "16": torch.float16, "32": None}
    try:
        return types[chosen.partition("-")[0]]
    except KeyError:
        raise ValueError(f"precision must be auto, {', '.join(types)}, got {precision!r}") from None


def infer(
    case: "Case", ensemble: "Ensemble", tolerance: float, advance: "Advance | None" = None
) -> "Probabilities | list[Problem]":
    """Probabilities of one case, or what is wrong with its images; only those that are used are read."""
    from brats_lightning.data.cases import examine, required

    images = {modality: case.images[modality] for modality in ensemble.modalities}
    examination = examine(replace(case, images=images, mask=None), ensemble.scheme, None, tolerance)
    if problems := required(examination.problems, ensemble.modalities, need_mask=False):
        return problems
    for remark in examination.remarks:
        log.warning("%s: %s", case.id, remark)
    prepared = ensemble.prepare(examination.images)
    del examination, images  # the volumes: their codes are enough
    return ensemble(prepared, advance)


def write_mask(path: Path, labels: "np.ndarray", header_of: Path, description: str = "") -> None:
    """Write labels (x, y, z) as uint8 with another file's shape, affine and header codes; all at once or not at all."""
    from brats_lightning.data.nifti import image_like, read_header, write_nifti

    header = read_header(header_of)
    write_nifti(path, image_like(header, labels.reshape(header.shape), description=description))


def write_probabilities(path: Path, probabilities: "Probabilities", header_of: Path, description: str = "") -> None:
    """Write class probabilities (x, y, z, k) on the original grid, as 16-bit steps of 1/65535.

    Readers scale them back to 0 … 1 by the header; half of float32's size and exact to 8e-6.
    """
    import numpy as np

    from brats_lightning.data.nifti import image_like, read_header, write_nifti

    restore = probabilities.placement.restore
    steps = [
        restore(np.rint(p * 65535).astype(np.uint16), fill=65535 * (k == 0)) for k, p in enumerate(probabilities.values)
    ]
    image = image_like(read_header(header_of), np.stack(steps, axis=-1), 1 / 65535, description)
    write_nifti(path, image)


def region_sizes(labels: "np.ndarray", spacing: Sequence[float], scheme: "LabelScheme") -> dict[str, Any]:
    """Number of 26-connected components and volume of each region."""
    import numpy as np

    from brats_lightning.components import label_components
    from brats_lightning.geometry import nonzero_box
    from brats_lightning.labels import in_classes

    sizes = {}
    part = labels[nonzero_box(labels)]
    for region, classes in scheme.regions.items():
        mask = in_classes(part, classes)
        volume = int(np.count_nonzero(mask)) * math.prod(spacing) / 1000
        sizes[region] = {"lesions": label_components(mask)[1], "volume_ml": round(volume, 4)}
    return {"regions": sizes}


def progress_bar() -> Any:
    """Bar with the time that is left, on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("of {task.total} cases"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, *times, console=console, disable=not console.is_terminal)


def _report(summary: dict[str, Any], problems: Sequence["Problem"], cfg: DictConfig, scheme: "LabelScheme") -> None:
    from rich.console import Console
    from rich.table import Table

    from brats_lightning.data.cases import problem_table

    console = Console()
    console = console if console.is_terminal else Console(width=160)
    titles = [f"{region.upper()} {what}" for region in scheme.regions for what in ("lesions", "volume (ml)")]
    table = Table("case", *titles, "seconds")
    for name, case in summary["cases"].items():
        cells = [text for r in case["regions"].values() for text in (str(r["lesions"]), f"{r['volume_ml']:.2f}")]
        table.add_row(name, *cells, f"{case['seconds']:.0f}")
    if summary["cases"]:
        console.print(table)
    if problems and cfg.on_bad_case == "skip":  # else they are the error message
        console.print(problem_table(problems))
    counts = f"{len(summary['cases'])} predicted, {len(summary['existing'])} were there, "
    log.info("%s%d left out · %s", counts, len({problem.case for problem in problems}), cfg.output)
    if cfg.summary is not None:
        write_text(make_folder(Path(cfg.summary).parent) / Path(cfg.summary).name, json.dumps(summary, indent=1) + "\n")


def main() -> None:
    """The command ``brats-predict``."""
    entry_point("predict", predict)()


if __name__ == "__main__":
    main()
