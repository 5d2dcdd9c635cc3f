"""Cycles beside time: reported, never decisive."""

import pytest
from msgspec import UNSET

from attnbench.protocol.verdict import Verdict
from tests.protocol.samples import decided, sessions_of, with_gpu, with_visits


def at_clocks(mhz, sessions=3):
    """Sessions of an arm of 800 µs against 1000 µs, with these clocks by arm."""
    return with_visits(
        sessions_of({"c": 800.0}, sessions=sessions),
        lambda _, visit: (
            with_gpu(visit, sm_clock_mhz=mhz[visit.arm]) if visit.arm in mhz else visit
        ),
    )


def test_cycles_are_the_clock_times_the_step():
    found = decided(at_clocks({"a": 1500, "a2": 1500, "c": 1500}))
    assert found.cycles == pytest.approx(1500 * 800.0, rel=0.03)
    assert found.cycles_ratio.low < 1.25 < found.cycles_ratio.high


def test_an_arm_at_a_higher_clock_is_less_ahead_in_cycles_and_no_less_valid():
    found = decided(at_clocks({"a": 1500, "a2": 1500, "c": 1800}))
    assert found.verdict is Verdict.FASTER
    assert found.ratio.estimate == pytest.approx(1.25, rel=0.01)
    assert found.cycles_ratio.estimate == pytest.approx(1.25 * 1500 / 1800, rel=0.01)
    assert found.cycles_ratio.level == found.ratio.level


@pytest.mark.parametrize("mhz", [{}, {"c": 1500}, {"a": 1500}, {"a": 1500, "c": 0}])
def test_without_both_clocks_there_are_no_cycles(mhz):
    found = decided(at_clocks(mhz))
    assert (found.cycles, found.cycles_ratio) == (UNSET, UNSET)


def test_one_session_has_cycles_and_no_interval_of_them():
    one = at_clocks({"a": 1500, "a2": 1500, "c": 1500}, sessions=3)
    known = with_visits(one, lambda s, v: v if s == 0 else with_gpu(v, sm_clock_mhz=0))
    found = decided(known)
    assert found.cycles == pytest.approx(1500 * 800.0, rel=0.03)
    assert found.cycles_ratio is UNSET
