"""From block values to one value a session: sessions are the replicates, nothing else is.

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

GREATEST_LOG = math.log(sys.float_info.max)
LEAST_LOG = -GREATEST_LOG


@dataclass(frozen=True)
class SessionRatio:
    """One session's log ratio by its two centres."""

    mean: float
    robust: float


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


def as_ratio(log_ratio: float) -> float:
    """exp, kept finite and above 0: sessions that disagree wildly have limits beyond any float."""
    return math.exp(max(LEAST_LOG, min(log_ratio, GREATEST_LOG)))
