"""The project's own measurements: the chain holds and every blob is there."""

from __future__ import annotations

from pathlib import Path

from attnbench.ledger import Kind, Ledger, verify

OWN = Path(__file__).parents[2] / "ledger" / "ledger.jsonl"


def test_the_ledger_of_this_repository_verifies():
    report = verify(OWN)
    assert report.exit_code == 0, report


def test_every_result_of_this_repository_cites_the_sessions_it_comes_from():
    records = list(Ledger(OWN).records())
    closed = {r.id for r in records if r.kind is Kind.SESSION and r.body["phase"] == "closed"}
    results = [r for r in records if r.kind is Kind.RESULT]
    assert results
    for result in results:
        assert result.cites
        assert set(result.cites) <= closed
