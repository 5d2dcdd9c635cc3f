"""What a session, a group and a block cost, and what the next run should be."""

import math

import msgspec
import pytest
from msgspec import UNSET

from attnbench.protocol.costs import block_seconds, costs_of, next_plan
from attnbench.protocol.presets import CANONICAL
from attnbench.stats.variance import Costs, Variance
from tests.calibration.simulated_gpu import SimulatedGpu
from tests.protocol.samples import decided, sessions_of, with_visits

replace = msgspec.structs.replace
PHASES = {
    "load": 20.0,
    "set-up": 8.0,
    "warm-up": 6.0,
    "timed": 3.0,
    "untimed": 0.5,
    "checks": 1.2,
    "total": 50.0,
}
COUNTS = {"groups": 4, "blocks": 12}
COSTS = Costs(session_s=30.0, group_s=2.0, block_s=0.5)


@pytest.fixture(name="sessions", scope="module")
def _sessions():
    """Blocks of three visits of five steps: 5 × (1 + 1 + .8) ms."""
    return sessions_of({"c": 800.0})


def test_a_block_costs_all_its_visits_with_their_untimed_steps(sessions):
    assert block_seconds(sessions) == pytest.approx(0.014, rel=0.02)
    with_untimed = with_visits(sessions, lambda _, v: replace(v, untimed_steps=10))
    assert block_seconds(with_untimed) == pytest.approx(3 * 0.014, rel=0.02)


def test_one_slow_block_is_not_the_rule(sessions):
    slow = with_visits(
        sessions, lambda _, v: replace(v, wall_us=1e6 * v.wall_us) if v.block == 0 else v
    )
    assert block_seconds(slow) == pytest.approx(0.014, rel=0.02)


def test_each_phase_falls_to_what_it_is_spent_on(sessions):
    costs = costs_of(sessions, [PHASES] * 3, **COUNTS)
    assert costs.group_s == pytest.approx(8.0 / 4)
    assert costs.block_s == pytest.approx(block_seconds(sessions) + 1.2 / 12)
    # What is neither set-up nor blocks: loading, warm-up, and what has no name.
    assert costs.session_s == pytest.approx(50.0 - 8.0 - 3.0 - 0.5 - 1.2)


def test_the_median_session_counts(sessions):
    slow = {name: 10 * seconds for name, seconds in PHASES.items()}
    assert costs_of(sessions, [PHASES, slow, PHASES], **COUNTS) == costs_of(
        sessions, [PHASES], **COUNTS
    )


def test_a_worker_of_two_cells_spends_half_of_its_set_up_on_each(sessions):
    costs = costs_of(sessions, [PHASES], **COUNTS, cells=2)
    assert costs.group_s == pytest.approx(8.0 / 2 / 4)
    assert costs.session_s == pytest.approx(50.0 - 8.0 - 6.0 - 3.0 - 0.5 - 1.2 + 6.0 / 2)


@pytest.mark.parametrize("missing", ["set-up", "warm-up", "timed", "untimed", "checks", "total"])
def test_a_phase_that_nobody_told_leaves_no_costs(sessions, missing):
    told = {name: seconds for name, seconds in PHASES.items() if name != missing}
    assert costs_of(sessions, [told], **COUNTS) is None
    assert costs_of(sessions, [told, PHASES], **COUNTS) is not None


def test_no_phases_and_no_visits_have_no_costs(sessions):
    assert costs_of(sessions, [], **COUNTS) is None
    assert costs_of(with_visits(sessions, lambda *_: None), [PHASES], **COUNTS) is None


def test_without_costs_there_is_no_plan(sessions):
    assert decided(sessions).next_plan is UNSET
    assert decided(sessions, costs=COSTS).next_plan is not UNSET


NOISY = SimulatedGpu(step_sd=0.02, placement_sd=0.02, capture_sd=0.01)


@pytest.mark.parametrize(("margin", "by_effect"), [(0.01, True), (0.3, False)])
def test_the_plan_aims_at_half_of_the_effect_or_of_the_margin_where_that_is_greater(
    margin, by_effect
):
    rough = SimulatedGpu(step_sd=0.02, placement_sd=0.1)
    protocol = replace(CANONICAL, equivalence_margin=margin)
    found = decided(sessions_of({"c": 850.0}, gpu=rough), costs=COSTS, protocol=protocol)
    effect = min(abs(math.log(r.estimate)) for r in (found.ratio, found.robust_ratio))
    assert (effect > math.log1p(margin)) == by_effect
    aim = max(effect, math.log1p(margin)) / 2
    assert 0.6 * aim < found.next_plan.half_width <= aim


def test_a_greater_margin_asks_for_less():
    sessions = sessions_of({"c": 1000.0}, gpu=NOISY)
    wider = replace(CANONICAL, equivalence_margin=0.1)
    strict, lax = decided(sessions, costs=COSTS), decided(sessions, costs=COSTS, protocol=wider)
    assert lax.next_plan.seconds < strict.next_plan.seconds
    assert lax.next_plan.half_width > strict.next_plan.half_width


def test_the_seconds_of_a_plan_are_its_counts_times_their_costs():
    plan = decided(sessions_of({"c": 1000.0}, gpu=NOISY), costs=COSTS).next_plan
    in_session_s = 30.0 + plan.groups * (2.0 + plan.blocks_per_group * 0.5)
    assert plan.seconds == pytest.approx(plan.sessions * in_session_s)


def test_one_group_cannot_tell_where_the_spread_lies_and_has_no_plan(sessions):
    first = with_visits(sessions, lambda _, v: v if v.group == 0 else None)
    assert decided(first, costs=COSTS).next_plan is UNSET


def test_what_no_thousand_sessions_would_resolve_has_no_plan():
    between_sessions = Variance(session=1.0, group=0.0, block=0.0)
    assert next_plan(between_sessions, COSTS, sought=0.01, level=0.95) is UNSET
    assert next_plan(between_sessions, COSTS, sought=1.0, level=0.95).sessions > 10
