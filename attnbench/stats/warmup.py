"""Whether warm-up has ended: the slope over its last half is flat.

Three signs must come together before steps count as still warming up, because each alone also
happens to honest steps on a busy machine: the time changes by more than a few per cent, by more
than its own noise explains, and steadily (a jump between two speeds is not a slope).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

FEWEST_STEPS = 16  # below this the last half has no slope worth the name
FLAT_WITHIN = 0.05  # of the median, over the last half; blocks cancel what remains
NOISE_MULTIPLE = 4.0  # standard errors; generous, since steps are not independent
RESOLUTION_US = 1e-3  # no clock here resolves less; a step of no time has a logarithm all the same
LEAST_SHARE = 0.15  # of the whole change, in each third of the way: else it is a jump


def warmed_up(warmup_us: Sequence[float]) -> bool:
    """True when the last half of these step times (microseconds, in order) has no slope.

    Fewer than sixteen steps cannot show it.
    """
    if len(warmup_us) < FEWEST_STEPS:
        return False
    quarters = _quarters(
        [math.log(max(step, RESOLUTION_US)) for step in warmup_us[len(warmup_us) // 2 :]]
    )
    levels = [median(quarter) for quarter in quarters]
    change = levels[-1] - levels[0]
    noise = _level_error(quarters, levels)
    return abs(change) <= max(FLAT_WITHIN, NOISE_MULTIPLE * noise) or not _steady(levels, change)


def _quarters(values: Sequence[float]) -> list[Sequence[float]]:
    """Four parts in order, as equal as can be, the longer ones first."""
    least, longer = divmod(len(values), 4)
    starts = [least * part + min(part, longer) for part in range(5)]
    return [values[start:end] for start, end in pairwise(starts)]


def _level_error(quarters: Sequence[Sequence[float]], levels: Sequence[float]) -> float:
    """Standard error of the difference of two quarters' medians, from the scatter within."""
    residuals = [
        abs(value - level)
        for quarter, level in zip(quarters, levels, strict=True)
        for value in quarter
    ]
    sd = 1.4826 * median(residuals)
    error_of_median = 1.2533 * sd / math.sqrt(len(quarters[0]))
    return math.sqrt(2) * error_of_median


def _steady(levels: Sequence[float], change: float) -> bool:
    return all((after - before) / change >= LEAST_SHARE for before, after in pairwise(levels))
