"""Both centres must say the same, whatever is said."""

import math

import pytest

from attnbench.protocol.comparison import Comparison
from attnbench.protocol.decide import latency_verdict
from attnbench.protocol.presets import CANONICAL
from attnbench.protocol.verdict import Reason, Verdict
from attnbench.stats.student import p_above
from tests.protocol.samples import decided, sessions_of, slowed, with_visits

CLEAR = (0.100, 0.101, 0.099)
UNCLEAR = (0.3, 0.1, -0.1)
EQUAL = (0.0, 0.0005, -0.0005)


def both_ways(means, robusts):
    return Comparison(means, robusts).decide(claim=0.0, margin=0.01, level=0.95)


def minus(values):
    return tuple(-value for value in values)


def test_two_clear_centres_decide():
    assert both_ways(CLEAR, CLEAR).verdict is Verdict.FASTER
    assert both_ways(minus(CLEAR), minus(CLEAR)).verdict is Verdict.SLOWER
    assert both_ways(EQUAL, EQUAL).verdict is Verdict.EQUIVALENT


@pytest.mark.parametrize("centres", [(CLEAR, UNCLEAR), (UNCLEAR, CLEAR)])
@pytest.mark.parametrize("turn", [tuple, minus])
def test_one_clear_centre_is_a_heavy_tail_in_either_direction(centres, turn):
    found = both_ways(*(turn(centre) for centre in centres))
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, Reason.HEAVY_TAIL)


WIDE = (0.02, 0.0, -0.02)


@pytest.mark.parametrize("centres", [(EQUAL, WIDE), (WIDE, EQUAL)])
def test_equivalence_by_one_centre_is_none(centres):
    found = both_ways(*centres)
    assert (found.verdict, found.reason) == (Verdict.INCONCLUSIVE, Reason.NOT_RESOLVED)


def test_centres_apart_by_more_than_their_interval_decide_nothing():
    shifted = tuple(value + 0.01 for value in CLEAR)
    assert both_ways(CLEAR, shifted).reason is Reason.HEAVY_TAIL


def test_sessions_without_any_spread_are_decided_by_their_value():
    assert both_ways((0.1,) * 3, (0.1 + 1e-12,) * 3).verdict is Verdict.FASTER


@pytest.mark.parametrize("centres", [(CLEAR, EQUAL), (EQUAL, CLEAR)])
def test_a_control_covers_one_only_by_both_centres(centres):
    assert not Comparison(*centres).covers_one(0.99)
    assert Comparison(EQUAL, EQUAL).covers_one(0.99)


def test_p_values_are_two_sided_and_those_of_the_worse_centre():
    pair = Comparison(CLEAR, (0.10, 0.12, 0.08))
    assert pair.p_faster(0.0) == pytest.approx(2 * p_above((0.10, 0.12, 0.08), 0.0))
    assert pair.p_slower(0.0) == 1.0
    limit = math.log(1.05)
    assert pair.p_faster(0.05) == pytest.approx(2 * p_above((0.10, 0.12, 0.08), limit))


@pytest.mark.parametrize("step_us", [800.0, 1250.0])
def test_the_p_value_of_a_verdict_is_small_in_either_direction(step_us):
    assert decided(sessions_of({"c": step_us})).p_value < 0.001


def test_the_p_value_is_that_of_the_hardest_exact_arm():
    sessions = with_visits(
        sessions_of({"c": 800.0, "other": 850.0}),
        lambda s, v: slowed(v, 1 + 0.01 * s) if v.arm == "other" else v,
    )
    alone = decided(sessions).p_value
    assert decided(sessions, exact_arms=("other",)).p_value > 10 * alone


def test_the_baseline_against_its_twin_is_equivalent():
    found = latency_verdict(
        sessions_of({"c": 800.0}), "a2", baseline="a", baseline_again="a2", protocol=CANONICAL
    )
    assert found.verdict is Verdict.EQUIVALENT
