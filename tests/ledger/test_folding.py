from __future__ import annotations

import pytest

from attnbench.ledger import Kind, Reason, Status, fold, retract
from attnbench.ledger.faults import Refused, UnknownRecord
from attnbench.ledger.lookup import find_record, find_results
from tests.ledger.samples import cell, record_run, session_body


def statuses(ledger) -> dict[str, Status]:
    return dict(fold(ledger.records()).statuses)


def take_back(ledger, target: str):
    return retract(ledger, target, Reason.ENVIRONMENT, "the fan had stopped")


def test_a_retraction_taints_everything_that_derives_from_its_target_and_nothing_else(ledger):
    session, result = record_run(ledger, "aa")
    claim = ledger.append(Kind.CLAIM, {"verdict": "SUPPORTED"}, cites=[result.id])
    _, other = record_run(ledger, "bb")
    retraction = take_back(ledger, session.id)
    state = fold(ledger.records())
    assert state.statuses[session.id] is Status.RETRACTED
    assert state.retracted_by[session.id] == retraction.id
    assert state.statuses[result.id] is state.statuses[claim.id] is Status.TAINTED
    assert state.tainted_by[claim.id] == (session.id,)
    assert state.statuses[other.id] is state.statuses[retraction.id] is Status.LIVE


def test_a_reinstatement_brings_the_target_and_what_derives_from_it_back(ledger):
    session, result = record_run(ledger, "aa")
    take_back(ledger, session.id)
    ledger.append(Kind.REINSTATEMENT, {"target": session.id, "note": "it was the other fan"})
    assert set(statuses(ledger).values()) == {Status.LIVE}
    take_back(ledger, session.id)
    assert statuses(ledger)[result.id] is Status.TAINTED


def test_citing_in_a_circle_ends(ledger):
    first = ledger.append(Kind.CLAIM, {})
    from attnbench.ledger.record import Record

    circle = Record(**{**first.__dict__, "cites": (first.id,)})
    assert fold([circle]).statuses == {first.id: Status.LIVE}


@pytest.mark.parametrize("kind", [Kind.CORRECTION, Kind.CONCERN])
def test_corrections_and_concerns_stay_beside_their_target_and_change_nothing(ledger, kind):
    _, result = record_run(ledger, "aa")
    remark = ledger.append(kind, {"target": result.id, "note": "the unit is µs"})
    state = fold(ledger.records())
    assert state.remarks[result.id] == (remark.id,)
    assert state.statuses[result.id] is Status.LIVE


@pytest.mark.parametrize("kind", [Kind.REGISTRATION, Kind.CHECKPOINT, Kind.REPAIR])
def test_the_other_kinds_change_nothing(ledger, kind):
    _, result = record_run(ledger, "aa")
    ledger.append(kind, {"target": result.id})
    assert set(statuses(ledger).values()) == {Status.LIVE}


@pytest.mark.parametrize("ending", ["closed", "aborted", "failed"])
def test_a_session_that_ended_somehow_is_not_abandoned(ledger, ending):
    ledger.append(Kind.SESSION, session_body("aa", "opened"))
    ledger.append(Kind.SESSION, session_body("aa", ending))
    assert not fold(ledger.records()).abandoned


@pytest.mark.parametrize("other", [{"session": 1}, {"run": "bb"}, {"cell": cell(context=1)}])
def test_a_session_that_nobody_ended_is_abandoned(ledger, other):
    opened = ledger.append(Kind.SESSION, session_body("aa", "opened"))
    ledger.append(Kind.SESSION, {**session_body("aa", "closed"), **other})
    assert fold(ledger.records()).abandoned == {opened.id}


def test_a_session_that_was_opened_again_does_not_hide_the_one_that_was_abandoned(ledger):
    first, second = (ledger.append(Kind.SESSION, session_body("aa", "opened")) for _ in range(2))
    assert fold(ledger.records()).abandoned == {first.id, second.id}
    ledger.append(Kind.SESSION, session_body("aa", "closed"), cites=[second.id])
    assert fold(ledger.records()).abandoned == {first.id}


def test_a_retraction_names_reason_note_and_evidence(ledger):
    _, result = record_run(ledger, "aa")
    retraction = retract(ledger, result.id[:10], Reason.DUPLICATE, "as bb", "see bb")
    assert retraction.body == {
        "target": result.id,
        "reason": "duplicate",
        "note": "as bb",
        "evidence": "see bb",
    }
    assert retraction.cites == ()


def test_a_retraction_is_not_retracted_and_nothing_is_retracted_twice(ledger):
    _, result = record_run(ledger, "aa")
    retraction = take_back(ledger, result.id)
    before = ledger.path.read_bytes()
    with pytest.raises(Refused, match="is a retraction"):
        take_back(ledger, retraction.id)
    with pytest.raises(Refused, match="was retracted before"):
        take_back(ledger, result.id)
    with pytest.raises(UnknownRecord):
        take_back(ledger, "0" * 64)
    with pytest.raises(Refused, match="needs a note"):
        retract(ledger, next(ledger.records()).id, Reason.DUPLICATE, " ")
    assert ledger.path.read_bytes() == before


def test_the_unique_beginning_of_an_id_finds_its_record(ledger):
    records = [ledger.append(Kind.CLAIM, {"i": i}) for i in range(40)]
    assert find_record(records, records[7].id[:12]) == records[7]
    assert find_record(records, records[7].id) == records[7]


def test_an_ambiguous_beginning_lists_what_it_could_be(ledger):
    records = [ledger.append(Kind.CLAIM, {"i": i}) for i in range(17)]
    digits = [record.id[0] for record in records]
    shared = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(UnknownRecord, match=f"begins {digits.count(shared)} ids"):
        find_record(records, shared)


def test_an_unknown_id_suggests_the_nearest(ledger):
    record = ledger.append(Kind.CLAIM, {})
    mistyped = record.id[:5] + "-" + record.id[6:12]
    with pytest.raises(UnknownRecord) as caught:
        find_record([record], mistyped)
    assert record.id[:12] in caught.value.hint
    with pytest.raises(UnknownRecord):
        find_record([record], "")


def test_a_run_stands_for_its_results_and_a_session_for_none(ledger):
    session, result = record_run(ledger, "a0a0")
    record_run(ledger, "b1b1")
    records = list(ledger.records())
    assert find_results(records, "a0a0") == (result,)
    assert find_results(records, result.id) == (result,)
    with pytest.raises(UnknownRecord, match="is a session") as caught:
        find_results(records, session.id)
    assert "a0a0" in caught.value.hint


def test_the_id_of_a_run_is_told_from_that_of_a_record(ledger):
    run = ledger.append(Kind.SESSION, {"run": "abc123abc123", "phase": "opened"})
    with pytest.raises(UnknownRecord, match="abc123abc123 is a run") as caught:
        find_record(ledger.records(), "abc123abc123")
    assert "log --run abc123abc123" in caught.value.hint
    assert find_record(ledger.records(), run.id[:12]) == run
