"""How far session values spread: pooled standard deviations, their limits, and their ratios.

Also what placing arms anew in memory brings: the same number of blocks from one capture or from
several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import special

from attnbench.stats.student import mean_and_sd, mean_interval

Groups = Sequence[Sequence[float]]  # one session's block values by capture


@dataclass(frozen=True)
class PooledSd:
    """A standard deviation, its degrees of freedom, and the limit it stays under at `level`."""

    sd: float
    degrees: float
    upper: float
    level: float


def pooled_sd(
    samples: Sequence[Sequence[float]], *, level: float = 0.95, correlation: float = 0.0
) -> PooledSd:
    """Of several samples, each around its own mean; the limit is one-sided, by chi squared.

    Two samples of pairs that share an arm are correlated (1/2 where all arms spread alike) and
    worth fewer degrees of freedom: K samples have var(s²) greater by 1 + (K - 1) ρ². Raises
    `ValueError` where no sample has two values.
    """
    several = [sample for sample in samples if len(sample) > 1]
    if not several:
        raise ValueError("a spread needs two sessions")
    freedom = sum(len(sample) - 1 for sample in several)
    variance = math.fsum((len(s) - 1) * mean_and_sd(s)[1] ** 2 for s in several) / freedom
    degrees = freedom / (1 + (len(several) - 1) * correlation**2)
    sd = math.sqrt(variance)
    least = 2 * float(special.gammaincinv(degrees / 2, 1 - level))  # chi squared's lower quantile
    return PooledSd(sd, degrees, sd * math.sqrt(degrees / least), level)


def jackknife(count: int, statistic: Callable[[list[int]], float], level: float) -> float:
    """Half-width of the t interval of a statistic of `count` sessions, given by their indices.

    Miller 1968, "Jackknifing variances": meant for logarithms of variances and of their ratios.
    Raises `ValueError` below three sessions.
    """
    if count < 3:
        raise ValueError("leaving one out needs three sessions")
    everyone = list(range(count))
    whole = statistic(everyone)
    without = [statistic(everyone[:i] + everyone[i + 1 :]) for i in everyone]
    return mean_interval([count * whole - (count - 1) * part for part in without], level).half_width


def capture_variances(sessions: Sequence[Groups]) -> tuple[float, float, int]:
    """Variance over sessions of a mean of k blocks: all of one capture, or each of another one.

    Pooled over every way to choose them; k is what both ways can have. By the covariances of
    blocks over sessions, which all those ways average: k⁻² times k variances and k (k - 1)
    covariances. Raises `ValueError` where sessions are fewer than two, unlike in their groups, or
    have only one group or one block a group.
    """
    sizes = [[len(group) for group in session] for session in sessions]
    if len(sessions) < 2 or any(before != after for before, after in pairwise(sizes)):
        raise ValueError("captures are compared over several sessions with the same groups")
    chosen = min(min(sizes[0], default=0), len(sizes[0]))
    if chosen < 2:
        raise ValueError("it takes two groups of two blocks to tell captures apart")
    values = np.array([[v for group in session for v in group] for session in sessions])
    group_of = np.repeat(np.arange(len(sizes[0])), sizes[0])
    covariance = np.cov(values, rowvar=False)
    together = group_of[:, None] == group_of[None, :]
    others = ~np.eye(len(group_of), dtype=bool)
    own = float(np.diagonal(covariance).mean())
    one = float(covariance[together & others].mean())
    several = float(covariance[~together].mean())
    shares = (1 / chosen, (chosen - 1) / chosen)
    return shares[0] * own + shares[1] * one, shares[0] * own + shares[1] * several, chosen
