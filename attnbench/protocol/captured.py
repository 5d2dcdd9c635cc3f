"""How much of what attention costs a method saved: its share of the way from the baseline's time to
that of the zero-cost arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET, UnsetType

from attnbench.protocol.blocks import session_blocks, step_us
from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.result import Interval
from attnbench.stats.fieller import ratio_of_means


@dataclass(frozen=True)
class Captured:
    """The share, and its interval over sessions where that is bounded."""

    share: float
    interval: Interval | UnsetType


def captured(
    sessions: Sequence[SessionSamples], arm: str, baseline: str, ceiling: str, level: float
) -> Captured | None:
    """(baseline - arm) / (baseline - ceiling) of mean times, each difference taken within a block
    and averaged over a session's blocks; by Fieller's theorem over sessions.

    None where the three arms share no block, or the ceiling is no faster than the baseline.
    """
    pairs = [_savings(session, arm, baseline, ceiling) for session in sessions]
    own = [pair[0] for pair in pairs if pair is not None]
    most = [pair[1] for pair in pairs if pair is not None]
    if not most or math.fsum(most) <= 0:
        return None
    if len(most) == 1:
        return Captured(own[0] / most[0], UNSET)
    found = ratio_of_means(own, most, level)
    if found.low is None or found.high is None:
        return Captured(found.estimate, UNSET)
    interval = Interval(estimate=found.estimate, low=found.low, high=found.high, level=level)
    return Captured(found.estimate, interval)


def _savings(
    session: SessionSamples, arm: str, baseline: str, ceiling: str
) -> tuple[float, float] | None:
    """Microseconds that the arm and the ceiling save of the baseline's step; means over blocks."""
    blocks = session_blocks(session, (arm, baseline, ceiling)).kept
    if not blocks:
        return None

    def saved(label: str) -> float:
        return math.fsum(step_us(b[baseline]) - step_us(b[label]) for b in blocks) / len(blocks)

    return saved(arm), saved(ceiling)
