"""Holm's adjustment: its arithmetic and what it promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.stats.holm import holm


def test_the_smallest_is_multiplied_by_four_the_next_by_three_and_none_falls_below_the_last():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_adjusting_never_helps_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [a for _, a in pairs] == sorted(adjusted)


def test_one_comparison_is_left_alone():
    assert holm([0.04]) == [0.04]


def test_of_six_null_comparisons_any_is_rejected_in_at_most_one_family_of_twenty():
    rng = np.random.default_rng(0)
    families = rng.random((4000, 6))
    naive = np.mean([min(family) <= 0.05 for family in families])
    held = np.mean([min(holm(list(family))) <= 0.05 for family in families])
    assert naive > 0.2
    assert held == pytest.approx(0.05, abs=0.011)
