"""The rules that a grid of settings makes, to be tried one by one."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from brats_lightning.inference.postprocessing.rules import Postprocessing, PostprocessingError, Step

log = logging.getLogger(__name__)

# Step → setting → values to try, as a config has it; of a step itself, in place of its settings, whether it is taken.
Grid = Mapping[str, Any]


def candidates(
    steps: Mapping[str, Step], grid: Grid, used: Sequence[Postprocessing], decode: str
) -> list[Postprocessing]:
    """No step, then the grid's combinations, the simplest first, then the rules in use; each only once.

    Every combination is there also with each step left out. A step or setting that the grid does not vary is as all
    rules in use have it; an unlisted step on which they differ is left out.

    Args:
        steps: those that the grid may name, in the order in which they run.
        grid: what varies; null varies nothing.
        used: the rules that have been used so far.
        decode: ``argmax`` or ``regions``.

    Raises:
        ValueError: a grid that makes no sense.
        PostprocessingError: none of the values of a setting is possible.
    """
    used = [rules.decoding(decode) for rules in used]
    first, *others = [rules.steps for rules in used]
    common = {name: step for name, step in first.items() if all(other.get(name) == step for other in others)}
    order, place = list(steps), 0
    for name in common:  # steps that only the rules in use know keep their place behind their predecessor
        if name not in order:
            order.insert(place, name)
        place = order.index(name) + 1
    known = {**steps, **common}
    varied = _varied(grid, known)
    versions = [_versions(known[name], varied[name]) if name in varied else [common.get(name)] for name in order]
    rules = [Postprocessing(decode=decode)]
    for combined in itertools.product(*reversed(versions)):  # the first step varies fastest
        rules.append(Postprocessing(dict(zip(order, reversed(combined), strict=True)), decode))
    return list({str(rule): rule for rule in [*rules, *used]}.values())


def settings_of(rules: Postprocessing) -> dict[str, Any]:
    """Dotted name → value of each setting that is set; a step without any is True."""
    found: dict[str, Any] = {}
    for name, step in rules.steps.items():
        values = {
            f"{name}.{key}": value for key, value in vars(step).items() if value is not None and value is not False
        }
        found |= values or {name: True}
    return found


def counting_settings(rules: Sequence[Postprocessing]) -> list[str]:
    """The settings, by dotted name, that differ among the rules and on which the number of components depends."""
    named: dict[str, set[str]] = {}
    for rule in rules:
        for name, step in rule.steps.items():
            for key in step.counting:
                named.setdefault(f"{name}.{key}".rstrip("."), set())
    for rule in rules:
        found = settings_of(rule) | dict.fromkeys(rule.steps, True)
        for name, values in named.items():
            values.add(repr(found.get(name)))
    return [name for name, values in named.items() if len(values) > 1]


def _varied(grid: Grid, steps: Mapping[str, Step]) -> dict[str, dict[str, list[Any]]]:
    """Step → setting, or "" for the step itself → the values to try, without those that are null."""
    known = [*steps, *(f"{name}.{key}" for name, step in steps.items() for key in vars(step))]
    found: dict[str, dict[str, list[Any]]] = {}
    for name, varied in grid.items():
        for key, values in (varied if isinstance(varied, dict) else {"": varied}).items():
            where = f"{name}.{key}".rstrip(".")
            if values is None:
                continue
            if not isinstance(values, list):
                raise ValueError(f"grid.{where}={values}: the values to try are a list, e.g. 'grid.{where}=[{values}]'")
            if where not in known:
                raise ValueError(f"grid.{where} is not among the steps and parameters: {', '.join(known)}")
            found.setdefault(name, {})[key] = values
    return found


def _versions(step: Step, values: dict[str, list[Any]]) -> list[Step | None]:
    """The versions of a step that are tried; None leaves it out."""
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
