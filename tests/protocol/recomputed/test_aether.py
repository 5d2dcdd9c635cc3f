"""AETHER's claims, against the source's logs, published vectors, and inputs that turn them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attnbench.protocol.recomputed import aether
from attnbench.protocol.recomputed import block_bounds as bounds
from attnbench.protocol.recomputed.governors import count_governor, settles, share_governor
from tests.protocol.claims import HELD, MISSED, ONE_PLACE, VOID, verdict


def published_head():
    """N = 32, D = 8, without a random number."""
    i, j = np.arange(8), np.arange(32)[:, None]
    return bounds.Head(
        2 * np.sin(i + 1.0),
        2 * np.cos(0.3 * (j + 1) * (i + 1) + 0.1 * (j + 1)),
        np.sin(0.7 * (j + 1) + i),
    )


def test_bounds_and_greatest_logits_are_the_published_ones():
    head = published_head()
    assert bounds.upper_bounds(head, 8, scaled=False)[:2] == pytest.approx([16.384716, 20.486934])
    assert bounds.upper_bounds(head, 8)[:2] == pytest.approx([5.792872, 7.243225], abs=1e-6)
    assert bounds.greatest_logits(head, 8)[:2] == pytest.approx([3.659427, 0.696830], abs=1e-6)


def test_attention_over_all_blocks_is_the_published_one():
    out = bounds.attend(published_head(), 8, np.ones(4, dtype=bool))
    assert out[:4] == pytest.approx([-0.051180, 0.507568, 0.599660, 0.140428], abs=1e-6)


def test_no_bound_is_violated_and_a_bound_without_the_whole_radius_is():
    assert verdict("AE-01", aether.bound_violations(heads=16)) == HELD

    def without_radius(head, block, *, scaled=True):
        return 0.2 * bounds.upper_bounds(head, block, scaled=scaled)

    assert verdict("AE-01", aether.bound_violations(heads=8, bounds=without_radius)) == MISSED


def test_almost_all_of_the_softmax_is_dropped_below_the_threshold():
    seen = aether.mass_dropped_under_threshold()
    kept = math.exp(0.3)
    assert seen.low == pytest.approx(63 / (63 + kept))  # 63 blocks at e^0, one at e^.3
    assert verdict("AE-02", seen) == MISSED
    none_dropped = aether.mass_dropped_under_threshold(tokens=64)
    assert verdict("AE-02", none_dropped) == ONE_PLACE  # one example supports no "always"


def test_an_absolute_threshold_of_15_hundredths_prunes_nothing_and_a_high_one_does():
    assert verdict("AE-03", aether.share_pruned()) == MISSED
    assert verdict("AE-03", aether.share_pruned(heads=6, threshold=15.0)) == HELD


def test_the_potential_is_no_bound_and_the_bound_is_one():
    seen = aether.potential_violations(heads=8)
    assert seen.low > 0.99  # published: 99.6 to 100 %
    assert verdict("AE-04", seen) == MISSED
    sound = aether.potential_violations(heads=4, bounds=bounds.upper_bounds)
    assert verdict("AE-04", sound) == ONE_PLACE


def test_the_tables_cosines_are_not_those_of_gaussian_data():
    seen = aether.shortfall_of_table(heads=30)
    assert "0.5: cosine 0.7" in seen.note  # the source's log: .6987 at 50 %
    assert verdict("AE-08", seen) == MISSED
    modest = {0.5: 0.5, 0.9: 0.1}
    assert verdict("AE-08", aether.shortfall_of_table(heads=30, table=modest)) == ONE_PLACE


def test_a_threshold_of_zero_is_not_exact_where_a_block_points_away():
    assert verdict("AE-09", aether.error_of_zero_threshold()) == MISSED
    assert verdict("AE-09", aether.error_of_zero_threshold(opposed=1.0)) == VOID


def test_half_of_the_blocks_cannot_be_dropped_and_none_can():
    assert verdict("AE-10", aether.least_error_at_half(heads=10)) == MISSED
    assert verdict("AE-10", aether.least_error_at_half(heads=3, sparsity=0.0)) == HELD


def test_no_governor_settles_and_with_other_signs_and_gains_they_do():
    assert verdict("AE-11", aether.settled_governors()) == MISSED
    assert settles(share_governor(0.9, 500, (-0.1, -0.05)))
    assert settles(count_governor(9000.0, 4000, (1e-5, 0.0)))
    assert not settles([1.0] * 99 + [1.06])


def test_the_governors_fail_as_was_described():
    jumps = count_governor(100.5, 400, (0.01, 0.05))[-50:]
    assert max(jumps) > 10
    assert min(jumps) < 0.1
    assert share_governor(1.0, 2000, (0.1, 0.05))[-1] == 0  # nothing is dropped any more
    assert share_governor(0.4, 2000, (0.1, 0.05))[-1] == pytest.approx(0.99 / 0.5)


def test_work_grows_with_the_context_where_it_is_long():
    seen = aether.growth_of_work()
    assert seen.low == pytest.approx(1, abs=1e-3)
    assert verdict("AE-12", seen) == MISSED
    assert verdict("AE-12", aether.growth_of_work(tokens=4096)) == HELD  # the kept ones dominate


@pytest.mark.parametrize(
    ("tokens", "exponent", "said"),
    [(2**15, 0.15, HELD), (2**17, 0.42, HELD), (2**20, 0.85, HELD), (1_670_016, 0.9, MISSED)],
)
def test_the_context_decides_whether_work_grows_sublinearly_as_the_documentation_says(
    tokens, exponent, said
):
    seen = aether.growth_of_work(tokens=tokens)
    assert seen.low == pytest.approx(exponent, abs=0.005)
    assert verdict("AE-12", seen) == said
