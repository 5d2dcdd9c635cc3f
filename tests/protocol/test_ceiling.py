"""No arm is faster than a step whose attention costs nothing."""

import msgspec
import pytest

from attnbench.protocol.ceiling import above_ceiling, ceiling_for
from attnbench.protocol.cell import Arm, Role, Scope
from attnbench.protocol.verdict import Reason, Verdict
from tests.protocol.samples import decided, sessions_of, slowed, with_visits

ZERO = "zero_cost"


def against_a_ceiling_of_700_us(step_us, sessions=3, **settings):
    return decided(
        sessions_of({"c": step_us, ZERO: 700.0}, sessions=sessions), ceiling=ZERO, **settings
    )


@pytest.mark.parametrize(
    ("step_us", "void"), [(900.0, False), (705.0, False), (680.0, False), (660.0, True), (70, True)]
)
def test_a_speed_up_beyond_the_baselines_attention_voids(step_us, void):
    found = against_a_ceiling_of_700_us(step_us)
    assert (found.reason is Reason.ABOVE_AMDAHL) == void
    assert (found.verdict is Verdict.VOID) == void
    assert found.next_step


def test_the_detail_says_by_how_much_and_faster_than_what():
    found = against_a_ceiling_of_700_us(350.0)
    assert "zero_cost" in found.next_step
    assert "99" in found.next_step or "100" in found.next_step


def test_without_a_ceiling_nothing_is_bounded():
    assert decided(sessions_of({"c": 100.0, ZERO: 700.0})).verdict is Verdict.FASTER


def test_an_arm_that_is_not_surely_above_is_not_void():
    by_session = (0.6, 1.3, 0.8)
    sessions = with_visits(
        sessions_of({"c": 700.0, ZERO: 700.0}),
        lambda s, visit: slowed(visit, by_session[s]) if visit.arm == "c" else visit,
    )
    assert above_ceiling(sessions, "c", ZERO) == ""


def test_a_jump_of_the_ceiling_in_one_group_makes_nobody_beat_it():
    sessions = with_visits(
        sessions_of({"c": 700.0, ZERO: 700.0}),
        lambda _, v: slowed(v, 1.6) if (v.arm, v.group) == (ZERO, 0) else v,
    )
    assert above_ceiling(sessions, "c", ZERO) == ""


@pytest.mark.parametrize("sessions", [1, 2])
def test_fewer_than_three_sessions_cannot_show_it(sessions):
    assert against_a_ceiling_of_700_us(70.0, sessions).reason is Reason.TOO_FEW_SESSIONS


def test_a_ceiling_that_failed_bounds_nobody():
    sessions = with_visits(
        sessions_of({"c": 100.0, ZERO: 700.0}), lambda s, v: None if v.arm == ZERO and s else v
    )
    assert decided(sessions, ceiling=ZERO).verdict is Verdict.FASTER


def arm(label, role=Role.CANDIDATE):
    return Arm(label=label, method=label, role=role)


ARMS = (arm("a", Role.BASELINE), arm("c"), arm(ZERO, Role.CONTROL))


def test_candidates_in_a_step_are_bounded_by_the_zero_cost_arm():
    assert ceiling_for(arm("c"), Scope.STEP, ARMS, ZERO) == ZERO


@pytest.mark.parametrize("role", [Role.CONTROL, Role.BASELINE, Role.BASELINE_AGAIN])
def test_controls_and_the_baseline_pair_are_not(role):
    other = msgspec.structs.replace(arm("c"), role=role)
    assert ceiling_for(other, Scope.STEP, ARMS, ZERO) is None


def test_attention_alone_and_a_run_without_the_arm_have_no_such_bound():
    assert ceiling_for(arm("c"), Scope.ATTENTION, ARMS, ZERO) is None
    assert ceiling_for(arm("c"), Scope.STEP, ARMS[:2], ZERO) is None
    assert ceiling_for(arm(ZERO), Scope.STEP, ARMS, ZERO) is None
