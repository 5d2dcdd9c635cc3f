"""Claims in a ledger: imported once, versioned, adjudicated with the import cited."""

from __future__ import annotations

import msgspec
import pytest

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Ledger, Reason, fold, retract, verify
from attnbench.protocol import adjudication
from attnbench.protocol.adjudication import adjudicate
from attnbench.protocol.claim import ClaimReason, Outcome
from attnbench.protocol.claim_log import import_claims, standings
from attnbench.protocol.recomputed.observed import mean_of, value
from tests.protocol.claims import CLAIMS

replace = msgspec.structs.replace


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger.jsonl")


@pytest.fixture
def seeing(monkeypatch):
    """Replace what a recomputation sees."""

    def see(observed):
        monkeypatch.setattr(adjudication, "recomputation", lambda _: lambda: observed)

    return see


def with_bound(claim, bound):
    return replace(claim, entry=replace(claim.entry, rule=replace(claim.entry.rule, bound=bound)))


def stand(ledger, key):
    return standings(ledger.records())[key]


def decided(ledger, imported, outcome, **more):
    verdict = {"claim": outcome.value, "claim_reason": "bound-held", "next_step": ""}
    body = {"claim": "it", "key": imported.body["key"], "verdict": verdict}
    named = {"rule_record": imported.id}
    return ledger.append(Kind.CLAIM, body | named | more, cites=[imported.id])


def test_an_import_holds_the_statement_and_the_rule_and_decides_nothing(ledger):
    claim = CLAIMS["DCR-18"]
    (record,) = import_claims(ledger, [claim]).added
    body = record.body
    assert record.kind is Kind.CLAIM
    assert record.cites == ()
    assert body["claim"] == claim.entry.statement
    assert (body["key"], body["system"], body["kind"]) == ("DCR-18", "dcr", "measured")
    assert body["provenance"] == "imported, not measured"
    assert body["rule"]["bound"] == 1.09
    assert body["rule"]["reach"] == "universal"
    assert (body["version"], body["parent"]) == (claim.version, None)
    assert body["verdict"]["claim"] == "INCONCLUSIVE"
    assert body["verdict"]["claim_reason"] == "not-measured"
    assert body["verdict"]["next_step"].endswith(claim.entry.test)


def test_importing_all_of_them_again_adds_nothing(ledger):
    claims = list(CLAIMS.values())
    assert len(import_claims(ledger, claims).added) == len(claims)
    again = import_claims(ledger, claims)
    assert (again.added, again.changed, again.known) == ((), (), len(claims))
    assert len(list(ledger.records())) == len(claims)
    assert verify(ledger.path).is_sound


def test_a_changed_claim_is_a_new_version_that_names_its_parent_and_begins_anew(ledger, seeing):
    claim = CLAIMS["CY-12"]
    (first,) = import_claims(ledger, [claim]).added
    seeing(value(125, "tokens", "counted", {}))
    adjudicate(ledger, [claim])
    assert stand(ledger, "CY-12").outcome is Outcome.FALSIFIED
    changed = with_bound(claim, 100)
    (second,) = import_claims(ledger, [changed]).changed
    assert second.body["parent"] == first.id
    assert second.body["version"] != first.body["version"]
    assert stand(ledger, "CY-12").outcome is Outcome.INCONCLUSIVE
    (judged,) = adjudicate(ledger, [changed])
    assert judged.verdict.outcome is Outcome.SUPPORTED
    assert judged.record.cites == (second.id,)


def test_a_late_decision_by_an_older_rule_says_nothing_of_the_new_one(ledger):
    claim = CLAIMS["CY-12"]
    (first,) = import_claims(ledger, [claim]).added
    import_claims(ledger, [with_bound(claim, 100)])
    decided(ledger, first, Outcome.SUPPORTED)
    assert stand(ledger, "CY-12").outcome is Outcome.INCONCLUSIVE


def test_a_verdict_cites_the_import_and_says_what_was_seen(ledger):
    claim = CLAIMS["CY-12"]
    (imported,) = import_claims(ledger, [claim]).added
    (judged,) = adjudicate(ledger, [claim])
    body = judged.record.body
    assert judged.record.cites == (imported.id,)
    assert body["rule_record"] == imported.id
    assert (body["key"], body["claim"]) == ("CY-12", claim.entry.statement)
    assert body["observed"]["value"] == 125
    assert body["observed"]["unit"] == "tokens"
    assert body["observed"]["inputs"] == {"length": 512, "modulus": 251}
    assert body["observed"]["how"]
    assert body["verdict"]["claim"] == "FALSIFIED"
    assert body["verdict"]["claim_reason"] == "bound-missed"


def test_the_same_verdict_is_recorded_once_and_another_figure_again(ledger, seeing):
    claim = CLAIMS["CY-12"]
    import_claims(ledger, [claim])
    seeing(value(125, "tokens", "counted", {"modulus": 251}))
    (first,) = adjudicate(ledger, [claim])
    (again,) = adjudicate(ledger, [claim])
    assert (first.is_new, again.is_new) == (True, False)
    assert again.record.id == first.record.id
    seeing(value(376, "tokens", "counted", {"modulus": 251}))
    assert adjudicate(ledger, [claim])[0].is_new
    assert len(stand(ledger, "CY-12").decisions) == 2


def test_draws_are_kept_as_evidence_that_the_ledger_checks(ledger, seeing):
    claim = CLAIMS["SL-13"]
    import_claims(ledger, [claim])
    seeing(mean_of([0.32, 0.33, 0.34], "share", "drawn", {"seed": 1}))
    (judged,) = adjudicate(ledger, [claim])
    evidence = judged.record.body["evidence"]
    assert ledger.get_blob(evidence) == b'{"draws":[0.32,0.33,0.34]}'
    observed = judged.record.body["observed"]
    assert observed["low"] < 0.33 < observed["high"]
    assert observed["level"] == 0.99
    (ledger.blob_folder / evidence[7:9] / evidence[7:]).write_bytes(b"else")
    assert not verify(ledger.path).is_sound


def test_a_figure_in_doubt_is_void(ledger, seeing):
    claim = CLAIMS["CY-12"]
    import_claims(ledger, [claim])
    seeing(value(125, "tokens", "counted", {}, doubt="the terms are wrong"))
    (judged,) = adjudicate(ledger, [claim])
    assert judged.verdict.outcome is Outcome.VOID
    assert judged.record.body["observed"]["doubt"] == "the terms are wrong"
    assert "the terms are wrong" in judged.verdict.next_step


def test_a_claim_about_a_sources_code_is_untestable_and_says_why(ledger):
    claim = CLAIMS["SL-05"]
    import_claims(ledger, [claim])
    (judged,) = adjudicate(ledger, [claim])
    assert judged.verdict.outcome is Outcome.UNTESTABLE
    assert judged.verdict.reason is ClaimReason.SOURCE_ONLY
    assert claim.entry.untestable in judged.verdict.next_step
    assert "observed" not in judged.record.body


@pytest.mark.parametrize("key", ["DCR-01", "CY-07"])
def test_what_needs_a_measurement_or_training_stays_open(ledger, key):
    import_claims(ledger, [CLAIMS[key]])
    with pytest.raises(UsageError, match="arithmetic does not decide it"):
        adjudicate(ledger, [CLAIMS[key]])
    assert stand(ledger, key).outcome is Outcome.INCONCLUSIVE


def test_nothing_is_judged_by_a_rule_that_is_not_in_the_ledger(ledger):
    claim, other = CLAIMS["CY-12"], CLAIMS["CY-04"]
    import_claims(ledger, [claim])
    for unknown in (other, with_bound(claim, 1)):
        with pytest.raises(UsageError, match="a rule is recorded before anything is judged by it"):
            adjudicate(ledger, [claim, unknown])
    assert len(list(ledger.records())) == 1


def test_a_falsification_counts_before_support_until_it_is_taken_back(ledger):
    (imported,) = import_claims(ledger, [CLAIMS["AE-13"]]).added
    falsified = decided(ledger, imported, Outcome.FALSIFIED)
    supported = decided(ledger, imported, Outcome.SUPPORTED)
    decided(ledger, imported, Outcome.UNTESTABLE)
    assert stand(ledger, "AE-13").said_by.id == falsified.id
    retract(ledger, falsified.id, Reason.WRONG_BASELINE, "SDPA ran in math")
    assert stand(ledger, "AE-13").said_by.id == supported.id
    assert len(stand(ledger, "AE-13").decisions) == 2


def test_a_decision_of_another_command_counts_if_it_names_and_cites_the_rule(ledger):
    (imported,) = import_claims(ledger, [CLAIMS["DCR-18"]]).added
    record = decided(ledger, imported, Outcome.FALSIFIED)
    ledger.append(Kind.CLAIM, {"claim": "no verdict", "key": "DCR-18"})
    assert stand(ledger, "DCR-18").said_by.id == record.id


def test_a_verdict_that_has_the_key_alone_or_cites_no_rule_counts_nowhere(ledger):
    (imported,) = import_claims(ledger, [CLAIMS["DCR-18"]]).added
    held = {"claim": "it", "key": "DCR-18", "verdict": {"claim": "SUPPORTED"}}
    ledger.append(Kind.CLAIM, held)
    ledger.append(Kind.CLAIM, held | {"rule_record": imported.id})
    assert stand(ledger, "DCR-18").outcome is Outcome.INCONCLUSIVE
    assert stand(ledger, "DCR-18").decisions == ()


def test_a_retracted_import_takes_its_verdicts_along_and_comes_back_only_changed(ledger):
    claim = CLAIMS["CY-12"]
    (imported,) = import_claims(ledger, [claim]).added
    (judged,) = adjudicate(ledger, [claim])
    retract(ledger, imported.id, Reason.WRONG_BASELINE, "another rule was meant")
    assert judged.record.id in fold(ledger.records()).tainted_by
    assert "CY-12" not in standings(ledger.records())
    assert import_claims(ledger, [claim]).known == 1
    (second,) = import_claims(ledger, [with_bound(claim, 100)]).changed
    assert second.body["parent"] == imported.id
    assert stand(ledger, "CY-12").imported.id == second.id
