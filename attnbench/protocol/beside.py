"""What a median step does not show: the slowest step, slow steps that recur, and the set-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median

from attnbench.protocol.cell import SessionSamples, Visit
from attnbench.protocol.result import Beside

SLOW = 5.0  # times an arm's median step
RECURS = 0.05  # of an arm's time, beyond what such steps take of the baseline's, in every session


def beside(
    sessions: Sequence[SessionSamples],
    set_up_us: Sequence[Mapping[str, Sequence[float]]],
    arm: str,
    baseline: str,
) -> Beside | None:
    """Of an arm's timed steps in all sessions; None for one that has none.

    A machine's own spikes slow the baseline as well; what recurs is an arm's own where it shows in
    every session.
    """
    own = [_of(samples, arm) for samples in sessions]
    base = [_of(samples, baseline) for samples in sessions]
    steps = [step for visits in own for visit in visits for step in visit.steps_us]
    if not steps or not all(own) or not all(base):
        return None
    middle = median(steps)
    shares = [
        _slow_share(visits) - _slow_share(others) for visits, others in zip(own, base, strict=True)
    ]
    set_ups = [us for by_arm in set_up_us for us in by_arm.get(arm, ())]
    return Beside(
        slowest_ms=max(steps) / 1e3,
        slow_steps=sum(step > SLOW * middle for step in steps),
        timed_steps=len(steps),
        recurring_share=max(0.0, min(shares)) if min(shares) > RECURS else 0.0,
        set_up_ms=median(set_ups) / 1e3 if set_ups else 0.0,
        steps_a_set_up=min(map(_shortest_run, own)),
    )


def _of(samples: SessionSamples, arm: str) -> list[Visit]:
    return [visit for visit in samples.visits if visit.arm == arm]


def _slow_share(visits: Sequence[Visit]) -> float:
    """Of the time of all timed steps, what the slow ones take."""
    steps = [step for visit in visits for step in visit.steps_us]
    limit = SLOW * median(steps)
    return sum(step for step in steps if step > limit) / sum(steps)


def _shortest_run(visits: Sequence[Visit]) -> int:
    """Timed steps and the untimed ones before them of the group that has fewest: an arm is set up
    anew for each."""
    ordered = sorted(visits, key=lambda visit: visit.group)
    return min(
        sum(visit.untimed_steps + len(visit.steps_us) for visit in group)
        for _, group in groupby(ordered, key=lambda visit: visit.group)
    )
