from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from attnbench.stats.binomial import exact_interval
from attnbench.stats.spread import capture_variances, jackknife, pooled_sd
from attnbench.stats.student import mean_interval

RNG = np.random.default_rng(5)


@pytest.mark.parametrize(("hits", "trials"), [(0, 30), (1, 30), (9, 10), (10, 10), (3, 7)])
def test_the_interval_of_a_share_is_that_of_clopper_and_pearson(hits, trials):
    known = stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert exact_interval(hits, trials, 0.95) == pytest.approx((known.low, known.high))


@pytest.mark.parametrize(("hits", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_what_is_no_share_has_no_interval(hits, trials):
    with pytest.raises(ValueError, match="no share"):
        exact_interval(hits, trials, 0.95)


def test_samples_are_pooled_around_their_own_means():
    found = pooled_sd([[1.0, 3.0], [10.0, 12.0, 14.0]])
    assert found.sd == pytest.approx(math.sqrt((2 + 8) / 3))
    assert found.degrees == 3
    assert found.upper == pytest.approx(found.sd * math.sqrt(3 / stats.chi2.ppf(0.05, 3)))


def test_correlated_samples_are_worth_fewer_degrees_of_freedom():
    assert pooled_sd([[1.0, 2.0, 4.0]] * 2, correlation=0.5).degrees == pytest.approx(4 / 1.25)
    assert pooled_sd([[1.0, 2.0, 4.0]], correlation=0.5).degrees == 2


def test_the_true_spread_of_pairs_that_share_an_arm_lies_under_its_limit_in_95_percent():
    def under() -> bool:
        a, again, sham = RNG.normal(0, 1, (3, 6))
        return pooled_sd([again - a, sham - a], correlation=0.5).upper > math.sqrt(2)

    assert sum(under() for _ in range(2000)) / 2000 == pytest.approx(0.95, abs=0.015)


def test_a_spread_needs_two_sessions():
    with pytest.raises(ValueError, match="two sessions"):
        pooled_sd([[1.0], []])


def test_the_jackknife_of_a_mean_is_its_t_interval():
    values = RNG.normal(3, 2, 9).tolist()
    half_width = jackknife(9, lambda chosen: float(np.mean([values[i] for i in chosen])), 0.95)
    assert half_width == pytest.approx(mean_interval(values, 0.95).half_width)
    with pytest.raises(ValueError, match="three sessions"):
        jackknife(2, len, 0.95)


def test_variances_by_capture_are_those_of_all_ways_to_choose_blocks_pooled():
    values = RNG.normal(0, 1, (5, 4, 3)) + RNG.normal(0, 2, (5, 4, 1))  # sessions, groups, blocks
    one, several, blocks = capture_variances(values.tolist())
    assert blocks == 3
    captured = [np.var(values[:, group].mean(axis=1), ddof=1) for group in range(4)]
    spread = [
        np.var(np.mean([values[:, g, b] for g, b in zip(groups, places, strict=True)], 0), ddof=1)
        for groups in combinations(range(4), 3)
        for places in product(range(3), repeat=3)
    ]
    assert one == pytest.approx(np.mean(captured))
    assert several == pytest.approx(np.mean(spread))


def test_two_groups_of_six_blocks_are_compared_two_blocks_at_a_time():
    values = RNG.normal(0, 1, (4, 2, 6))
    one, _, blocks = capture_variances(values.tolist())
    pairs = [
        np.var(values[:, group, list(chosen)].mean(axis=1), ddof=1)
        for group in range(2)
        for chosen in combinations(range(6), 2)
    ]
    assert blocks == 2
    assert one == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    "sessions",
    [
        [[[1.0, 2.0], [3.0, 4.0]]],
        [[[1.0, 2.0]], [[1.0, 2.0]]],
        [[[1.0], [2.0]], [[1.0], [2.0]]],
        [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0]]],
        [],
    ],
)
def test_captures_that_cannot_be_told_apart_are_refused(sessions):
    with pytest.raises(ValueError, match="captures"):
        capture_variances(sessions)
