"""The page of a data set, ``report.html``, with its numbers in ``report.json``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brats_lightning.data.overview import Overview
from brats_lightning.evaluation.report import data_figures
from brats_lightning.evaluation.report.contact_sheet import case_picture, sampled
from brats_lightning.evaluation.report.drawing import region_colour
from brats_lightning.evaluation.report.pages import environment
from brats_lightning.runtime.files import make_folder, write_json, write_text


def write_data_set(
    folder: Path, overview: Overview, description: str, pictures: int, plan: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write both files, and return the content of ``report.json``.

    Args:
        folder: made if need be.
        overview: of the data set.
        description: of the data set, in a few words.
        pictures: how many cases the contact sheet shows besides the suspicious ones.
        plan: what `plan` proposes for it.
    """
    make_folder(folder)
    report = overview.report(description) | ({"plan": plan} if plan else {})
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", data_set_page(overview, description, pictures, plan))
    return report


def data_set_page(overview: Overview, description: str, pictures: int, plan: Mapping[str, Any] | None = None) -> str:
    """The page; see `write_data_set`."""
    survey = overview.survey
    figures = {}
    if survey.cases:
        wrong: dict[str, set[str]] = {}
        for each in overview.suspicions:
            wrong.setdefault(each.case, set()).update(each.file.split(", "))
        figures["geometry"] = data_figures.geometry_figure(survey.cases)
        figures["intensity"] = data_figures.intensity_figure(survey.cases, survey.sequences, wrong)
        if overview.fingerprint["labelled"]:
            by_region = {
                region: [len(each.volumes[region]) for each in overview.inspections if each.case.has_mask]
                for region in overview.scheme.regions
            }
            figures["lesions"] = data_figures.lesion_figure(overview.fingerprint["lesions"], by_region)
    shown = sampled(survey.cases, pictures, list(overview.suspects))
    return (
        environment()
        .get_template("data_set.html")
        .render(
            title="Plan" if plan else "Data set",
            overview=overview,
            description=description,
            rows=survey.rows(),
            figures=figures,
            plan=plan,
            plan_lines=plan_lines(plan) if plan else [],
            pictures=[case_picture(case, survey.sequences, overview.scheme) for case in shown],
            region_colours={region: region_colour(region) for region in overview.scheme.regions},
        )
    )


def plan_lines(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a plan predicts, and what was measured, as names and values in words."""
    machine, predicted, measured = plan["machine"], plan["predicted"], plan["measured"]
    footprint = predicted["footprint"]
    seconds = {"predicted": predicted["seconds"], "measured": measured and measured["seconds"]}
    memory = [f"{_gb(predicted['memory'])} predicted", *([f"{_gb(measured['memory'])} measured"] if measured else [])]
    parts = {"before the first step": machine["resting"]}
    parts |= {name: footprint[name] for name in ("state", "batch", "features")}
    rates = [f"{1 / value:.2g} {name}" for name, value in seconds.items() if value]
    size = f"{footprint['parameters'] / 1e6:.1f} M parameters, {footprint['flop'] / 1e12:.2f} TFLOP in a step"
    return [
        ("network", size),
        ("memory", f"{', '.join(memory)}, of {_gb(machine['memory'])}"),
        ("predicted from", " + ".join(f"{_gb(value)} {name}" for name, value in parts.items())),
        ("steps per second", ", ".join(rates) or "not predicted: the GPU is not here"),
    ]


def _gb(value: int | float) -> str:
    return f"{value / 1e9:.2f} GB"
