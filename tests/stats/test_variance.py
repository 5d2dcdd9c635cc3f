"""The split of variance finds what was put in, and the plan is the cheapest that suffices."""

import numpy as np
import pytest

from attnbench.stats.student import mean_interval
from attnbench.stats.variance import Costs, Variance, cheapest_plan, split_variance


def simulated(rng, session_sd, group_sd, block_sd, sessions=8, groups=6, blocks=4):
    return [
        [
            list(of_session + of_group + rng.normal(0, block_sd, blocks))
            for of_group in rng.normal(0, group_sd, groups)
        ]
        for of_session in rng.normal(0, session_sd, sessions)
    ]


@pytest.mark.parametrize("sds", [(0.003, 0.001, 0.002), (0.001, 0.003, 0.001), (0.002, 0.0, 0.001)])
def test_each_level_gets_the_variance_that_was_put_in(sds):
    rng = np.random.default_rng(5)
    splits = [split_variance(simulated(rng, *sds)) for _ in range(400)]
    found = np.array([[split.session, split.group, split.block] for split in splits]).mean(axis=0)
    assert found == pytest.approx(np.square(sds), rel=0.1, abs=2e-7)


def test_groups_of_unequal_size_are_split_as_well():
    rng = np.random.default_rng(6)
    splits = []
    for _ in range(400):
        sessions = simulated(rng, 0.003, 0.002, 0.002)
        splits.append(split_variance([[g[: 2 + i % 3] for i, g in enumerate(s)] for s in sessions]))
    assert np.mean([split.group for split in splits]) == pytest.approx(0.002**2, rel=0.1)
    assert np.mean([split.session for split in splits]) == pytest.approx(0.003**2, rel=0.1)


def test_without_a_second_group_there_is_nothing_to_split():
    with pytest.raises(ValueError, match="two values at every level"):
        split_variance([[[0.1, 0.2]], [[0.3, 0.1]]])


COSTS = Costs(session_s=30.0, group_s=2.0, block_s=0.5)


def test_the_plan_reaches_its_half_width_in_simulation():
    variance = Variance(session=0.002**2, group=0.003**2, block=0.004**2)
    plan = cheapest_plan(variance, COSTS, half_width=0.003, level=0.95)
    assert plan.half_width <= 0.003
    rng = np.random.default_rng(7)
    widths = []
    for _ in range(500):
        run = simulated(rng, 0.002, 0.003, 0.004, plan.sessions, plan.groups, plan.blocks_per_group)
        widths.append(mean_interval([np.mean(session) for session in run], 0.95).half_width)
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(plan.half_width, rel=0.05)


def test_noise_within_sessions_is_bought_with_blocks_and_noise_between_them_with_sessions():
    within = cheapest_plan(Variance(0.0, 0.0, 0.01**2), COSTS, half_width=0.003, level=0.95)
    between = cheapest_plan(Variance(0.01**2, 0.0, 0.0), COSTS, half_width=0.003, level=0.95)
    assert within.sessions < between.sessions
    assert within.groups * within.blocks_per_group > between.groups * between.blocks_per_group == 4


def test_costly_captures_make_fewer_and_longer_groups():
    variance = Variance(session=0.0, group=0.001**2, block=0.01**2)
    dear = cheapest_plan(variance, Costs(30.0, 20.0, 0.5), half_width=0.003, level=0.95)
    cheap = cheapest_plan(variance, Costs(30.0, 0.1, 0.5), half_width=0.003, level=0.95)
    assert dear.blocks_per_group > cheap.blocks_per_group


def test_a_half_width_out_of_reach_has_no_plan():
    assert cheapest_plan(Variance(1.0, 0.0, 0.0), COSTS, half_width=1e-4, level=0.95) is None
