"""Warm-up: honest steps pass on noisy machines, slopes do not."""

import numpy as np
import pytest

from attnbench.stats.warmup import FEWEST_STEPS, warmed_up

STEPS = 50


def flat(rng, sd):
    return rng.normal(0, sd, STEPS)


def spiked(rng):
    return flat(rng, 0.02) + (rng.random(STEPS) < 0.1) * rng.exponential(1.0, STEPS)


def of_two_speeds(rng):
    state = (np.cumsum(rng.random(STEPS) < 0.1) + rng.integers(2)) % 2
    return flat(rng, 0.02) + 0.15 * state


def jumping_once(rng):
    return flat(rng, 0.03) + 0.15 * (np.arange(STEPS) >= rng.integers(STEPS))


def drifting_slightly(rng):
    return flat(rng, 0.01) + 0.02 * np.arange(STEPS) / STEPS


def settled_early(rng):
    return flat(rng, 0.02) + np.log1p(3 * np.exp(-np.arange(STEPS) / 3))


HONEST = {
    "calm": lambda rng: flat(rng, 0.02),
    "noisy": lambda rng: flat(rng, 0.1),
    "very noisy": lambda rng: flat(rng, 0.3),
    "spiked": spiked,
    "two speeds": of_two_speeds,
    "one jump": jumping_once,
    "slight drift": drifting_slightly,
    "settled early": settled_early,
}
COLD = {
    "slope": lambda rng: flat(rng, 0.02) - 0.6 * np.arange(STEPS) / STEPS,
    "rising": lambda rng: flat(rng, 0.02) + 0.6 * np.arange(STEPS) / STEPS,
    "slow decay": lambda rng: flat(rng, 0.02) + np.log1p(3 * np.exp(-np.arange(STEPS) / 25)),
}


def passed_share(make):
    rng = np.random.default_rng(1)
    return np.mean([warmed_up(1000 * np.exp(make(rng))) for _ in range(1000)])


@pytest.mark.parametrize("kind", HONEST)
def test_honest_steps_are_refused_in_at_most_two_warm_ups_of_a_hundred(kind):
    assert passed_share(HONEST[kind]) >= 0.98


@pytest.mark.parametrize("kind", COLD)
def test_a_slope_is_refused_in_nine_warm_ups_of_ten(kind):
    assert passed_share(COLD[kind]) <= 0.1


def test_too_few_steps_cannot_show_that_warm_up_has_ended():
    assert not warmed_up([1000.0] * (FEWEST_STEPS - 1))
    assert warmed_up([1000.0] * FEWEST_STEPS)
    assert not warmed_up([])
