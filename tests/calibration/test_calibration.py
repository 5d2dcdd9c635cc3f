"""What the whole pipeline gets wrong, and how often, on a GPU whose truth is known."""

from __future__ import annotations

import math
from functools import cache

import msgspec
import pytest
from scipy import stats

from attnbench.protocol.presets import CANONICAL, RIGOROUS
from attnbench.protocol.verdict import Reason, Verdict
from attnbench.stats.equivalence import smallest_effect
from tests.calibration.pipeline import (
    SAID_DIFFERENT,
    excludes,
    experiment,
    pooled_blocks_differ,
    pooled_steps_differ,
    said,
    share,
    verdicts,
)
from tests.calibration.simulated_gpu import SimulatedArm, SimulatedGpu

NULL_RUNS = 2000
MOST_FALSE = 0.065  # at a nominal 5 %
LIKE_AN_H100 = SimulatedGpu(
    step_sd=0.002, session_sd=0.003, placement_sd=0.0004, capture_sd=0.0008, drift=0.002
)
GPUS = {
    "like an H100": LIKE_AN_H100,
    "drift and sessions": SimulatedGpu(drift=0.1, session_sd=0.05),
    "two speeds and spikes": SimulatedGpu(second_speed=0.05, spike_share=0.02, spike=1.0),
    "placement": SimulatedGpu(placement_sd=0.01),
}


@cache
def null_verdicts(name):
    return verdicts(GPUS[name], SimulatedArm(), NULL_RUNS)


@pytest.mark.parametrize("name", GPUS)
def test_without_a_difference_faster_or_slower_is_said_in_at_most_six_and_a_half_percent(name):
    assert share(null_verdicts(name), said(*SAID_DIFFERENT)) <= MOST_FALSE


@pytest.mark.parametrize("centre", ["ratio", "robust_ratio"])
@pytest.mark.parametrize("name", GPUS)
def test_each_centres_interval_alone_holds_the_level_too(name, centre):
    found = null_verdicts(name)
    misses = sum(excludes(getattr(verdict, centre), 1.0) for verdict in found)
    assert misses / len(found) <= MOST_FALSE
    assert stats.binomtest(misses, len(found), 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("name", ["like an H100", "placement"])
def test_pooled_steps_and_pooled_blocks_fail_the_same_test(name):
    runs = [experiment(GPUS[name], SimulatedArm(), seed) for seed in range(200)]
    for naive in (pooled_steps_differ, pooled_blocks_differ):
        assert sum(map(naive, runs)) / len(runs) > 2 * MOST_FALSE


@pytest.mark.parametrize("name", GPUS)
def test_the_control_calls_a_differ_from_itself_in_at_most_three_honest_runs_of_a_hundred(name):
    def differs(found):
        return found.reason is Reason.AA_CONTROL and "differ" in found.next_step

    assert 0 < share(null_verdicts(name), differs) <= 0.03


def test_no_honest_run_is_void_for_anything_but_its_control():
    reasons = {v.reason for name in GPUS for v in null_verdicts(name) if v.verdict is Verdict.VOID}
    assert reasons == {Reason.AA_CONTROL}


def test_on_a_quiet_gpu_equal_methods_are_found_equivalent():
    assert share(null_verdicts("like an H100"), said(Verdict.EQUIVALENT)) >= 0.9


def test_an_injected_percent_is_found_by_canonical_and_rigorous_in_nineteen_runs_of_twenty():
    arm = SimulatedArm(1000.0 / 1.01)
    assert share(verdicts(LIKE_AN_H100, arm, 400), said(Verdict.FASTER)) >= 0.95
    assert share(verdicts(LIKE_AN_H100, arm, 60, RIGOROUS), said(Verdict.FASTER)) >= 0.95


def test_the_smallest_effect_that_a_run_states_is_seen_in_four_of_five():
    gpu = LIKE_AN_H100
    steps_of_an_arm = 12 * 5
    sd = math.sqrt(
        2 * (gpu.placement_sd**2 + gpu.capture_sd**2 / 4 + gpu.step_sd**2 / steps_of_an_arm)
    )
    effect = smallest_effect(sd, sessions=3, level=0.95)
    found = verdicts(gpu, SimulatedArm(1000.0 / (1 + effect)), 600)
    assert share(found, lambda verdict: verdict.ratio.low > 1) == pytest.approx(0.8, abs=0.05)


def test_intervals_cover_the_true_ratio_of_arms_that_differ():
    found = verdicts(GPUS["placement"], SimulatedArm(800.0), 400)
    assert share(found, lambda verdict: excludes(verdict.ratio, 1.25)) <= MOST_FALSE


def test_a_large_speed_up_is_found_on_a_rough_machine_as_well():
    found = verdicts(SimulatedGpu(second_speed=0.05, placement_sd=0.01), SimulatedArm(800.0), 200)
    assert share(found, said(Verdict.FASTER)) >= 0.95


def test_an_arm_slow_in_a_fifth_of_its_groups_fools_the_robust_centre_and_not_the_verdict():
    # Typically 0.2 % faster, in every fifth capture 0.8 % slower: on average no faster.
    arm = SimulatedArm(998.0, slow_share=0.2, slow_by=0.01)
    found = verdicts(LIKE_AN_H100, arm, 120, RIGOROUS)
    assert share(found, lambda verdict: verdict.robust_ratio.low > 1) > 0.5
    assert share(found, said(Verdict.FASTER)) <= MOST_FALSE


@pytest.mark.parametrize(
    ("sessions", "runs", "least", "most"), [(3, 1000, 0.2, 0.3), (8, 600, 0.03, 0.1)]
)
def test_three_sessions_cannot_hold_the_level_for_an_arm_of_two_speeds_by_session(
    sessions, runs, least, most
):
    # A limit, not a merit: with three coins a quarter of all runs shows the same side thrice.
    protocol = msgspec.structs.replace(CANONICAL, sessions=sessions, blocks=4, groups=2)
    arm = SimulatedArm(session_speeds=(-0.01, 0.01))
    found = verdicts(LIKE_AN_H100, arm, runs, protocol)
    assert least < share(found, said(*SAID_DIFFERENT)) < most
