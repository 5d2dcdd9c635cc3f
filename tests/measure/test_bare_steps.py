"""Steps as simple harnesses take them, and a pilot that tries few configurations."""

from __future__ import annotations

from attnbench.measure.pilot import Trial
from attnbench.measure.tasks import StepCounts
from attnbench.measure.world import World
from attnbench.protocol.cell import Mode
from attnbench.protocol.order_effect import sequential_schedule
from tests.measure.simulated import Muted
from tests.measure.standing import arm, standing, with_arms
from tests.measure.test_visits import Stage

BARE = StepCounts(warmup_steps=5, untimed_steps=0, timed_steps=30, min_visit_ms=0.0, bare=True)


def test_bare_steps_warm_one_arm_up_and_time_it_before_the_next_is_set_up():
    stage = Stage(BARE, A=1000.0, B=1000.0)
    walk = stage.walk(sequential_schedule(0))
    # After the timed steps, and before set-up.
    aside = ("probe", "freshen", "vary", "reclaim", "inspect")
    did = [entry for entry in stage.log.entries if not entry.startswith(aside)]
    assert did == [
        *("set up A", "time A x5", "time A x0", "time A x30"),
        *("set up B", "time B x5", "time B x0", "time B x30"),
    ]
    assert stage.log.entries.index("time A x30") < stage.log.entries.index("inspect A")
    assert {label: len(steps) for label, steps in walk.warmup_us.items()} == {"A": 5, "B": 5}
    assert [visit.arm for visit in walk.visits] == ["A", "B"]


def test_a_pilot_may_try_only_the_first_configurations():
    with standing(with_arms("Tuned")) as bench:
        for most, tried in ((0, 3), (2, 2), (9, 3)):
            trial = Trial(bench, Mode.EAGER, Muted(), World(bench.device).settle(), most=most)
            found = trial.examine(arm("Tuned"))
            assert len(found.launches) + len(found.refused) == tried
