"""Whether the clocks of a visit agree: the worker's host clock, its device events, the parent's.

Work that a step leaves on another stream shows between host and events; patched timers show between
the worker and its parent. Both are judged by the median over an arm's visits in a session: one late
wake-up of the host is no disagreement.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from attnbench.protocol.cell import SessionSamples, Visit

# Between the host's clock around a visit and the sum of its steps: launch, one wait, and slack.
LAUNCH_BUDGET_US = 300.0
LAUNCH_BUDGET_SHARE = 0.01
# Launching and waiting cost every arm of a session what they cost the baseline, give or take: what
# is above that is work of the arm's own. On an H100 medians of arms lay within 80 µs of the
# baseline's where visits took a second, within 30 µs where they took 20 to 120 ms.
OWN_EXCESS_US = 50.0
OWN_EXCESS_SHARE = 0.002
# Both ends of what the parent sees are messages through a pipe, read by a process that may sleep.
# On a busy machine that costs every arm alike: each is held to the arm whose messages cost least.
PIPE_BUDGET_US = 2000.0
PIPE_BUDGET_SHARE = 0.05


def timers_disagree(session: SessionSamples, arms: Sequence[str], baseline: str) -> str:
    """What disagrees in the first arm of `arms` that has clocks apart; empty when none has."""
    visits = _by_arm(session)
    usual_us = _hidden_us(visits[baseline])
    messages_us = min(_unseen_us(own) for own in _by_arm(session).values())
    for arm in dict.fromkeys((baseline, *arms)):
        allowed_us = _allowed_us(visits[arm], usual_us, is_baseline=arm == baseline)
        excess_us = _hidden_us(visits[arm]) - allowed_us
        if excess_us > 0:
            return f"host and device timed {arm} {excess_us:.0f} µs further apart than launches are"
        unseen_us = _unseen_us(visits[arm]) - PIPE_BUDGET_SHARE * _parent_us(visits[arm])
        unseen_us -= messages_us + PIPE_BUDGET_US
        if unseen_us > 0:
            return f"{arm} and its parent disagree by {unseen_us:.0f} µs more than messages take"
    return ""


def _by_arm(session: SessionSamples) -> dict[str, list[Visit]]:
    visits: dict[str, list[Visit]] = defaultdict(list)
    for visit in session.visits:
        visits[visit.arm].append(visit)
    return visits


def _allowed_us(visits: Sequence[Visit], usual_us: float, *, is_baseline: bool) -> float:
    wall_us = statistics.median(visit.wall_us for visit in visits)
    if is_baseline:
        return LAUNCH_BUDGET_US + LAUNCH_BUDGET_SHARE * wall_us
    return usual_us + OWN_EXCESS_US + OWN_EXCESS_SHARE * wall_us


def _hidden_us(visits: Sequence[Visit]) -> float:
    """Between the host's clock and the sum of the steps, in either direction."""
    return statistics.median(abs(visit.wall_us - sum(visit.steps_us)) for visit in visits)


def _unseen_us(visits: Sequence[Visit]) -> float:
    """Between the worker's clock and what its parent saw pass; 0 where the parent did not look."""
    seen = [abs(visit.parent_us - visit.wall_us) for visit in visits if visit.parent_us > 0]
    return statistics.median(seen) if seen else 0.0


def _parent_us(visits: Sequence[Visit]) -> float:
    return statistics.median(visit.parent_us for visit in visits)
