"""A limit on slowness decides by whole intervals, and says what it cannot tell."""

from __future__ import annotations

import pytest

from attnbench.errors import Exit
from attnbench.ledger import Gate, Reason, gate, retract
from attnbench.ledger.comparison import diff
from attnbench.ledger.sides import side_of
from tests.ledger.samples import record_run


def ratio(estimate: float, half: float = 0.002) -> dict:
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half, "level": 0.95}


def judged(ledger, allowed: float = 0.02) -> Gate:
    return gate(diff(side_of("aa", ledger), side_of("bb", ledger)), allowed)


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        (1.2, 1.2, Exit.DONE),
        (1.2, 1.4, Exit.DONE),
        (1.2, 1.19, Exit.DONE),  # within the limit, interval and all
        (1.2, 1.1, Exit.FALSIFIED),
        (1.2, 1.177, Exit.INCONCLUSIVE),  # the limit lies in the interval
    ],
)
def test_a_candidate_is_judged_by_the_whole_interval_of_its_change(ledger, before, after, code):
    record_run(ledger, "aa", ratio=ratio(before), role="candidate")
    record_run(ledger, "bb", ratio=ratio(after), role="candidate")
    assert judged(ledger).exit_code == code


def test_what_is_slower_is_named_with_how_much(ledger):
    record_run(ledger, "aa", ratio=ratio(1.2))
    record_run(ledger, "bb", ratio=ratio(1.08))
    assert judged(ledger).slower == ("int8_kv: its speed-up changed by -10.0%",)


def test_a_result_on_both_sides_is_unchanged_however_wide_its_interval(ledger):
    record_run(ledger, "aa", ratio=ratio(1.2, half=0.1), role="candidate")
    same = side_of("aa", ledger)
    outcome = diff(same, same)
    assert (outcome.unchanged, outcome.changes) == (1, ())
    assert gate(outcome, 0.001).exit_code == Exit.DONE


def test_a_result_that_was_retracted_since_is_a_change_that_cannot_be_told(ledger):
    _, result = record_run(ledger, "aa", ratio=ratio(1.2), role="candidate")
    before = side_of("aa", ledger)
    retract(ledger, result.id, Reason.ENVIRONMENT, "hot")
    outcome = diff(before, side_of("aa", ledger))
    assert (outcome.unchanged, len(outcome.changes)) == (0, 1)
    assert gate(outcome, 0.02).open == ("int8_kv: its result after is retracted",)


@pytest.mark.parametrize("role", ["baseline", "baseline_again", "control"])
def test_the_baseline_and_controls_are_not_judged(ledger, role):
    record_run(ledger, "aa", ratio=ratio(1.2), role=role)
    record_run(ledger, "bb", ratio=ratio(1.0), role=role)
    assert judged(ledger).slower == ()
    assert judged(ledger).exit_code == Exit.INCONCLUSIVE


def test_a_ratio_without_an_interval_decides_nothing(ledger):
    record_run(ledger, "aa", ratio=ratio(1.2))
    record_run(ledger, "bb", ratio={"estimate": 0.5})
    assert judged(ledger).open == ("int8_kv: its speed-ups carry no interval",)


def test_an_arm_that_is_gone_is_not_one_that_is_no_slower(ledger):
    record_run(ledger, "aa", arm="int8_kv", ratio=ratio(1.2))
    record_run(ledger, "aa", arm="sink_window", ratio=ratio(1.2))
    record_run(ledger, "bb", arm="int8_kv", ratio=ratio(1.2))
    found = judged(ledger)
    assert found.open == ("sink_window: it has no result after",)
    assert found.exit_code == Exit.INCONCLUSIVE


def test_a_retracted_result_decides_nothing(ledger):
    record_run(ledger, "aa", ratio=ratio(1.2))
    _, after = record_run(ledger, "bb", ratio=ratio(1.0))
    retract(ledger, after.id, Reason.ENVIRONMENT, "hot")
    assert judged(ledger).open == ("int8_kv: its result after is retracted",)


def test_other_cells_are_said_to_be_not_comparable(ledger):
    record_run(ledger, "aa", ratio=ratio(1.2))
    record_run(ledger, "bb", ratio=ratio(1.2), cell={"context": 1})
    (why,) = judged(ledger).open
    assert why.startswith("nothing is comparable: their cells differ")
