"""The error of several looks adds up to the whole, little early and most at the end."""

import pytest
from scipy import stats

from attnbench.stats.spending import SHARED, spent, split


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.2])
@pytest.mark.parametrize("looks", [(8,), (3, 8), (3, 5, 8), (3, 300), tuple(range(3, 60))])
def test_the_errors_of_all_looks_add_up_to_the_whole_and_none_is_lost(alpha, looks):
    errors = split(alpha, looks)
    assert len(errors) == len(looks)
    assert sum(errors) == pytest.approx(alpha)
    assert min(errors) >= SHARED * alpha / len(looks)


def test_little_is_spent_early():
    early, middle, late = split(0.05, (3, 5, 8))
    assert early < 0.1 * 0.05
    assert early < middle < late
    assert late > 0.65 * 0.05


def test_the_spending_function_is_that_of_lan_and_demets():
    # Lan and DeMets 1983: 2 - 2 Φ(z / √t).
    for share in (0.25, 0.5, 0.9):
        boundary = stats.norm.ppf(0.975) / share**0.5
        assert spent(0.05, share) == pytest.approx(2 * stats.norm.sf(boundary))
    assert spent(0.05, 1.0) == pytest.approx(0.05)
