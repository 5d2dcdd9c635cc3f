"""Student's t over a handful of sessions: intervals and one-sided tests of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its two-sided confidence interval and the sample's standard deviation."""

    mean: float
    low: float
    high: float
    sd: float

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], level: float) -> MeanInterval:
    """The t interval of the mean at confidence `level`; raises `ValueError` below two values."""
    mean, sd = mean_and_sd(values)
    half_width = t_quantile(len(values) - 1, (1 + level) / 2) * sd / math.sqrt(len(values))
    return MeanInterval(mean, mean - half_width, mean + half_width, sd)


def p_above(values: Sequence[float], threshold: float) -> float:
    """One-sided p-value against "the mean is at or below `threshold`".

    Values without any spread decide for certain. Raises `ValueError` below two values.
    """
    mean, sd = mean_and_sd(values)
    if sd == 0:
        return 0.0 if mean > threshold else 1.0
    t = (mean - threshold) / (sd / math.sqrt(len(values)))
    return float(special.stdtr(len(values) - 1, -t))


def p_below(values: Sequence[float], threshold: float) -> float:
    """One-sided p-value against "the mean is at or above `threshold`"."""
    return p_above([-value for value in values], -threshold)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; raises `ValueError` below two values."""
    if len(values) < 2:
        raise ValueError(f"a spread needs at least two values, not {len(values)}")
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1))


def t_quantile(degrees: float, probability: float) -> float:
    """Quantile of Student's t with `degrees` of freedom."""
    return float(special.stdtrit(degrees, probability))
