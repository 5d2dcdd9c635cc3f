"""Position and carry-over are found when they are there, and only then."""

import numpy as np
import pytest

from attnbench.protocol.schedule import schedule
from attnbench.stats.order import PlacedVisit, order_effects

ARMS = ("a", "a2", "slowing", "d", "e")


def walked(position_effect, carry_over, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    plan = schedule(ARMS, sessions=1, blocks=12, groups=4, seed=seed)
    visits, follows = [], ""
    for number, block in enumerate(plan.sessions[0].blocks):
        for position, arm in enumerate(block.arms):
            log_time = ARMS.index(arm) + 0.01 * number + rng.normal(0, noise)
            log_time += position_effect * position / (len(ARMS) - 1)
            log_time += carry_over * (follows == "slowing")
            visits.append(PlacedVisit(arm, number, position, follows, log_time))
            follows = arm
    return visits


@pytest.mark.parametrize("effects", [(0.0, 0.0), (0.02, 0.0), (0.0, 0.01), (-0.03, 0.05)])
def test_both_effects_are_told_apart_from_arms_and_blocks(effects):
    found = order_effects(walked(*effects), "slowing")
    assert (found.position, found.carry_over) == pytest.approx(effects, abs=1e-12)


def test_an_arm_that_leaves_nothing_behind_is_not_blamed():
    found = [order_effects(walked(0.0, 0.0, 0.01, seed), "slowing") for seed in range(200)]
    assert np.mean([effect.carry_over for effect in found]) == pytest.approx(0.0, abs=1e-3)
    assert np.mean([effect.position for effect in found]) == pytest.approx(0.0, abs=1e-3)


def test_one_block_cannot_tell_the_effects_apart():
    assert order_effects(walked(0.02, 0.01)[: len(ARMS)], "slowing") is None
