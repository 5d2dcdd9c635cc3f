"""A verdict starts at INCONCLUSIVE and earns everything else."""

import math

import msgspec
import pytest

from attnbench.protocol.decide import adjusted
from attnbench.protocol.presets import CANONICAL
from attnbench.protocol.verdict import NEXT_STEP, LatencyVerdict, Reason, Verdict
from attnbench.stats.variance import Costs
from tests.calibration.simulated_gpu import SimulatedArm, SimulatedGpu
from tests.protocol.samples import decided, sessions_of, slowed, with_visits

said = pytest.mark.parametrize


@said(
    ("step_us", "verdict", "reason"),
    [
        (800.0, Verdict.FASTER, Reason.INTERVAL_CLEAR),
        (1250.0, Verdict.SLOWER, Reason.INTERVAL_CLEAR),
        (1000.0, Verdict.EQUIVALENT, Reason.WITHIN_MARGIN),
    ],
)
def test_clear_differences_get_their_verdict(step_us, verdict, reason):
    found = decided(sessions_of({"c": step_us}))
    assert (found.verdict, found.reason) == (verdict, reason)


def test_the_speed_up_is_baseline_time_over_arm_time():
    found = decided(sessions_of({"c": 800.0}))
    assert found.ratio.low < 1.25 < found.ratio.high
    assert found.ratio.estimate == pytest.approx(1.25, rel=0.002)
    assert found.robust_ratio.estimate == pytest.approx(1.25, rel=0.002)
    assert found.latency_ms["median"] == pytest.approx(0.8, rel=0.03)


def test_a_small_but_certain_difference_is_faster_and_equivalent():
    found = decided(sessions_of({"c": 996.0}))
    assert (found.verdict, found.equivalent) == (Verdict.FASTER, True)


@said(("claim", "verdict"), [(0.2, Verdict.FASTER), (0.3, Verdict.INCONCLUSIVE)])
def test_a_registered_claim_must_be_cleared_as_a_whole(claim, verdict):
    assert decided(sessions_of({"c": 800.0}), claim=claim).verdict is verdict


@said("sessions", [1, 2])
def test_fewer_than_three_sessions_decide_nothing(sessions):
    found = decided(sessions_of({"c": 500.0}, sessions=sessions))
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, Reason.TOO_FEW_SESSIONS)
    assert (found.ratio is msgspec.UNSET) == (sessions == 1)


def test_no_session_decides_nothing():
    assert decided([]).reason is Reason.TOO_FEW_SESSIONS


def test_unresolved_says_what_it_could_have_seen_and_how_many_sessions_would_do():
    noisy = SimulatedGpu(step_sd=0.02, placement_sd=0.02, capture_sd=0.0)
    found = decided(sessions_of({"c": 1000.0}, gpu=noisy))
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, Reason.NOT_RESOLVED)
    assert found.smallest_effect > 0.01
    assert found.sessions_needed > 3
    assert f"{found.sessions_needed} sessions would see" in found.next_step


def test_an_a_that_differs_from_a_again_voids_every_verdict_of_the_run():
    found = decided(sessions_of({"a2": 1010.0, "c": 500.0}))
    assert (found.verdict, found.reason) == (Verdict.VOID, Reason.AA_CONTROL)
    assert not found.aa.low <= 1 <= found.aa.high


def uneven_again(sessions, by):
    """A' alone differs by session: up, down, and in between, so that it still covers A."""
    factors = [1 + by, 1 - by, 1.0]
    return with_visits(
        sessions, lambda s, visit: slowed(visit, factors[s]) if visit.arm == "a2" else visit
    )


# The effect is 5.1 %; the half width of three sessions that differ by so much is 2.5 times that.
@said(("by", "verdict"), [(0.008, Verdict.FASTER), (0.014, Verdict.VOID), (0.03, Verdict.VOID)])
def test_a_control_wider_than_half_of_the_observed_effect_voids_it(by, verdict):
    found = decided(uneven_again(sessions_of({"c": 950.0}), by))
    assert found.verdict is verdict
    if verdict is Verdict.VOID:
        assert found.reason is Reason.AA_CONTROL
        assert "too wide" in found.next_step


def test_a_registered_claim_and_not_the_observed_effect_sets_the_controls_width():
    sessions = uneven_again(sessions_of({"c": 500.0}), 0.03)
    assert decided(sessions).verdict is Verdict.FASTER
    assert decided(sessions, claim=0.05).reason is Reason.AA_CONTROL


def test_equivalence_needs_a_control_under_half_of_the_margin():
    sessions = uneven_again(sessions_of({"c": 1000.0}), 0.004)
    assert decided(sessions).reason is Reason.AA_CONTROL
    wider = msgspec.structs.replace(CANONICAL, equivalence_margin=0.05)
    assert decided(sessions, protocol=wider).verdict is Verdict.EQUIVALENT


def test_a_wide_control_leaves_an_arm_that_shows_nothing_inconclusive():
    noisy = SimulatedGpu(placement_sd=0.02)
    assert decided(sessions_of({"c": 1000.0}, gpu=noisy)).reason is Reason.NOT_RESOLVED


def with_a_slow_group(sessions, by):
    return with_visits(
        sessions,
        lambda _, visit: slowed(visit, by) if (visit.arm, visit.group) == ("c", 0) else visit,
    )


def test_one_slow_group_a_session_is_a_heavy_tail_and_not_a_verdict():
    found = decided(with_a_slow_group(sessions_of({"c": 990.0}), 1.03))
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, Reason.HEAVY_TAIL)
    assert found.robust_ratio.low > 1  # the robust centre alone would have said FASTER


def test_one_centre_alone_earns_nothing():
    sessions = with_visits(
        sessions_of({"c": 990.0}),
        lambda s, visit: (
            slowed(visit, 1.06) if (visit.arm, visit.group) == ("c", s) and s else visit
        ),
    )
    found = decided(sessions)
    assert found.robust_ratio.low > 1 > found.ratio.low
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, Reason.HEAVY_TAIL)


def test_faster_than_the_baseline_but_not_than_another_exact_arm_is_no_speed_up():
    sessions = sessions_of({"c": 900.0, "other": 850.0, "slow": 2000.0})
    found = decided(sessions, exact_arms=("a", "other", "slow"))
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, Reason.NOT_STRONGEST)
    assert found.not_beaten == ("other",)
    assert "other" in found.next_step


def test_faster_than_every_exact_arm_is_faster():
    sessions = sessions_of({"c": 800.0, "other": 850.0})
    found = decided(sessions, exact_arms=("a", "other", "c"))
    assert (found.verdict, found.not_beaten) == (Verdict.FASTER, ())


def candidate(p_value, verdict=Verdict.FASTER, equivalence_p=1.0):
    return LatencyVerdict(
        arm="c",
        verdict=verdict,
        reason=Reason.INTERVAL_CLEAR,
        next_step="",
        p_value=p_value,
        equivalence_p=equivalence_p,
        equivalent=equivalence_p <= 0.05,
    )


def test_among_several_candidates_a_verdict_must_stand_after_holm():
    found = adjusted([candidate(0.001), candidate(0.03), candidate(0.04)], level=0.95)
    assert [v.verdict for v in found] == [Verdict.FASTER] + [Verdict.INCONCLUSIVE] * 2
    assert found[1].reason is Reason.HOLM
    assert adjusted([candidate(0.04)], level=0.95)[0].verdict is Verdict.FASTER


def test_a_difference_lost_to_holm_is_still_equivalent_where_that_holds():
    found = adjusted([candidate(0.04, equivalence_p=0.001), candidate(0.9)], level=0.95)
    assert (found[0].verdict, found[0].reason) == (Verdict.EQUIVALENT, Reason.WITHIN_MARGIN)


def test_equivalence_too_must_stand_after_holm():
    equal = candidate(1.0, Verdict.EQUIVALENT, equivalence_p=0.04)
    found = adjusted([equal, candidate(1e-6)], level=0.95)
    assert (found[0].verdict, found[0].reason) == (Verdict.INCONCLUSIVE, Reason.HOLM)


def test_void_candidates_stay_void_and_make_nobody_elses_test_easier():
    void = candidate(1e-9, Verdict.VOID)
    found = adjusted([void, candidate(0.03)], level=0.95)
    assert [v.verdict for v in found] == [Verdict.VOID, Verdict.INCONCLUSIVE]


def test_an_arm_that_slows_its_successor_shows_as_carry_over():
    sessions = []
    for session in sessions_of({"c": 800.0, "d": 900.0, "e": 950.0}):
        visits = session.visits
        after = [None, *visits[:-1]]
        changed = tuple(
            slowed(visit, 1.02) if before and before.arm == "c" else visit
            for before, visit in zip(after, visits, strict=True)
        )
        sessions.append(msgspec.structs.replace(session, visits=changed))
    assert decided(sessions).carry_over.estimate == pytest.approx(1.02, abs=0.003)
    assert decided(sessions, "d").carry_over.estimate < 1.01


def test_the_spread_is_split_into_sessions_groups_and_blocks():
    by_group = SimulatedGpu(step_sd=0.001, placement_sd=0.0, capture_sd=0.01)
    spread = decided(sessions_of({"c": 900.0}, gpu=by_group)).spread
    assert spread.group_sd == pytest.approx(0.01 * math.sqrt(2), rel=0.5)
    assert spread.block_sd < 0.002


def test_a_verdict_becomes_plain_json_without_nan_or_infinity():
    for found in (decided(sessions_of({"c": 800.0})), decided(sessions_of({"c": 800.0}, 1))):
        plain = msgspec.to_builtins(found)
        again = msgspec.convert(plain, LatencyVerdict)
        assert again == found
        numbers = [v for v in plain.values() if isinstance(v, float)]
        assert all(math.isfinite(number) for number in numbers)


def by_session(sessions, factors, arms=("c",), groups=range(4)):
    """The sessions with these arms slower or faster by a factor of their own in each."""
    return with_visits(
        sessions,
        lambda s, v: slowed(v, factors[s]) if v.arm in arms and v.group in groups else v,
    )


def numbers_of(plain):
    for value in plain.values():
        if isinstance(value, dict):
            yield from numbers_of(value)
        elif isinstance(value, float):
            yield value


@said("factor", [10.0, 1e6, 1e30, 1e150])
@said("count", [2, 3])
def test_sessions_that_disagree_wildly_decide_nothing_and_have_finite_figures(factor, count):
    wild = by_session(sessions_of({"c": 1000.0}, count), (factor, 1 / factor, 1.0))
    found = decided(wild, costs=Costs(session_s=1.0, group_s=1.0, block_s=1.0))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.reason is (Reason.NOT_RESOLVED if count == 3 else Reason.TOO_FEW_SESSIONS)
    numbers = list(numbers_of(msgspec.to_builtins(found)))
    assert len(numbers) > 20
    assert all(math.isfinite(number) for number in numbers)
    assert all(r.low > 0 for r in (found.ratio, found.robust_ratio))
    assert len(found.next_step) < 200
    assert "inf" not in found.next_step


def test_a_wild_group_in_each_session_is_a_heavy_tail_with_finite_figures():
    wild = by_session(sessions_of({"c": 1000.0}), (1e100, 1e100, 1e100), groups=(0,))
    found = decided(wild)
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, Reason.HEAVY_TAIL)
    assert all(math.isfinite(number) for number in numbers_of(msgspec.to_builtins(found)))


def test_a_wild_twin_leaves_nothing_said_of_anybody_with_finite_figures():
    wild = by_session(sessions_of({"c": 500.0}), (1e9, 1e-9, 1.0), arms=("a2",))
    found = decided(wild)
    assert (found.verdict, found.reason) == (Verdict.VOID, Reason.AA_CONTROL)
    assert all(math.isfinite(number) for number in numbers_of(msgspec.to_builtins(found)))


def test_a_verdict_is_a_pure_function_of_the_samples():
    sessions = sessions_of({"c": 800.0})
    assert decided(sessions) == decided(list(sessions))


def test_every_reason_says_what_to_do_next():
    assert set(NEXT_STEP) == set(Reason)
    assert all(NEXT_STEP.values())


def test_arms_of_two_speeds_by_session_are_not_hidden_by_more_blocks():
    two_speeds = SimulatedArm(900.0, session_speeds=(-0.02, 0.02))
    found = decided(sessions_of({"c": two_speeds}, sessions=8))
    assert found.spread.session_sd == pytest.approx(0.02, rel=0.3)


def test_the_baseline_asked_about_itself_is_equivalent_by_definition():
    found = decided(sessions_of({"c": 800.0}), "a", exact_arms=("a", "c"))
    assert (found.verdict, found.ratio.estimate) == (Verdict.EQUIVALENT, 1.0)
