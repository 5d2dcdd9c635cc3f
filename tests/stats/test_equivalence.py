"""Equivalence and power against published figures and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from attnbench.stats.equivalence import sessions_needed, smallest_effect, tost


@pytest.mark.parametrize(
    ("standardised_effect", "sessions"),
    [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)],
)
def test_sessions_needed_are_those_of_published_tables(standardised_effect, sessions):
    # One-sample t test, two-sided 5 %, power 80 %: G*Power 3 (Faul et al. 2007), Cohen 1988.
    effect = math.expm1(standardised_effect * 0.01)
    assert sessions_needed(0.01, effect, 0.95) == sessions


def test_an_effect_that_no_thousand_sessions_would_show_has_no_number():
    assert sessions_needed(1.0, 0.01, 0.95) is None


def test_never_fewer_than_three_sessions_are_asked_for():
    assert sessions_needed(1e-9, 0.5, 0.95) == 3


@pytest.mark.parametrize("sessions", [3, 8])
def test_the_smallest_effect_is_found_in_four_of_five_runs(sessions):
    rng = np.random.default_rng(sessions)
    effect = smallest_effect(0.002, sessions, 0.95)
    runs = rng.normal(math.log1p(effect), 0.002, (20_000, sessions))
    found = stats.ttest_1samp(runs, 0.0, axis=1)
    power = np.mean((found.pvalue < 0.05) & (found.statistic > 0))
    assert power == pytest.approx(0.8, abs=0.012)


def test_more_sessions_see_less():
    seen = [smallest_effect(0.01, sessions, 0.95) for sessions in range(2, 40)]
    assert seen == sorted(seen, reverse=True)


def test_tost_is_the_worse_of_two_one_sided_tests():
    values, margin = [0.001, 0.003, -0.002, 0.002], 0.01
    limit = math.log(1.01)
    lower = stats.ttest_1samp(values, -limit, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, limit, alternative="less").pvalue
    assert tost(values, margin) == pytest.approx(max(lower, upper))


def test_tost_passes_exactly_when_the_90_percent_interval_lies_within_the_margin():
    rng = np.random.default_rng(2)
    agreed = []
    for values in rng.normal(0.004, 0.004, (300, 4)):
        low, high = stats.t.interval(0.9, 3, values.mean(), stats.sem(values))
        inside = -math.log(1.01) < low and high < math.log(1.01)
        agreed.append((tost(list(values), 0.01) < 0.05) == inside)
    assert all(agreed)


def test_at_the_margin_itself_equivalence_is_found_in_at_most_one_run_of_twenty():
    rng = np.random.default_rng(3)
    runs = rng.normal(math.log(1.01), 0.001, (4000, 3))
    rate = np.mean([tost(list(run), 0.01) <= 0.05 for run in runs])
    assert rate == pytest.approx(0.05, abs=0.011)


@pytest.mark.parametrize("degrees", [2, 3, 7, 29, 999])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.988, 0.9971, 0.9999])
def test_the_smallest_effect_exists_at_every_level_of_a_look_and_has_its_power(degrees, level):
    sd = 0.01
    effect = smallest_effect(sd, degrees + 1, level)
    noncentrality = math.log1p(effect) / sd * math.sqrt(degrees + 1)
    critical = stats.t.ppf((1 + level) / 2, degrees)
    assert stats.nct.sf(critical, degrees, noncentrality) == pytest.approx(0.8, abs=1e-3)


def test_the_smallest_effect_of_a_wild_spread_is_finite():
    assert math.isfinite(smallest_effect(1e6, 3, 0.95))
