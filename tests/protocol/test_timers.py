"""Three clocks around a visit, and when they contradict each other."""

import msgspec
import pytest

from attnbench.protocol.verdict import Reason, Verdict
from tests.protocol.samples import decided, sessions_of, with_visits

replace = msgspec.structs.replace
VISIT_US = 4000.0  # five steps of 800 µs


@pytest.fixture(name="sessions", scope="module")
def _sessions():
    """Launching costs every arm 100 µs a visit."""
    return with_visits(
        sessions_of({"c": 800.0, "d": 900.0}),
        lambda _, visit: replace(visit, wall_us=visit.wall_us + 100.0),
    )


def with_wall(sessions, arms, more_us):
    return with_visits(
        sessions,
        lambda _, v: replace(v, wall_us=v.wall_us + more_us) if v.arm in arms else v,
    )


def test_launches_that_cost_all_arms_alike_void_nothing(sessions):
    assert decided(sessions).verdict is Verdict.FASTER


@pytest.mark.parametrize(("more_us", "void"), [(40.0, False), (70.0, True), (-70.0, False)])
def test_an_arm_is_judged_by_what_the_baseline_needs_in_the_same_session(sessions, more_us, void):
    found = decided(with_wall(sessions, ("c",), more_us))
    assert (found.reason is Reason.TIMERS_DISAGREE) == void
    assert ("c" in found.next_step) or not void


def lasting_twenty_times_as_long(sessions):
    def longer(_, visit):
        steps_us = visit.steps_us * 20
        return replace(visit, steps_us=steps_us, wall_us=sum(steps_us) + 100.0)

    return with_visits(sessions, longer)


def test_longer_visits_may_lie_further_apart(sessions):
    visits = lasting_twenty_times_as_long(sessions)
    allowed_us = 50.0 + 0.002 * 20 * VISIT_US
    assert decided(with_wall(visits, ("c",), allowed_us - 10)).verdict is Verdict.FASTER
    assert decided(with_wall(visits, ("c",), allowed_us + 10)).reason is Reason.TIMERS_DISAGREE


@pytest.mark.parametrize(("more_us", "void"), [(200.0, False), (300.0, True)])
def test_what_all_arms_share_is_bounded_by_the_launch_budget(sessions, more_us, void):
    found = decided(with_wall(sessions, ("a", "a2", "c", "d"), more_us))
    assert (found.reason is Reason.TIMERS_DISAGREE) == void


def test_a_twin_of_the_baseline_that_hides_work_voids_as_well(sessions):
    assert decided(with_wall(sessions, ("a2",), 100.0)).reason is Reason.TIMERS_DISAGREE


def test_arms_that_are_not_compared_may_hide_what_they_like(sessions):
    assert decided(with_wall(sessions, ("d",), 1e5)).verdict is Verdict.FASTER


def seen_by_the_parent(sessions, arm, parent_us):
    return with_visits(
        sessions,
        lambda _, v: replace(v, parent_us=parent_us(v)) if v.arm == arm else v,
    )


@pytest.mark.parametrize("arm", ["c", "a", "a2"])
@pytest.mark.parametrize(
    ("more_us", "void"), [(0.0, False), (1900.0, False), (2500.0, True), (1e5, True)]
)
def test_a_worker_that_claims_less_time_than_its_parent_saw_pass_voids(
    sessions, arm, more_us, void
):
    found = decided(seen_by_the_parent(sessions, arm, lambda v: v.wall_us + more_us))
    assert (found.reason is Reason.TIMERS_DISAGREE) == void
    assert ("parent" in found.next_step) == void


@pytest.mark.parametrize("more_us", [1000.0, 25_000.0])
def test_messages_that_are_slow_for_every_arm_void_nothing(sessions, more_us):
    all_slow = with_visits(sessions, lambda _, v: replace(v, parent_us=v.wall_us + more_us))
    assert decided(all_slow).reason is not Reason.TIMERS_DISAGREE


@pytest.mark.parametrize(("share", "void"), [(1.05, False), (1.10, True)])
def test_of_a_long_visit_the_parent_may_miss_a_twentieth(sessions, share, void):
    visits = lasting_twenty_times_as_long(sessions)
    found = decided(seen_by_the_parent(visits, "c", lambda v: v.wall_us * share))
    assert (found.reason is Reason.TIMERS_DISAGREE) == void


def test_a_worker_that_claims_more_time_than_there_was_voids(sessions):
    found = decided(seen_by_the_parent(sessions, "c", lambda v: v.wall_us / 3))
    assert found.reason is Reason.TIMERS_DISAGREE


def test_a_parent_that_did_not_look_says_nothing(sessions):
    assert decided(seen_by_the_parent(sessions, "c", lambda v: 0.0)).verdict is Verdict.FASTER


def test_of_some_visits_seen_and_others_not_only_the_seen_count(sessions):
    patched = seen_by_the_parent(sessions, "c", lambda v: 1e5 if v.block < 3 else 0.0)
    assert decided(patched).reason is Reason.TIMERS_DISAGREE


def test_a_parent_that_slept_in_some_visits_voids_nothing(sessions):
    slept = seen_by_the_parent(sessions, "c", lambda v: v.wall_us + (5e4 if v.block < 5 else 300))
    assert decided(slept).verdict is Verdict.FASTER
