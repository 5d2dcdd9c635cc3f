"""A correction and a concern stand beside their record, which stays as it is and counts."""

from __future__ import annotations

import pytest

from attnbench.ledger import Kind, Status, concern, correct, fold, verify
from attnbench.ledger.faults import Refused, UnknownRecord
from tests.ledger.samples import record_run


@pytest.fixture
def result(ledger):
    _, found = record_run(ledger, "aa")
    return found


def test_a_correction_holds_the_member_what_it_was_and_what_it_should_be(ledger, result):
    was = result.body["ratio"]["estimate"]
    said = correct(ledger, result.id[:12], "ratio.estimate", "1.5", "a typo", "the log")
    assert said.kind is Kind.CORRECTION
    assert said.body == {
        "target": result.id, "member": "ratio.estimate", "was": was, "value": 1.5,
        "note": "a typo", "evidence": "the log",
    }  # fmt: skip
    state = fold(ledger.records())
    assert state.statuses[result.id] is Status.LIVE
    assert state.remarks[result.id] == (said.id,)
    assert verify(ledger.path).is_sound


def test_a_text_needs_no_quotes(ledger, result):
    said = correct(ledger, result.id, "verdict.latency", "SLOWER", "read wrongly")
    assert said.body["value"] == "SLOWER"


@pytest.mark.parametrize(
    ("member", "value", "reason", "said"),
    [
        ("ratio.estimat", "1.5", "a typo", "has no member"),
        ("ratio[0]", "1.5", "a typo", "has no member"),
        ("ratio", "1.5", "a typo", "no single value"),
        ("", "1.5", "a typo", "no single value"),
        ("ratio.estimate", "fast", "a typo", "is a text"),
        ("ratio.estimate", "1.2", "a typo", "already"),
        ("ratio.estimate", "1.5", " ", "needs a reason"),
    ],
)
def test_what_corrects_nothing_is_refused_and_nothing_is_recorded(
    ledger, result, member, value, reason, said
):
    before = len(list(ledger.records()))
    with pytest.raises(Refused, match=said):
        correct(ledger, result.id, member, value, reason)
    assert len(list(ledger.records())) == before


def test_the_hint_names_a_member_that_is_there(ledger, result):
    with pytest.raises(Refused) as refused:
        correct(ledger, result.id, "ratio.estimat", "1.5", "a typo")
    assert "ratio.estimate" in refused.value.hint


def test_a_concern_says_what_is_doubted_and_has_to_say_something(ledger, result):
    said = concern(ledger, result.id[:12], "the clock was not locked")
    assert (said.kind, said.body) == (
        Kind.CONCERN,
        {"target": result.id, "concern": "the clock was not locked"},
    )
    with pytest.raises(Refused, match="needs a note"):
        concern(ledger, result.id, "")
    with pytest.raises(UnknownRecord):
        concern(ledger, "f" * 64, "it is not there")
