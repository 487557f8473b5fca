"""How the pages are made of their templates, and how numbers are printed on them."""

import math
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from brats_lightning.evaluation.report.figures import COLUMN_TITLES, band_title
from brats_lightning.evaluation.summary import lower_is_better
from brats_lightning.metrics.official import headline_columns

_REGION_TITLES = {"et": "enhancing tumour", "tc": "tumour core", "wt": "whole tumour", "rc": "resection cavity"}


def number(value: int | float, digits: int = 3) -> str:
    """A number as it is printed; – for NaN."""
    return "–" if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def sort_key(value: int | float) -> str:
    """What a cell is sorted by: nothing for NaN, which is last."""
    return "" if math.isnan(value) else f"{value:.9g}"


def digits(column: str) -> int:
    """Decimals a column is printed with: distances are mm."""
    return 1 if lower_is_better(column) else 3


def counted(n: int, word: str) -> str:
    """``1 lesion``, ``2 lesions``."""
    return f"{n:,} {word}{'s' * (n != 1)}"


def p_value(p: float) -> str:
    """As papers print it."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def region_title(region: str) -> str:
    """``ET · enhancing tumour``."""
    title = _REGION_TITLES.get(region)
    return f"{region.upper()} · {title}" if title else region.upper()


@cache
def environment() -> Environment:
    """The templates beside this file and what they may use; all that is not a figure is escaped."""
    env = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    env.filters |= {each.__name__: each for each in (number, sort_key, digits, counted, p_value, region_title)}
    env.filters |= {"band_title": band_title, "column_title": COLUMN_TITLES.__getitem__}
    env.tests["a_number"] = lambda value: not math.isnan(value)
    env.globals["headline_columns"] = headline_columns
    return env


def render(template: str, **content: Any) -> str:
    """A page of one of the templates."""
    return environment().get_template(template).render(content)
