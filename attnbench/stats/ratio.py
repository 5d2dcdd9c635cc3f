"""From block values to a ratio with its interval: sessions are the replicates, nothing else is.

A block value is log(A/B), the two times of one block. A session's value is taken twice: the mean
over blocks, which misses no slow mode, and the median of its group means, which no jump can move.
After Kalibera and Jones 2013, "Rigorous benchmarking in reasonable time".
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.stats.student import mean_interval


@dataclass(frozen=True)
class SessionRatio:
    """One session's log ratio by its two centres."""

    mean: float
    robust: float


@dataclass(frozen=True)
class RatioEstimate:
    """A ratio over sessions by both centres; `sd` is that of the sessions' mean log ratios."""

    estimate: float
    low: float
    high: float
    level: float
    robust_estimate: float
    robust_low: float
    robust_high: float
    sessions: int
    sd: float
    robust_sd: float


def session_ratio(groups: Sequence[Sequence[float]]) -> SessionRatio:
    """Both centres of one session's block values, given by group; empty groups do not count."""
    filled = [group for group in groups if group]
    if not filled:
        raise ValueError("a session without a block has no ratio")
    blocks = [value for group in filled for value in group]
    return SessionRatio(
        mean=math.fsum(blocks) / len(blocks),
        robust=statistics.median(math.fsum(group) / len(group) for group in filled),
    )


def ratio_estimate(sessions: Sequence[SessionRatio], level: float) -> RatioEstimate:
    """exp of the mean over sessions and its t interval, for both centres.

    Raises `ValueError` below two sessions, which have no interval.
    """
    mean = mean_interval([session.mean for session in sessions], level)
    robust = mean_interval([session.robust for session in sessions], level)
    return RatioEstimate(
        estimate=as_ratio(mean.mean),
        low=as_ratio(mean.low),
        high=as_ratio(mean.high),
        level=level,
        robust_estimate=as_ratio(robust.mean),
        robust_low=as_ratio(robust.low),
        robust_high=as_ratio(robust.high),
        sessions=len(sessions),
        sd=mean.sd,
        robust_sd=robust.sd,
    )


def as_ratio(log_ratio: float) -> float:
    """exp, kept finite: two sessions that disagree wildly have a limit beyond any float."""
    return math.exp(min(log_ratio, math.log(sys.float_info.max)))
