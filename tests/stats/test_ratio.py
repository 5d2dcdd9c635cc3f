"""The two centres of a session's blocks."""

import math
import sys

import pytest

from attnbench.stats.ratio import as_ratio, session_ratio


def test_the_mean_is_over_blocks_and_the_robust_centre_over_group_means():
    found = session_ratio([[0.0, 0.2], [0.1, 0.1, 0.1], [0.4, 0.4]])
    assert found.mean == pytest.approx(1.3 / 7)
    assert found.robust == pytest.approx(0.1)


def test_one_jumping_group_moves_the_mean_and_not_the_robust_centre():
    calm = session_ratio([[0.01, 0.01]] * 4)
    jumped = session_ratio([[0.01, 0.01]] * 3 + [[0.5, 0.5]])
    assert jumped.robust == pytest.approx(calm.robust)
    assert jumped.mean > calm.mean + 0.1


def test_groups_whose_blocks_were_all_dropped_do_not_count():
    assert session_ratio([[], [0.2], [0.4]]).robust == pytest.approx(0.3)


def test_a_session_without_a_block_has_no_ratio():
    with pytest.raises(ValueError, match="without a block"):
        session_ratio([[], []])


def test_a_ratio_is_finite_and_has_a_logarithm_however_wide_its_interval():
    assert as_ratio(math.log(1.25)) == pytest.approx(1.25)
    assert as_ratio(1e6) == pytest.approx(sys.float_info.max)
    assert 0.0 < as_ratio(-1e6) < 1e-300
    assert math.isfinite(1 / as_ratio(-1e6))
