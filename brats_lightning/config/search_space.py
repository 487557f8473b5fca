"""The search space of a sweep: what Hydra's sweep syntax means to Optuna, and a trial's values as overrides."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer

from brats_lightning.config.build import settings_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space = dict[str, "BaseDistribution"]  # by key, with the sign that adds or appends it


def search_space(overrides: Sequence[str], loader: ConfigLoader | None = None) -> tuple[Space, list[str]]:
    """The distributions of a sweep, and the overrides that are the same in every trial; of one key the last one counts.

    ``a,b``, ``choice`` and ``glob`` are categories; ``interval`` and ``range`` are numbers, on a logarithmic scale with
    ``tag(log, …)``. As everywhere in Hydra, ``interval(1,4)`` is not of whole numbers, which ``int(interval(1,4))`` is,
    and a ``range`` ends before its second value.

    Args:
        overrides: ``key=value``, as Hydra's command line takes them.
        loader: knows the choices of groups, for ``glob``.

    Raises:
        ValueError: a range without values, limits in the wrong order, or a logarithm of zero.
    """
    last: dict[tuple[str, str | None], Override] = {}
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)):
        name = override.key_or_group, override.package
        last.pop(name, None)
        last[name] = override
    space = {}
    for override in last.values():
        if override.is_sweep_override():
            with settings_of(override.key_or_group):
                space[override.get_key_element()] = _distribution(override)
    return space, [str(override.input_line) for override in last.values() if not override.is_sweep_override()]


def _distribution(override: Override) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        number = IntDistribution if isinstance(value.start, int) and isinstance(value.end, int) else FloatDistribution
        return number(value.start, value.end, log=log)  # type: ignore[arg-type]
    if isinstance(value, ChoiceSweep | RangeSweep):
        value.shuffle = False  # the order tells nothing, and must be the same whenever the study goes on
    found: list[Any] = list(override.sweep_iterator(Transformer.encode))
    if not found:
        raise ValueError(f"{override.input_line} has no values")
    if not isinstance(value, RangeSweep):
        return CategoricalDistribution(found)
    low, high = sorted((found[0], found[-1]))
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=abs(int(value.step)))
    return FloatDistribution(float(low), float(high), step=abs(float(value.step)))


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """The values of a trial as overrides."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]


def combinations(space: Space) -> int:
    """How many different trials there can be.

    Raises:
        ValueError: infinitely many, because of an interval.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    total = 1
    for key, found in space.items():
        if isinstance(found, CategoricalDistribution):
            total *= len(found.choices)
        elif isinstance(found, IntDistribution | FloatDistribution) and found.step:
            total *= round((found.high - found.low) / found.step) + 1
        else:
            raise ValueError(f"{key}: a grid needs single values: choice(…), or range(start, stop, step)")
    return total
