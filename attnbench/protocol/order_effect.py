"""The order effect: the same method timed first and timed second, the naive way and in blocks.

Whatever is not 1 here is error, since the two arms differ in nothing but their turn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from attnbench.protocol.blocks import log_ratios, session_blocks
from attnbench.protocol.calibration_result import Bias
from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.result import Interval
from attnbench.protocol.schedule import (
    BlockSchedule,
    GroupSchedule,
    Order,
    SessionSchedule,
)
from attnbench.stats.ratio import as_ratio, session_ratio
from attnbench.stats.student import mean_interval

FIRST, SECOND = "A", "B"
ARMS: Order = (FIRST, SECOND)
SEQUENTIAL, BLOCKS = "sequential", "blocks"
SEQUENTIAL_WARMUP_STEPS, SEQUENTIAL_TIMED_STEPS = 5, 30  # as the claim has it


def sequential_schedule(session: int) -> SessionSchedule:
    """First all of A, then all of B: each set up, warmed up and timed in one go, in a group of its
    own, before the next one exists."""
    groups = tuple(
        GroupSchedule(capture_order=(arm,), blocks=(BlockSchedule((arm,)),)) for arm in ARMS
    )
    return SessionSchedule(session=session, seed=0, groups=groups)


def bias(how: str, sessions: Sequence[SessionSamples], level: float) -> Bias:
    """The first arm's time over the second's, over fresh processes; `how` they were measured.

    In sequence each process compares two means, in blocks it has its session value.
    """
    compare = _of_blocks if how == BLOCKS else _of_means
    means = [value for session in sessions if (value := compare(session)) is not None]
    medians = [value for session in sessions if (value := _of_medians(session)) is not None]
    return Bias(
        how=how,
        processes=len(means),
        each=tuple(as_ratio(value) for value in means),
        ratio=_interval(means, level),
        of_medians=_interval(medians, level),
    )


def _interval(values: Sequence[float], level: float) -> Interval | UnsetType:
    if len(values) < 2:
        return UNSET
    found = mean_interval(values, level)
    return Interval(
        estimate=as_ratio(found.mean),
        low=as_ratio(found.low),
        high=as_ratio(found.high),
        level=level,
    )


def _of_blocks(session: SessionSamples) -> float | None:
    kept = session_blocks(session, ARMS).kept
    return session_ratio(log_ratios(kept, FIRST, SECOND)).mean if kept else None


def _of_means(session: SessionSamples) -> float | None:
    first, second = (_steps(session, arm) for arm in ARMS)
    if not first or not second:
        return None
    return math.log(statistics.fmean(first) / statistics.fmean(second))


def _of_medians(session: SessionSamples) -> float | None:
    first, second = (_steps(session, arm) for arm in ARMS)
    if not first or not second:
        return None
    return math.log(statistics.median(first) / statistics.median(second))


def _steps(session: SessionSamples, arm: str) -> list[float]:
    return [us for visit in session.visits if visit.arm == arm for us in visit.steps_us]
