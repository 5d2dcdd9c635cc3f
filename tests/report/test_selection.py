"""A page of some runs says so, and what is derived is derived of the whole ledger."""

from __future__ import annotations

from datetime import timedelta

import pytest

from attnbench.ledger import Kind, Ledger, Reason, fold, retract
from attnbench.ledger.faults import UnknownRecord
from attnbench.report.page.html import Contents, page
from attnbench.report.page.origins import registrations
from attnbench.report.page.reading import Reading
from attnbench.report.page.selection import Selection
from tests.report import ledgers

RUNS = ("aa11", "aa22", "bb33", "cc44")


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    """Four runs, the first of which ends last; an opening and a result each."""
    ledger = ledgers.ledger_at(tmp_path / "ledger.jsonl")
    for run in RUNS:
        ledger.append(Kind.SESSION, ledgers.opened(run))
        ledger.append(Kind.RESULT, ledgers.candidate(run, "int8", 1.2))
    ledger.append(Kind.SESSION, ledgers.ended(RUNS[0], "closed"))
    return ledger


def shown(ledger: Ledger, **selection) -> list[str]:
    return [arm.result.run for arm in Reading.of(ledger, Selection(**selection)).arms]


@pytest.mark.parametrize(
    ("selection", "runs"),
    [
        ({}, RUNS),
        ({"last": 2}, ("aa11", "cc44")),
        ({"last": 9}, RUNS),
        ({"runs": ("aa",)}, ("aa11", "aa22")),
        ({"runs": ("aa1", "cc")}, ("aa11", "cc44")),
        ({"runs": ("aa",), "last": 1}, ("aa11",)),
        ({"since": ledgers.START + timedelta(minutes=7)}, ("aa11", "cc44")),
    ],
)
def test_runs_are_chosen_by_how_they_begin_by_when_and_from_the_last(ledger, selection, runs):
    assert shown(ledger, **selection) == list(runs)


def test_a_run_that_is_not_there_is_an_error_that_names_what_is_near(ledger):
    with pytest.raises(UnknownRecord, match="no run begins with 'aa12'"):
        shown(ledger, runs=("aa12",))


def test_a_page_says_that_runs_are_left_out_and_holds_no_record_of_them(ledger):
    html = page(Contents(Reading.of(ledger, Selection(runs=("bb",)))))
    assert "1 of 4 runs is shown" in html
    assert "bb33" in html
    assert "aa22" not in html
    assert "runs are shown" not in page(Contents(Reading.of(ledger)))


def test_what_is_derived_counts_runs_that_are_not_shown(ledger):
    before = list(ledger.records())
    late = ledger.append(Kind.REGISTRATION, {"protocol": "p.toml"})
    ledger.append(Kind.RESULT, ledgers.candidate("aa22", "other", 1.1), cites=[late.id])
    of_aa22 = next(r for r in before if r.body.get("run") == "aa22" and r.kind is Kind.RESULT)
    decided = {"claim": "SUPPORTED", "claim_reason": "bound-held"}
    body = ledgers.claim("A-1", decided, protocol="cd" * 32)
    claimed = ledger.append(Kind.CLAIM, body, cites=[of_aa22.id])
    reading = Reading.of(ledger, Selection(runs=("bb",)))
    assert registrations(reading)[0].standing == "retrospective"
    [claim] = Contents(reading).claims
    assert [(each.arm, each.verdict) for each in claim.qualities] == [("int8", "PASS")]
    retraction = retract(ledger, of_aa22.id, Reason.ENVIRONMENT, "hot")
    reading = Reading.of(ledger, Selection(runs=("bb",)))
    assert [record.id for record in reading.tainted[of_aa22.id]] == [claimed.id]
    assert reading.state == fold(ledger.records())
    assert retraction.id in page(Contents(reading))


def test_a_record_is_found_by_the_beginning_of_its_id_and_nothing_by_other_text(ledger):
    reading = Reading.of(ledger)
    record = reading.records[3]
    assert reading.find(record.id[:12]) == record
    for text in (record.id[:11], "look in the log of that day", f"sha256:{'ab' * 32}", "f" * 64, 3):
        assert reading.find(text) is None
