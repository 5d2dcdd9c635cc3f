"""Whether a promise came first follows from the chain; every session that was opened is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attnbench.ledger import Account, Kind, Record, Timing, account, timing_of
from tests.ledger.samples import session_body


def register(ledger) -> Record:
    return ledger.append(Kind.REGISTRATION, {"protocol": "p"})


def measure(ledger, run: str = "aa", cites=()) -> Record:
    """A closed session's closing record."""
    opened = ledger.append(Kind.SESSION, session_body(run, "opened"), cites=list(cites))
    return ledger.append(Kind.SESSION, session_body(run, "closed"), cites=[opened.id])


def conclude(ledger, *cited: Record) -> Record:
    result = ledger.append(Kind.RESULT, {}, cites=[each.id for each in cited])
    return ledger.append(Kind.CLAIM, {}, cites=[result.id])


def timing(ledger, record: Record) -> Timing | None:
    return timing_of(record, {each.id: each for each in ledger.records()})


def test_a_claim_whose_registration_precedes_every_session_is_prospective(ledger):
    promise = register(ledger)
    sessions = [measure(ledger, cites=[promise.id]) for _ in range(2)]
    claim = conclude(ledger, promise, *sessions)
    assert timing(ledger, claim) is Timing.PROSPECTIVE
    assert timing(ledger, sessions[0]) is Timing.PROSPECTIVE


def test_a_promise_made_after_one_of_its_sessions_is_retrospective(ledger):
    early = measure(ledger)
    promise = register(ledger)
    late = measure(ledger, cites=[promise.id])
    assert timing(ledger, conclude(ledger, promise, early, late)) is Timing.RETROSPECTIVE
    assert timing(ledger, conclude(ledger, promise, late)) is Timing.PROSPECTIVE


def test_a_session_that_does_not_name_its_registration_was_not_promised(ledger):
    promise = register(ledger)
    other = measure(ledger)
    assert timing(ledger, conclude(ledger, promise, other)) is Timing.RETROSPECTIVE


def test_records_of_two_chains_have_no_order(ledger):
    promise = register(ledger)
    session = measure(ledger, cites=[promise.id])
    by_id = {each.id: each for each in ledger.records()}
    by_id[promise.id] = replace(by_id[promise.id], origin="ff" * 16)
    assert timing_of(session, by_id) is Timing.RETROSPECTIVE


def test_without_a_registration_or_a_session_there_is_no_timing(ledger):
    session = measure(ledger)
    assert timing(ledger, conclude(ledger, session)) is None
    assert timing(ledger, conclude(ledger, register(ledger))) is None


@pytest.mark.parametrize("ending", ["closed", "failed", "aborted", None])
def test_a_session_is_counted_however_it_ended(ledger, ending):
    opened = ledger.append(Kind.SESSION, session_body("aa", "opened"))
    if ending:
        ledger.append(Kind.SESSION, session_body("aa", ending), cites=[opened.id])
    measure(ledger, "aa")
    measure(ledger, "bb")
    found = account(ledger.records(), lambda record: record.body["run"] == "aa")
    counts = {"closed": 1, "failed": 0, "aborted": 0, "abandoned": 0}
    counts[ending or "abandoned"] += 1
    assert found == Account(opened=2, **counts)


def test_an_account_names_only_the_ends_that_there_were():
    assert str(Account(3, 2, 0, 0, 1)) == "3 opened: 2 closed, 1 abandoned"
    assert str(Account(0, 0, 0, 0, 0)) == "0 opened"
