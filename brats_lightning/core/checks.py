"""Settings that must be numbers in a range: their value, or a ValueError that names the setting."""

import math
from collections.abc import Sequence

Number = int | float  # a configuration writes 0, 1 and 30 without a point


def as_probability(setting: str, value: Number) -> float:
    """``value``, in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{setting} is a probability in [0, 1], got {value}")
    return float(value)


def as_range(setting: str, values: Sequence[Number], above: Number = -math.inf) -> tuple[float, float]:
    """``values`` as (least, most), both more than ``above``."""
    low, high = values if len(values) == 2 else (math.nan, math.nan)
    if not above < low <= high < math.inf:
        limit = "" if above == -math.inf else f", both more than {above:g}"
        raise ValueError(f"{setting} must be [least, most]{limit}, got {list(values)}")
    return float(low), float(high)
