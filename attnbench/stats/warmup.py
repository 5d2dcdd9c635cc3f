"""Whether warm-up has ended: the slope over its last half is flat.

Three signs must come together before steps count as still warming up, because each alone also
happens to honest steps on a busy machine: the time changes by more than a few per cent, by more
than its own noise explains, and steadily (a jump between two speeds is not a slope).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FEWEST_STEPS = 16  # below this the last half has no slope worth the name
FLAT_WITHIN = 0.05  # of the median, over the last half; blocks cancel what remains
NOISE_MULTIPLE = 4.0  # standard errors; generous, since steps are not independent
LEAST_SHARE = 0.15  # of the whole change, in each third of the way: else it is a jump


def warmed_up(warmup_us: Sequence[float]) -> bool:
    """True when the last half of these step times (microseconds, in order) has no slope.

    Fewer than sixteen steps cannot show it.
    """
    if len(warmup_us) < FEWEST_STEPS:
        return False
    last_half = np.log(np.asarray(warmup_us, dtype=np.float64)[len(warmup_us) // 2 :])
    quarters = np.array_split(last_half, 4)
    levels = np.array([np.median(quarter) for quarter in quarters])
    change = float(levels[-1] - levels[0])
    noise = _level_error(quarters, levels)
    return abs(change) <= max(FLAT_WITHIN, NOISE_MULTIPLE * noise) or not _steady(levels, change)


def _level_error(quarters: Sequence[NDArray[np.float64]], levels: NDArray[np.float64]) -> float:
    """Standard error of the difference of two quarters' medians, from the scatter within."""
    residuals = np.concatenate([q - level for q, level in zip(quarters, levels, strict=True)])
    sd = 1.4826 * float(np.median(np.abs(residuals)))
    error_of_median = 1.2533 * sd / math.sqrt(len(quarters[0]))
    return math.sqrt(2) * error_of_median


def _steady(levels: NDArray[np.float64], change: float) -> bool:
    return bool(np.all(np.diff(levels) / change >= LEAST_SHARE))
