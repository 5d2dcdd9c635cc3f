"""A calibration finds what is true of the machine that it runs on."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import msgspec
import pytest
from msgspec import UNSET

from attnbench.protocol.calibration import findings, harness_share, runs_of_three, smallest_found
from attnbench.protocol.calibration_result import Level
from attnbench.protocol.calibration_spread import pair_spread
from tests.calibration.instrument import (
    INJECTED,
    LIKE_AN_H100,
    PHASES,
    STEPS,
    calibrated,
)
from tests.calibration.simulated_gpu import SimulatedArm, SimulatedGpu

PAIRS = (("A#2", "A"), ("S", "A"))
STILL = SimulatedGpu(step_sd=1e-5, placement_sd=0.0, capture_sd=0.0)


@cache
def found():
    return findings(calibrated())


def spread_of(gpu: SimulatedGpu, sessions: int, **others: SimulatedArm):
    return pair_spread(calibrated(sessions, gpu, **others).samples, PAIRS, 0.95)


def test_the_spread_of_equal_arms_is_that_of_the_machine():
    gpu = LIKE_AN_H100
    variance = gpu.placement_sd**2 + gpu.capture_sd**2 / 4 + gpu.step_sd**2 / (12 * STEPS)
    spread = spread_of(gpu, 150)
    assert spread.mean.sd == pytest.approx(math.sqrt(2 * variance), rel=0.12)
    assert spread.mean.sd < spread.mean.upper < 1.2 * spread.mean.sd


def test_another_kernel_that_varies_by_process_spreads_more_than_a_against_itself():
    assert found().ab.mean.sd > 1.3 * found().aa.mean.sd
    assert found().ab.pairs == ("X/A",)


def test_a_robust_centre_is_worth_most_where_captures_jump_now_and_then():
    jumps = SimulatedArm(slow_share=0.06, slow_by=0.01)
    spread = spread_of(LIKE_AN_H100, 60, **dict.fromkeys(("A", "A#2", "S"), jumps))
    assert spread.robust_gain.low > 1
    assert spread.robust_gain.estimate == pytest.approx(spread.mean.sd / spread.robust.sd)


def test_placing_anew_averages_out_what_a_capture_costs():
    placed = spread_of(replace(STILL, capture_sd=0.001), 100).placement
    assert placed.blocks == 3
    assert placed.one_capture == pytest.approx(math.sqrt(2) * 0.001, rel=0.12)
    assert placed.gain.estimate == pytest.approx(math.sqrt(3), rel=0.1)
    assert placed.gain.low < math.sqrt(3) < placed.gain.high


def test_placing_anew_does_nothing_for_what_lasts_as_long_as_the_process():
    placed = spread_of(replace(STILL, placement_sd=0.001), 60).placement
    assert placed.gain.estimate == pytest.approx(1, abs=0.02)


def test_every_level_shows_what_the_device_waited_and_measures_as_much():
    for level, injected in zip(found().levels, INJECTED, strict=True):
        assert level.waited_us == pytest.approx(injected.wait_us)  # beyond what A waits
        assert level.true == pytest.approx(injected.asked, rel=0.03)
        assert level.measured.low < injected.asked < level.measured.high
        assert level.measured.level == 0.95


def test_large_slow_downs_are_found_in_every_run_and_the_least_in_few():
    by_arm = {level.arm: level for level in found().levels}
    assert all(level.runs == sum(level.verdicts.values()) == 10 for level in found().levels)
    assert [by_arm[arm].found for arm in ("+1%", "+2%", "+5%")] == [10, 10, 10]
    assert by_arm["+0.2%"].found < 8
    assert found().smallest_found in (0.005, 0.01)


def test_the_formula_and_the_injected_slow_downs_agree_on_what_is_seen():
    effects = found().aa.smallest_effects
    assert 0.002 < effects["3"] < 0.008
    assert effects["8"] < effects["3"] / 2


def test_the_sham_is_called_different_in_no_more_than_one_run_of_twenty():
    seen = findings(calibrated(180, protocol=calibrated(1).protocol, seed=3))
    void = sum(n for verdict, n in seen.sham_verdicts.items() if verdict.startswith("VOID"))
    assert sum(seen.sham_verdicts.values()) == 60
    assert seen.false_positives.trials == 60 - void > 50
    assert seen.false_positives.low <= 0.05
    pairs = seen.false_positives_of_pairs
    assert pairs.trials > 150
    assert pairs.hits / pairs.trials <= 0.08


def test_an_instrument_that_favours_an_arm_is_found_out_by_its_sham():
    seen = findings(calibrated(12, S=SimulatedArm(1010.0)))
    assert seen.false_positives.hits == seen.false_positives.trials == 4
    assert seen.false_positives.low > 0.3
    assert seen.sham_verdicts == {"SLOWER": 4}


def test_a_session_that_does_not_count_is_named_and_enters_no_spread():
    seen = calibrated(6)
    hot = tuple(
        msgspec.structs.replace(visit, gpu={"throttle_reasons": 0x8})
        for visit in seen.samples[2].visits
    )
    seen.samples[2] = msgspec.structs.replace(seen.samples[2], visits=hot)
    told = findings(seen)
    assert set(told.void) == {"2"}
    assert told.void["2"].startswith("throttled: ")
    assert told.sessions == 6
    assert told.aa.sessions == told.ab.sessions == 5
    assert all(level.verdicts["VOID (throttled)"] == 1 for level in told.levels)
    assert told.sham_verdicts["VOID (throttled)"] == 1
    assert told.false_positives.trials == 1
    assert told.false_positives_of_pairs.trials == 3


def test_an_arm_that_failed_in_a_session_voids_its_own_comparison_there_and_no_other():
    seen = calibrated(6)
    rest = tuple(visit for visit in seen.samples[1].visits if visit.arm != "X")
    seen.samples[1] = msgspec.structs.replace(seen.samples[1], visits=rest)
    told = findings(seen)
    assert told.aa.sessions == 6
    assert told.ab.sessions == 5
    assert told.void["1"] == "not-measured: session 1 has no visit of X"


def test_runs_are_three_consecutive_sessions_and_a_rest_is_left_over():
    samples = calibrated(8).samples
    runs = [[session.session for session in run] for run in runs_of_three(samples)]
    assert runs == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("sessions", [1, 2])
def test_too_few_sessions_leave_out_what_they_cannot_say(sessions):
    told = findings(calibrated(sessions))
    assert told.false_positives is UNSET
    assert told.smallest_found is UNSET
    assert (told.aa.mean is UNSET) == (sessions == 1)
    assert told.levels[0].true == pytest.approx(0.002, rel=0.1)
    assert msgspec.json.decode(msgspec.json.encode(told))["sessions"] == sessions


def level_of(asked: float, found: int, runs: int = 10) -> Level:
    return Level(arm="", asked=asked, wait_us=0.0, found=found, runs=runs, verdicts={})


@pytest.mark.parametrize(
    ("found_in", "least"),
    [((0, 8, 10), 0.02), ((8, 10, 10), 0.01), ((10, 7, 10), 0.05), ((10, 10, 7), UNSET)],
)
def test_the_smallest_effect_is_found_in_four_of_five_runs_as_is_every_greater_one(found_in, least):
    levels = [level_of(*pair) for pair in zip((0.01, 0.02, 0.05), found_in, strict=True)]
    assert smallest_found(levels) == least


def test_the_harness_takes_what_is_neither_load_set_up_warm_up_nor_timed():
    assert harness_share([PHASES]) == pytest.approx(0.5)
    assert found().harness_share == pytest.approx(0.5)
    assert harness_share([{}]) is UNSET
