"""The interval of a ratio of means holds exactly the ratios that the data do not reject."""

from __future__ import annotations

import numpy as np
import pytest

from attnbench.stats.fieller import ratio_of_means
from attnbench.stats.student import mean_interval

PAIRS = ([1.0, 1.3, 0.9, 1.2], [2.1, 2.4, 1.9, 2.2])


def test_the_limits_are_the_ratios_at_which_the_difference_is_just_told_from_nothing():
    above, below = PAIRS
    found = ratio_of_means(above, below, 0.95)
    assert found.low < found.estimate < found.high
    for limit, edge in ((found.low, "low"), (found.high, "high")):
        differences = [a - limit * b for a, b in zip(above, below, strict=True)]
        assert getattr(mean_interval(differences, 0.95), edge) == pytest.approx(0, abs=1e-9)


def test_a_ratio_to_something_certain_has_students_interval():
    found = ratio_of_means(PAIRS[0], [2.0] * 4, 0.9)
    plain = mean_interval([a / 2 for a in PAIRS[0]], 0.9)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))


def test_what_moves_together_is_known_better_than_its_parts():
    together = ratio_of_means([11.0, 12.0, 13.0], [22.0, 24.0, 26.01], 0.95)
    apart = ratio_of_means([11.0, 12.0, 13.0], [26.0, 24.0, 22.01], 0.95)
    assert together.high - together.low < 0.01
    assert apart.high - apart.low > 0.1


def test_a_divisor_that_may_be_nothing_bounds_nothing():
    found = ratio_of_means([1.0, 1.1, 0.9], [0.5, -0.4, 0.1], 0.95)
    assert (found.low, found.high) == (None, None)
    with pytest.raises(ValueError, match="ratio to nothing"):
        ratio_of_means([1.0, 2.0], [1.0, -1.0], 0.95)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(7)
    shared = rng.normal(0, 0.2, (2000, 3))
    below = 3 + shared + rng.normal(0, 0.1, (2000, 3))
    above = 1.2 + 0.4 * shared + rng.normal(0, 0.1, (2000, 3))
    intervals = [ratio_of_means(a, b, 0.95) for a, b in zip(above, below, strict=True)]
    held = [i.low is None or i.low <= 0.4 <= i.high for i in intervals]
    assert 0.93 < np.mean(held) < 0.97
