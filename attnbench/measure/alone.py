"""The baseline's attention alone, timed in the session whose whole steps it is a part of."""

from __future__ import annotations

import secrets

from attnbench.errors import SessionLost
from attnbench.measure.clock import device_clock
from attnbench.measure.events import Doing, Mark, Talk
from attnbench.measure.failing import failure_of, recover
from attnbench.measure.tasks import ArmFailure, CellPlan, StepCounts
from attnbench.measure.visits import Walk
from attnbench.measure.workbench import Workbench
from attnbench.measure.world import World
from attnbench.protocol.cell import Arm, Scope


def attention_alone(
    bench: Workbench, plan: CellPlan, walk: Walk, steps: StepCounts, talk: Talk, world: World
) -> tuple[tuple[float, ...], str]:
    """Microseconds of as many steps as the baseline's visits have, and why there are none.

    After everything that counts: what goes wrong here costs nobody its place. Empty, and for no
    reason, of a cell that has no whole steps or no baseline.
    """
    arm = next((each for each in bench.bench.arms if each.label == plan.baseline), None)
    if arm is None or plan.scope is not Scope.STEP or arm.label not in walk.timed_steps:
        return (), ""
    talk.mark(Mark(arm=arm.label, doing=Doing.PROBED, cell=0))
    found: tuple[float, ...] | ArmFailure
    try:
        found = _timed(bench, arm, plan, steps.untimed_steps + 1, walk.timed_steps[arm.label])
        world.require_unchanged(thoroughly=False)
    except SessionLost:
        raise
    except Exception as error:  # noqa: BLE001 - a method under test may raise anything
        found = failure_of(error, "breakdown", world)
    recover(arm.label, found, bench.reclaim)
    if isinstance(found, ArmFailure):
        return (), f"{arm.label} alone: {found.type}: {found.message}"
    return found, ""


def _timed(
    bench: Workbench, arm: Arm, plan: CellPlan, untimed: int, timed: int
) -> tuple[float, ...]:
    clock = device_clock(bench.device)
    bench.vary(secrets.randbits(31))
    ready = bench.set_up(arm, Scope.ATTENTION, plan.mode)
    clock.time(ready.step, untimed)
    steps_us = clock.time(ready.step, timed).steps_us
    ready.inspect(thoroughly=True)
    return steps_us
