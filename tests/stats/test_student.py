"""Intervals and tests of a mean agree with scipy's own."""

import math

import numpy as np
import pytest
from scipy import stats

from attnbench.stats.student import mean_interval, p_above, p_below

SAMPLES = [
    [0.1, 0.3, -0.2],
    [1.0, 1.1, 0.9, 1.05, 1.2],
    list(np.random.default_rng(0).normal(0.01, 0.002, 8)),
]


@pytest.mark.parametrize("values", SAMPLES)
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_interval_is_students(values, level):
    found = mean_interval(values, level)
    low, high = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.half_width == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("values", SAMPLES)
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.01, 1.0])
def test_one_sided_p_values_are_those_of_the_one_sample_t_test(values, threshold):
    above = stats.ttest_1samp(values, threshold, alternative="greater").pvalue
    below = stats.ttest_1samp(values, threshold, alternative="less").pvalue
    assert p_above(values, threshold) == pytest.approx(above)
    assert p_below(values, threshold) == pytest.approx(below)


def test_values_without_spread_decide_for_certain():
    assert p_above([0.5, 0.5, 0.5], 0.4) == 0.0
    assert p_above([0.5, 0.5, 0.5], 0.5) == 1.0
    assert mean_interval([0.5, 0.5], 0.95).half_width == 0.0


def test_one_value_has_no_interval():
    with pytest.raises(ValueError, match="two values"):
        mean_interval([1.0], 0.95)


def test_three_sessions_need_4_30_standard_errors():
    found = mean_interval([-1.0, 0.0, 1.0], 0.95)
    assert found.half_width == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
