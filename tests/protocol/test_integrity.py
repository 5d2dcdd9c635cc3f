"""Which figures an honest arm does not show, and that honest arms do not show them."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from attnbench.protocol.integrity import (
    DTYPE_BITS,
    ERROR_BOUND,
    EXACT_SHARE,
    LEAST_BITS,
    OWN_SLACK,
    REPLAY_RATIO,
    REPLAY_RATIO_OF_ONE,
    REST_OF_STEP,
    SHARE_TOLERANCE,
    STANDARD_ERRORS,
    Conduct,
    Influence,
    Replay,
    StepCheck,
    failure_finding,
    looks_known,
    misconduct,
)
from attnbench.protocol.verdict import NEXT_STEP, Reason, Verdict

DTYPES = sorted(ERROR_BOUND)
BOUND = ERROR_BOUND["float32"]


def check(worst_head: float, error: float | None = None, layer: int = 0) -> StepCheck:
    return StepCheck(
        visit=0, layer=layer, error=worst_head if error is None else error, worst_head=worst_head
    )


def seen(
    counted: float = 1.0,
    declared: float = 1.0,
    least: float | None = None,
    planted: int = 1000,
    read: float = 0.0,
    own: float = 1.0,
    declared_bytes: float = 1.0,
) -> Influence:
    return Influence(
        planted=planted,
        counted=counted,
        least=counted if least is None else least,
        declared=declared,
        read=read,
        own=own,
        declared_bytes=declared_bytes,
    )


def replay(
    fresh: float = 100.0, held: float = 100.0, moving: float = 100.0, again: float = 100.0
) -> Replay:
    return Replay(
        fresh_us=(fresh,) * 5, again_us=(again,) * 5, held_us=(held,) * 5, moving_us=(moving,) * 5
    )


PLAIN = replay()
HONEST = Conduct(
    dtype="float32",
    exact=True,
    checks=[[check(1e-6)] * 3, [check(2e-6)] * 3],
    influence=[seen(), seen()],
    replays=[(PLAIN, PLAIN)] * 2,
    read_bytes=1000,
    exact_bytes=1000,
)
SPARSE = replace(HONEST, exact=False, influence=[seen(0.15, 0.15)] * 2, read_bytes=150)
COUNTED = replace(SPARSE, read_bytes=1000)  # where it is not bytes that are looked at
FALSE = {
    Reason.WRONG_OUTPUT: {"checks": [[check(1e-6)], [check(0.1)]]},
    Reason.CONTEXT_SKIPPED: {"influence": [seen(), seen(1.0, 1.0, least=0.5)]},
    Reason.FALSE_WITNESS: {"influence": [seen(1.0, 0.15, least=1.0)]},
    Reason.CACHED: {"replays": [(replay(held=10.0), PLAIN)] * 2},
    Reason.PRECISION: {"read_bytes": 999},
}


def reason(conduct: Conduct) -> Reason | None:
    found = misconduct(conduct)
    if found is None:
        return None
    assert found.verdict is Verdict.VOID
    assert found.detail
    assert NEXT_STEP[found.reason] in found.next_step
    return found.reason


@pytest.mark.parametrize("honest", [HONEST, SPARSE])
def test_nothing_is_found_of_an_honest_arm(honest):
    assert misconduct(honest) is None


def test_nothing_is_found_where_nothing_was_seen():
    unseen = Conduct("bfloat16", True, [], [], [], 0, 0)
    assert misconduct(unseen) is None
    assert misconduct(replace(unseen, checks=[(), ()])) is None


@pytest.mark.parametrize(
    ("last_steps", "found"),
    [
        ([([10.0] * 12, [1.0] * 12)] * 3, Reason.CACHED),
        ([([1.6] * 4, [1.0] * 4)] * 2, Reason.CACHED),
        ([([1.6] * 4, [1.0] * 4)], None),  # one session may be disturbed
        ([([2.1] * 4, [1.0] * 4)], Reason.CACHED),
        ([([1.4] * 4, [1.0] * 4)] * 3, None),
        ([([10.0] * 4, [1.0] * 4), ([1.0] * 4, [1.0] * 4)], None),
        ([([10.0] * 4, [9.0] * 4)] * 3, None),  # the last step costs the baseline as much
        # What disturbs a machine makes steps slower: the quicker visits speak.
        ([([5.6, 4.7, 3.1, 1.0], [1.0] * 4)], None),
        ([([9.0] * 8 + [1.0] * 4, [1.0] * 12)] * 3, None),
        ([([9.0] * 9 + [1.0] * 3, [1.0] * 12)] * 3, Reason.CACHED),
        # Nor does what disturbed the baseline's other steps make an arm's last ones late.
        ([([1.0] * 4, [0.3] * 4)], None),
        ([([1.4] * 4, [0.8] * 4)] * 3, None),
        ([([], [])], None),
    ],
)
def test_the_step_that_is_checked_must_cost_what_the_others_cost(last_steps, found):
    assert reason(replace(HONEST, last_steps=last_steps)) is found


@pytest.mark.parametrize("expected", FALSE)
def test_what_an_honest_arm_would_not_do_is_void_for_its_reason(expected):
    assert reason(replace(HONEST, **FALSE[expected])) is expected


def test_of_several_reasons_the_one_nearest_to_the_output_is_told():
    left = dict(FALSE)
    for expected in FALSE:
        both = {name: value for change in reversed(left.values()) for name, value in change.items()}
        if expected is Reason.FALSE_WITNESS:
            both["influence"] = FALSE[expected]["influence"]
        assert reason(replace(HONEST, **both)) is expected
        del left[expected]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False])
def test_a_step_may_err_by_the_bound_of_its_dtype_and_no_more(dtype, exact):
    at = replace(HONEST, dtype=dtype, exact=exact, checks=[[check(ERROR_BOUND[dtype], 0.0)]])
    assert reason(at) is None
    above = check(math.nextafter(ERROR_BOUND[dtype], 1), 0.0)
    assert reason(replace(at, checks=[[check(0.0)] * 99, [above]])) is Reason.WRONG_OUTPUT


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_what_is_no_number_is_wrong(worst):
    found = misconduct(replace(HONEST, checks=[[check(0.3)], [check(worst, layer=7)]]))
    assert found.reason is Reason.WRONG_OUTPUT
    assert "layer 7" in found.detail


def test_how_many_steps_were_wrong_by_how_much_and_where_is_told():
    checks = [[check(1e-6), check(0.2, layer=3)], [check(0.1, layer=4), check(1e-6)]]
    detail = misconduct(replace(HONEST, checks=checks)).detail
    assert detail.startswith("2 of 4 timed steps")
    assert "0.2 at worst (layer 3)" in detail


def test_a_wrong_rest_of_a_step_is_told_apart_from_attention():
    checks = [[check(1e-6), check(0.2, layer=REST_OF_STEP)]]
    assert "outside attention" in misconduct(replace(HONEST, checks=checks)).detail


@pytest.mark.parametrize("least", [0.0, 0.5, 0.999])
def test_an_exact_arm_must_let_every_token_count_in_every_layer_and_session(least):
    skips = replace(HONEST, influence=[seen(), seen(0.999, 1.0, least=least)])
    assert reason(skips) is Reason.CONTEXT_SKIPPED
    assert reason(replace(skips, exact=False)) is None


def test_an_approximate_arm_may_leave_out_what_it_says_in_one_layer_as_in_another():
    assert reason(replace(SPARSE, influence=[seen(0.5, 0.5, least=0.0)])) is None


@pytest.mark.parametrize(
    ("counted", "declared"), [(1.0, 0.15), (0.15, 1.0), (0.5, 0.15), (0.0, 0.15), (0.04, 0.0)]
)
def test_a_count_far_from_the_declared_share_is_a_false_witness(counted, declared):
    said = replace(SPARSE, influence=[seen(0.15, 0.15), seen(counted, declared)])
    assert reason(said) is Reason.FALSE_WITNESS


@pytest.mark.parametrize("declared", [0.0, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("planted", [8, 96, 3072])
def test_a_count_may_be_off_by_the_tolerance_and_four_standard_errors(declared, planted):
    allowed = SHARE_TOLERANCE + STANDARD_ERRORS * (declared * (1 - declared) / planted) ** 0.5
    for sign in (-1, 1) if declared < 1 else (-1,):
        near = seen(declared + sign * allowed * 0.999, declared, planted=planted)
        far = seen(declared + sign * allowed * 1.001, declared, planted=planted)
        assert reason(replace(COUNTED, influence=[near])) is None
        assert reason(replace(COUNTED, influence=[far])) is Reason.FALSE_WITNESS


def test_tokens_that_were_merged_may_have_more_influence_than_rows_are_read():
    merged = replace(COUNTED, influence=[seen(1.0, 0.125, own=0.125)])
    assert reason(merged) is None
    assert reason(replace(merged, read_bytes=125)) is None


def test_and_what_was_merged_must_be_all_that_there_is_to_read():
    most = OWN_SLACK * 0.125
    for own, expected in ((most, None), (most * 1.001, Reason.FALSE_WITNESS)):
        merged = replace(COUNTED, influence=[seen(1.0, 0.125, own=own)])
        assert reason(merged) is expected
    counted_well = replace(COUNTED, influence=[seen(0.125, 0.125, own=1.0)])
    assert reason(counted_well) is None


@pytest.mark.parametrize("own", [0.0, 0.125])
def test_a_step_takes_no_more_from_the_exact_cache_than_it_says(own):
    """Whatever the arm keeps of its own, and however few bytes it declares."""
    near, far = (
        replace(COUNTED, influence=[seen(1.0, 0.125, read=read, own=own)]) for read in (0.18, 0.2)
    )
    assert reason(near) is None
    assert reason(far) is Reason.FALSE_WITNESS


def test_less_influence_than_declared_is_a_lie_whatever_is_read_or_kept():
    for read, own in ((0.0, 0.0), (0.9, 0.0), (0.0, 1.0)):
        said = replace(COUNTED, influence=[seen(0.9, 1.0, read=read, own=own)])
        assert reason(said) is Reason.FALSE_WITNESS


def test_a_record_from_before_reads_and_own_state_were_counted_is_judged_as_strictly():
    old = b'{"planted": 1000, "counted": 1.0, "least": 1.0, "declared": 0.15}'
    said = replace(COUNTED, influence=[msgspec.json.decode(old, type=Influence)])
    assert reason(said) is Reason.FALSE_WITNESS


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_attended_to_must_be_read_and_few_bits_of_it_are_enough(dtype):
    least = round(LEAST_BITS / DTYPE_BITS[dtype] * 1000)
    arm = replace(SPARSE, dtype=dtype)
    for share in (1.0, 0.15):
        enough = math.ceil(share * least)
        said = [(share, 1000), (share, enough)]
        assert reason(replace(arm, timed=said)) is None
        assert reason(replace(arm, timed=[*said, (share, enough - 1)])) is Reason.FALSE_WITNESS
        probed = seen(share, share, declared_bytes=enough / 1000)
        assert reason(replace(arm, influence=[probed])) is None
        fewer = msgspec.structs.replace(probed, declared_bytes=(enough - 1) / 1000)
        assert reason(replace(arm, influence=[seen(), fewer])) is Reason.FALSE_WITNESS
    unread = replace(arm, influence=[seen(0.0, 0.0, declared_bytes=0.0)], timed=[(0.0, 0)])
    assert reason(unread) is None


def test_a_selection_may_keep_more_of_one_cache_than_of_another_and_read_as_much_as_it_keeps():
    even, peaked = seen(1.0, 1.0, declared_bytes=1.02), (0.03, 45)
    honest = replace(SPARSE, influence=[even], read_bytes=45, timed=[peaked])
    assert reason(honest) is None
    few = seen(0.03, 0.03, declared_bytes=0.05)
    assert reason(replace(honest, influence=[few], timed=[(1.0, 1000)])) is None


def test_what_it_reads_of_one_cache_is_no_excuse_for_what_it_says_of_the_other():
    few = seen(0.03, 0.03, declared_bytes=0.05)
    found = misconduct(replace(SPARSE, influence=[few], read_bytes=45, timed=[(1.0, 45)]))
    assert found.reason is Reason.FALSE_WITNESS
    assert "a timed step attends to 100.0% of the tokens" in found.detail
    all_of_it = seen(1.0, 1.0, declared_bytes=0.05)
    found = misconduct(replace(SPARSE, influence=[all_of_it], timed=[(0.03, 45)]))
    assert found.reason is Reason.FALSE_WITNESS
    assert "the same step reads 5.0% of the cache's bytes" in found.detail


@pytest.mark.parametrize("declared", [-3.0, 1.05, 40.0])
def test_a_witness_may_say_anything_and_is_judged_by_the_count(declared):
    said = replace(SPARSE, influence=[seen(0.5, declared)])
    assert reason(said) is Reason.FALSE_WITNESS


@given(st.integers(64, 100_000), st.floats(0, 1))
def test_an_honest_selection_is_called_a_false_witness_less_than_once_in_a_thousand(planted, share):
    allowed = SHARE_TOLERANCE + STANDARD_ERRORS * (share * (1 - share) / planted) ** 0.5
    counts = binom(planted, share)
    too_few, too_many = planted * (share - allowed), planted * (share + allowed)
    assert counts.cdf(math.ceil(too_few) - 1) + counts.sf(math.floor(too_many)) < 1e-3
    inside = seen(counted=share, declared=share, planted=planted)
    assert misconduct(replace(COUNTED, influence=[inside])) is None


@pytest.mark.parametrize("which", ["held", "again", "moving"])
def test_a_result_that_is_ready_too_early_is_void_and_just_below_the_ratio_is_the_limit(which):
    def timed(ratio: float) -> Replay:
        return replay(held=100 * ratio) if which == "held" else replay(moving=100 / ratio)

    for sessions, limit in ((3, REPLAY_RATIO), (2, REPLAY_RATIO), (1, REPLAY_RATIO_OF_ONE)):
        for ratio, expected in ((limit + 0.01, None), (limit - 0.01, Reason.CACHED)):
            assert reason(replace(HONEST, replays=[(timed(ratio), PLAIN)] * sessions)) is expected


def test_a_cache_of_results_shows_in_every_session_or_it_is_chance():
    quick = (replay(held=10.0), PLAIN)
    assert reason(replace(HONEST, replays=[quick, quick])) is Reason.CACHED
    assert reason(replace(HONEST, replays=[quick, (PLAIN, PLAIN)])) is None


def test_what_repeated_inputs_save_the_baseline_too_is_no_cheat():
    both = replay(held=50.0, moving=300.0)
    assert reason(replace(HONEST, replays=[(both, both)] * 2)) is None


def test_what_new_inputs_cost_the_baseline_is_forgiven_a_quicker_arm_in_microseconds():
    quick = replay(fresh=20.0, held=20.0, moving=70.0)
    assert reason(replace(HONEST, replays=[(quick, replay(moving=150.0))] * 2)) is None
    assert reason(replace(HONEST, replays=[(quick, PLAIN)] * 2)) is Reason.CACHED


def test_slow_steps_of_a_replay_decide_nothing():
    slow = Replay(
        fresh_us=(*(1e6,) * 4, 100.0), held_us=(100.0,) * 5, moving_us=(*(1e6,) * 4, 100.0)
    )
    assert reason(replace(HONEST, replays=[(slow, PLAIN)] * 2)) is None


@pytest.mark.parametrize(
    ("found", "known"),
    [
        (PLAIN, False),
        (replay(held=71.0, again=71.0, moving=140.0), False),
        (replay(held=69.0), True),
        (replay(again=69.0), True),
        (replay(moving=145.0), True),
    ],
)
def test_a_longer_look_is_worth_it_where_any_known_input_looks_quicker(found, known):
    assert looks_known(found) is known


def test_one_quick_step_among_slow_ones_is_enough_to_look_no_longer():
    disturbed = Replay(
        fresh_us=(100.0,) * 5, held_us=(100.0,) * 5, moving_us=(*(900.0,) * 4, 110.0)
    )
    assert not looks_known(disturbed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exact_arm_may_err_by_half_the_bound_in_most_of_its_steps(dtype):
    half = EXACT_SHARE * ERROR_BOUND[dtype]
    above = check(half, math.nextafter(half, 1))
    below = check(half, half)
    rounds = replace(HONEST, dtype=dtype, checks=[[above, above], [above, below]])
    assert reason(rounds) is Reason.PRECISION
    assert reason(replace(rounds, exact=False)) is None
    assert reason(replace(rounds, checks=[[above, below, below]])) is None


def test_errors_outside_attention_say_nothing_of_its_precision():
    rest = check(BOUND, layer=REST_OF_STEP)
    assert reason(replace(HONEST, checks=[[check(1e-6), rest, rest]])) is None


def test_an_exact_arm_reads_all_that_there_is_and_an_approximate_one_need_not():
    assert reason(replace(HONEST, read_bytes=1000, exact_bytes=1001)) is Reason.PRECISION
    assert reason(replace(SPARSE, read_bytes=999)) is None
    assert reason(replace(HONEST, read_bytes=1001)) is None


def test_an_arm_that_failed_is_void_for_its_reason_or_as_not_measured():
    said = failure_finding("patched", "it replaced time.sleep")
    assert (said.verdict, said.reason) == (Verdict.VOID, Reason.PATCHED)
    assert said.next_step == f"it replaced time.sleep; {NEXT_STEP[Reason.PATCHED]}"
    assert failure_finding("", "row 7").reason is Reason.NOT_MEASURED
