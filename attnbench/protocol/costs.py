"""What the next run would cost, and the cheapest plan for it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from msgspec import UNSET, UnsetType

from attnbench.protocol.cell import SessionSamples, Visit
from attnbench.protocol.result import NextPlan
from attnbench.stats.variance import Costs, Variance, cheapest_plan

# What a worker does: its seconds by these names, "total" from the start of the process to its end.
SET_UP, WARM_UP, CHECKS, TOTAL = "set-up", "warm-up", "checks", "total"
NEEDED = (SET_UP, WARM_UP, CHECKS, TOTAL)
IN_BLOCKS = ("timed", "untimed", CHECKS)


def costs_of(
    sessions: Sequence[SessionSamples],
    phases: Sequence[Mapping[str, float]],
    *,
    groups: int,
    blocks: int,
    cells: int = 1,
) -> Costs | None:
    """Seconds that one more session, group and block of this cell would take.

    `phases` are each worker's seconds by what it did ("set-up", "warm-up", "timed", "untimed",
    "checks", "total"); `groups` and `blocks` are per session. A worker that walked several `cells`
    spent its set-up, warm-up and checks on them alike. A block is timed by its own visits. None
    where a phase is not known in any session, or nothing was visited.
    """
    spent = _medians(phases)
    if spent is None or not any(session.visits for session in sessions):
        return None
    walked = math.fsum(spent[phase] for phase in (SET_UP, WARM_UP, *IN_BLOCKS))
    return Costs(
        session_s=max(0.0, spent[TOTAL] - walked) + spent[WARM_UP] / cells,
        group_s=spent[SET_UP] / cells / groups,
        block_s=block_seconds(sessions) + spent[CHECKS] / cells / blocks,
    )


def block_seconds(sessions: Sequence[SessionSamples]) -> float:
    """Median over blocks of the seconds that all its visits took, untimed steps among them."""
    blocks: dict[tuple[int, int, int], float] = defaultdict(float)
    for session in sessions:
        for visit in session.visits:
            blocks[session.session, visit.group, visit.block] += _visit_us(visit)
    return statistics.median(blocks.values()) / 1e6


def next_plan(
    variance: Variance, costs: Costs, sought: float, level: float
) -> NextPlan | UnsetType:
    """The cheapest run whose interval is expected within half of `sought`, a ratio minus one.

    Unset where a thousand sessions would not do.
    """
    plan = cheapest_plan(variance, costs, math.log1p(sought) / 2, level)
    if plan is None:
        return UNSET
    return NextPlan(
        sessions=plan.sessions,
        groups=plan.groups,
        blocks_per_group=plan.blocks_per_group,
        seconds=plan.seconds,
        half_width=plan.half_width,
    )


def _visit_us(visit: Visit) -> float:
    a_step_us = visit.wall_us / len(visit.steps_us)
    return visit.wall_us + visit.untimed_steps * a_step_us


def _medians(phases: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Median seconds of each phase that is needed; None where one was never told."""
    names: Iterable[str] = dict.fromkeys((*NEEDED, *IN_BLOCKS))
    told = {name: [phase[name] for phase in phases if name in phase] for name in names}
    if not all(told.values()):
        return None
    return {name: statistics.median(seconds) for name, seconds in told.items()}
