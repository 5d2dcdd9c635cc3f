"""From raw visits to block values: which blocks count, and the log ratios inside them.

A block counts for a comparison when every arm compared has a visit in it at a steady clock. Blocks
are kept or dropped whole, so that the arms compared drop together.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from attnbench.protocol.cell import SessionSamples, Visit
from attnbench.stats.order import PlacedVisit

CLOCK_TOLERANCE = 0.02  # of the session median of that arm's SM clock

Block = Mapping[str, Visit]


@dataclass(frozen=True)
class SessionBlocks:
    """The blocks of one session that count, and how many do not, by cause."""

    kept: tuple[Block, ...]
    missing: int
    unsteady: int

    @property
    def dropped(self) -> int:
        """Blocks that do not count."""
        return self.missing + self.unsteady


def session_blocks(session: SessionSamples, arms: Iterable[str]) -> SessionBlocks:
    """The blocks in which all `arms` were visited and none had its clock off."""
    compared = tuple(arms)
    blocks = _by_block(session.visits)
    complete = [block for block in blocks if all(_was_timed(block, arm) for arm in compared)]
    clocks = {arm: _median_clock(complete, arm) for arm in compared}
    kept = [b for b in complete if all(_steady(b[arm], clocks[arm]) for arm in compared)]
    return SessionBlocks(
        kept=tuple(kept),
        missing=len(blocks) - len(complete),
        unsteady=len(complete) - len(kept),
    )


def log_ratios(blocks: Sequence[Block], above: str, below: str) -> list[list[float]]:
    """log(time of `above` / time of `below`) of each block, by group."""
    groups: dict[int, list[float]] = defaultdict(list)
    for block in blocks:
        ratio = math.log(step_us(block[above])) - math.log(step_us(block[below]))
        groups[block[above].group].append(ratio)
    return list(groups.values())


def step_us(visit: Visit) -> float:
    """The visit's value: its time over its tokens, microseconds a step."""
    return math.fsum(visit.steps_us) / len(visit.steps_us)


def latency_ms(sessions: Sequence[SessionSamples], arm: str) -> dict[str, float]:
    """Median, mean, least and greatest step of an arm over all sessions; empty if never visited."""
    steps = [
        step
        for session in sessions
        for visit in session.visits
        if visit.arm == arm
        for step in visit.steps_us
    ]
    if not steps:
        return {}
    return {
        "median": statistics.median(steps) / 1e3,
        "mean": math.fsum(steps) / len(steps) / 1e3,
        "min": min(steps) / 1e3,
        "max": max(steps) / 1e3,
    }


def placed_visits(session: SessionSamples, blocks: Sequence[Block]) -> list[PlacedVisit]:
    """Every visit of these blocks with the arm that was visited right before it."""
    counted = {(visit.group, visit.block) for block in blocks for visit in block.values()}
    placed: list[PlacedVisit] = []
    before: Visit | None = None
    for visit in session.visits:
        taken_us = step_us(visit) if (visit.group, visit.block) in counted else 0.0
        if taken_us > 0:
            follows = before.arm if before is not None and before.group == visit.group else ""
            log_time = math.log(taken_us)
            placed.append(PlacedVisit(visit.arm, visit.block, visit.position, follows, log_time))
        before = visit
    return placed


def _by_block(visits: Sequence[Visit]) -> list[dict[str, Visit]]:
    blocks: dict[tuple[int, int], dict[str, Visit]] = defaultdict(dict)
    for visit in visits:
        blocks[visit.group, visit.block][visit.arm] = visit
    return list(blocks.values())


def _was_timed(block: Block, arm: str) -> bool:
    return arm in block and sum(block[arm].steps_us) > 0


def _median_clock(blocks: Sequence[Block], arm: str) -> float:
    """Median SM clock in MHz after this arm's visits; 0 where the device tells none."""
    clocks = [float(b[arm].gpu["sm_clock_mhz"]) for b in blocks if "sm_clock_mhz" in b[arm].gpu]
    return statistics.median(clocks) if clocks else 0.0


def _steady(visit: Visit, median_mhz: float) -> bool:
    if not median_mhz or "sm_clock_mhz" not in visit.gpu:
        return True
    return abs(float(visit.gpu["sm_clock_mhz"]) / median_mhz - 1) <= CLOCK_TOLERANCE
