"""Cycles beside time: a step's time in cycles of the SM clock, which voids nothing.

Decode is bound by memory, not by the SM clock. Where the ratio of cycles and the ratio of times
differ, the two arms ran at different clocks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from attnbench.protocol.blocks import Block, step_us
from attnbench.protocol.cell import Visit
from attnbench.protocol.comparison import ratio_interval
from attnbench.protocol.result import Interval
from attnbench.stats.student import mean_interval

CLOCK = "sm_clock_mhz"


@dataclass(frozen=True)
class Cycles:
    """Median cycles a step of the arm, and the ratio of the baseline's cycles to the arm's."""

    per_step: float | UnsetType
    ratio: Interval | UnsetType


def cycles(sessions: Sequence[Sequence[Block]], baseline: str, arm: str, level: float) -> Cycles:
    """From the blocks that count; unset where no clock is known, the ratio below two sessions."""
    known = [[b for b in blocks if _known(b[baseline]) and _known(b[arm])] for blocks in sessions]
    found = [blocks for blocks in known if blocks]
    if not found:
        return Cycles(UNSET, UNSET)
    per_step = statistics.median(_cycles(block[arm]) for blocks in found for block in blocks)
    ratios = [
        statistics.fmean(math.log(_cycles(b[baseline])) - math.log(_cycles(b[arm])) for b in blocks)
        for blocks in found
    ]
    if len(ratios) < 2:
        return Cycles(per_step, UNSET)
    return Cycles(per_step, ratio_interval(mean_interval(ratios, level), level))


def _known(visit: Visit) -> bool:
    return float(visit.gpu.get(CLOCK, 0)) > 0


def _cycles(visit: Visit) -> float:
    """A step's time in µs times the clock in MHz after the visit."""
    return step_us(visit) * float(visit.gpu[CLOCK])
