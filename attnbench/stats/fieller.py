"""The interval of a ratio of two means that were measured together (Fieller 1954)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.stats.student import mean_and_sd, t_quantile


@dataclass(frozen=True)
class RatioOfMeans:
    """The ratio of the means with its limits; None: the data do not bound it."""

    estimate: float
    low: float | None
    high: float | None


def ratio_of_means(above: Sequence[float], below: Sequence[float], level: float) -> RatioOfMeans:
    """mean(above) / mean(below) of pairs, with the limits at confidence `level`.

    Fieller's theorem with Student's t on one degree fewer than pairs: all ratios r for which
    mean(above) - r mean(below) is not told from 0. Where mean(below) itself is not told from 0,
    these reach to infinity and there are no limits. Raises `ValueError` below two pairs, where
    they do not pair, and where mean(below) is 0.
    """
    (x, x_sd), (y, y_sd) = mean_and_sd(above), mean_and_sd(below)
    n = len(above)
    if y == 0:
        raise ValueError("a ratio to nothing has no value")
    products = ((a - x) * (b - y) for a, b in zip(above, below, strict=True))
    covariance = math.fsum(products) / (n - 1)
    scale = t_quantile(n - 1, (1 + level) / 2) ** 2 / n
    square = y**2 - scale * y_sd**2
    half = x * y - scale * covariance
    rest = x**2 - scale * x_sd**2
    if square <= 0:
        return RatioOfMeans(x / y, None, None)
    root = math.sqrt(max(0.0, half**2 - square * rest))
    return RatioOfMeans(x / y, (half - root) / square, (half + root) / square)
