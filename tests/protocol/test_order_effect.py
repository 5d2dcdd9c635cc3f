from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from msgspec import UNSET

from attnbench.protocol.order_effect import ARMS, BLOCKS, SEQUENTIAL, bias, sequential_schedule
from attnbench.protocol.schedule import schedule
from tests.calibration.simulated_gpu import SimulatedArm, SimulatedGpu

# It gets 8 % faster from the first visit of a process to its last, whatever runs.
WARMS_UP = SimulatedGpu(step_sd=0.001, placement_sd=1e-4, capture_sd=1e-4, drift=-0.08)
SAME = dict.fromkeys(ARMS, SimulatedArm())


def sessions(how: str, count: int = 5, gpu: SimulatedGpu = WARMS_UP):
    in_blocks = schedule(ARMS, sessions=count, blocks=12, groups=4, seed=1).sessions
    plans = in_blocks if how == BLOCKS else [sequential_schedule(n) for n in range(count)]
    return [gpu.session(plan, SAME, 30, np.random.default_rng(plan.session)) for plan in plans]


def test_in_sequence_each_arm_is_set_up_and_timed_before_the_next_one_exists():
    plan = sequential_schedule(2)
    assert [group.capture_order for group in plan.groups] == [("A",), ("B",)]
    assert [[block.arms for block in group.blocks] for group in plan.groups] == [
        [("A",)],
        [("B",)],
    ]
    assert plan.session == 2


def test_on_a_machine_that_warms_up_the_second_arm_looks_faster_than_itself():
    found = bias(SEQUENTIAL, sessions(SEQUENTIAL), 0.95)
    assert found.ratio.estimate == pytest.approx(math.exp(0.08), rel=0.005)
    assert found.ratio.low > 1.07
    assert found.of_medians.estimate == pytest.approx(math.exp(0.08), rel=0.005)
    assert len(found.each) == found.processes == 5


def test_in_randomised_blocks_it_does_not():
    found = bias(BLOCKS, sessions(BLOCKS), 0.95)
    assert found.ratio.estimate == pytest.approx(1, abs=0.004)
    assert found.ratio.low < 1 < found.ratio.high


def test_one_process_has_a_bias_and_no_interval():
    found = bias(SEQUENTIAL, sessions(SEQUENTIAL, 1), 0.95)
    assert found.processes == 1
    assert found.ratio is UNSET


def test_a_process_in_which_an_arm_failed_says_nothing():
    whole, other = sessions(SEQUENTIAL, 2)
    alone = [visit for visit in other.visits if visit.arm == "A"]
    cut = msgspec.structs.replace(other, visits=tuple(alone))
    assert bias(SEQUENTIAL, [whole, cut], 0.95).processes == 1
