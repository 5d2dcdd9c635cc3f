"""Verdicts on claims are built again from what they cite, and a forged one is told."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.errors import Exit
from attnbench.ledger import Kind, Ledger, Reason, Record, retract
from attnbench.measure.by_results import adjudicate_by_results
from attnbench.measure.recompute import Outcome, Rechecked, recompute
from attnbench.protocol.adjudication import adjudicate
from attnbench.protocol.claim_log import import_claims
from attnbench.protocol.registration import register
from tests.measure.test_by_results import claim, run
from tests.measure.test_promised import GATED, KEYED, SOURCE, Bench
from tests.measure.test_recompute import HERE
from tests.protocol.claims import CLAIMS, import_claim
from tests.protocol.texts import ORDER, source_of

SUPPORTED = {"claim": "SUPPORTED", "claim_reason": "bound-held", "next_step": ""}
FALSIFIED = {"claim": "FALSIFIED", "claim_reason": "bound-missed", "next_step": ""}


@pytest.fixture(autouse=True)
def one_source(monkeypatch):
    """The source that records and the one that compares are one commit, and clean."""
    for place in ("attnbench.ledger.book", "attnbench.measure.recompute"):
        monkeypatch.setattr(f"{place}.source_commit", lambda: HERE)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def worded(ledger: Ledger, record: Record, **changes: Any) -> Record:
    """The same verdict once more with other members, citing the same."""
    return ledger.append(Kind.CLAIM, {**record.body, **changes}, cites=record.cites)


def found(ledger: Ledger) -> dict[str, Rechecked]:
    return {each.id: each for each in recompute(ledger).claims}


def assert_told(ledger: Ledger, honest: Record, forged: Record, member: str) -> None:
    """The one is the same to the byte, the other breaks the ledger, and says where."""
    again = recompute(ledger)
    by_id = {each.id: each for each in again.claims}
    assert by_id[honest.id].outcome is Outcome.SAME
    assert by_id[forged.id].outcome is Outcome.DIFFERS
    assert member in {each.member for each in by_id[forged.id].differences}
    assert again.exit_code == Exit.LEDGER_BROKEN


def test_arithmetic_and_imports_are_the_same_to_the_byte(ledger):
    chosen = [CLAIMS[key] for key in ("CY-12", "CY-04", "SL-05", "SL-13", "DCR-18")]
    import_claims(ledger, chosen)
    adjudicate(ledger, chosen[:4])
    again = recompute(ledger)
    assert [each.outcome for each in again.claims] == [Outcome.SAME] * 9
    assert again.exit_code == Exit.DONE


def test_a_forged_verdict_of_arithmetic_breaks_the_ledger(ledger):
    import_claims(ledger, [CLAIMS["CY-12"]])
    (done,) = adjudicate(ledger, [CLAIMS["CY-12"]])
    assert done.record.body["verdict"]["claim"] == "FALSIFIED"
    seen = {**done.record.body["observed"], "value": 230}
    forged = worded(ledger, done.record, verdict=SUPPORTED, observed=seen)
    assert_told(ledger, done.record, forged, "observed.value")
    retract(ledger, forged.id, Reason.MEASUREMENT_ERROR, "nobody computed that")
    assert recompute(ledger).exit_code == Exit.DONE


def test_an_import_whose_rule_is_not_what_its_version_is_the_hash_of_breaks_the_ledger(ledger):
    (honest,) = import_claims(ledger, [CLAIMS["CY-12"]]).added
    forged = worded(ledger, honest, rule={**honest.body["rule"], "bound": 100})
    assert_told(ledger, honest, forged, "version")


def test_a_protocols_verdict_is_built_again_from_the_results_that_it_cites(tmp_path):
    bench = Bench(tmp_path)
    register(bench.ledger, SOURCE)
    bench.run()
    honest = bench.only_claim()
    seen = {**honest.body["observed"], "value": 1.1}
    forged = worded(bench.ledger, honest, verdict=FALSIFIED, observed=seen)
    assert_told(bench.ledger, honest, forged, "verdict.claim")


def test_so_is_one_that_decides_an_imported_claim_one_about_order_and_one_of_the_gates(tmp_path):
    bench = Bench(tmp_path)
    import_claim(bench.ledger, "DCR-18")
    order = source_of(ORDER)
    for source in (KEYED, order, GATED):
        register(bench.ledger, source)
        bench.run(source=source)
    _, keyed, ordered, gated = bench.records(Kind.CLAIM)
    again = found(bench.ledger)
    assert again[keyed.id].outcome is again[ordered.id].outcome is Outcome.SAME
    assert again[gated.id].outcome is Outcome.SAME
    unlike = worded(bench.ledger, keyed, claim="what the file says of itself")
    assert_told(bench.ledger, ordered, unlike, "claim")


def test_a_verdict_by_another_rule_than_the_one_that_it_names_cannot_be_built_again(tmp_path):
    bench = Bench(tmp_path)
    register(bench.ledger, SOURCE)
    bench.run()
    honest = bench.only_claim()
    other = import_claim(bench.ledger, "DCR-08", decided={"arms": ["sdpa"]})
    forged = bench.ledger.append(
        Kind.CLAIM,
        {**honest.body, "key": "DCR-08", "rule_record": other.id},
        cites=[*honest.cites, other.id],
    )
    told = found(bench.ledger)[forged.id]
    assert told.outcome is Outcome.UNREADABLE
    assert "by another rule than its import" in told.why


def test_an_exploratory_verdict_whose_file_nobody_registered_is_left_alone(tmp_path):
    bench = Bench(tmp_path)
    bench.run(exploratory=True)
    assert found(bench.ledger) == {}


def test_a_verdict_by_recorded_results_is_built_again_from_all_that_were_live_then(ledger):
    run(ledger, 900.0)
    imported = claim(0.9)
    import_claims(ledger, [imported])
    (done,) = adjudicate_by_results(ledger, [imported])
    run(ledger, 700.0)  # it came later
    assert found(ledger)[done.record.id].outcome is Outcome.SAME
    late = worded(ledger, done.record)  # as if the later one had not been there
    assert_told(ledger, done.record, late, "verdict.claim")


def test_a_verdict_that_nothing_can_have_decided_is_told_and_a_bare_statement_is_none(ledger):
    import_claims(ledger, [CLAIMS["DCR-08"]])
    bare = {"claim": "every cheat is caught", "verdict": {"claim": "SUPPORTED"}}
    ledger.append(Kind.CLAIM, bare)
    assert len(found(ledger)) == 1
    written = ledger.append(Kind.CLAIM, {**bare, "key": "DCR-08", "verdict": FALSIFIED})
    told = recompute(ledger)
    assert told.exit_code == Exit.LEDGER_BROKEN
    assert {each.id: each.outcome for each in told.claims}[written.id] is Outcome.UNREADABLE


def test_a_measured_claim_is_not_decided_by_naming_its_rule(ledger):
    (imported,) = import_claims(ledger, [CLAIMS["DCR-01"]]).added
    body = {"claim": "it", "key": "DCR-01", "rule_record": imported.id, "verdict": SUPPORTED}
    written = ledger.append(Kind.CLAIM, body, cites=[imported.id])
    assert "arithmetic does not decide it" in found(ledger)[written.id].why
