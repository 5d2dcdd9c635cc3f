"""The project's own measurements: the chain holds and every blob is there."""

from __future__ import annotations

from pathlib import Path

from attnbench.ledger import Kind, Ledger, verify
from attnbench.measure.recompute import recompute

OWN = Path(__file__).parents[2] / "ledger" / "ledger.jsonl"


def test_the_ledger_of_this_repository_verifies():
    report = verify(OWN)
    assert report.exit_code == 0, report


def test_every_result_of_this_repository_cites_the_sessions_it_comes_from_and_its_promise():
    records = list(Ledger(OWN).records())
    closed = {r.id for r in records if r.kind is Kind.SESSION and r.body["phase"] == "closed"}
    results = [r for r in records if r.kind is Kind.RESULT]
    assert results
    for result in results:
        promise = {result.body.get("promise", {}).get("registration")} - {None, ""}
        assert set(result.cites) & closed
        assert set(result.cites) <= closed | promise


def test_no_result_or_claim_here_says_other_than_what_it_rests_on_unless_the_ledger_says_why():
    found = recompute(Ledger(OWN))
    assert len(found.results) > 100
    assert len(found.claims) > 100
    assert [it for it in found.all if it.is_open] == []
