from __future__ import annotations

import msgspec
import pytest

from attnbench.ledger import Kind, Ledger, Reason, Record, retract
from attnbench.protocol.adjudication import adjudicate
from attnbench.protocol.claim_log import import_body, import_claims, standings
from attnbench.report.page.claims import Claim, columns, counts, scoreboard
from attnbench.report.page.html import Contents, page
from attnbench.report.page.reading import Reading
from tests.protocol.claims import CLAIMS
from tests.report import ledgers
from tests.report.ledgers import claim, claim_of, ledger_at


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return ledger_at(tmp_path / "ledger.jsonl")


def scores(ledger: Ledger) -> list[Claim]:
    return list(scoreboard(Reading.of(ledger)))


def says(outcome: str) -> dict[str, str]:
    return {"claim": outcome, "claim_reason": "bound-missed", "next_step": "withdraw it"}


def decided(ledger: Ledger, rule: Record, outcome: str) -> Record:
    """A verdict by this rule, which it names and cites."""
    body = claim(str(rule.body["key"]), says(outcome), rule_record=rule.id)
    return ledger.append(Kind.CLAIM, body, cites=[rule.id])


def test_of_equal_verdicts_the_newest_counts(ledger):
    imported = ledger.append(Kind.CLAIM, claim("DCR-18"))
    _, newest = (decided(ledger, imported, "FALSIFIED") for _ in range(2))
    [found] = scores(ledger)
    assert (found.standing, found.reason, found.next_step) == (
        "FALSIFIED",
        "bound-missed",
        "withdraw it",
    )
    assert found.counting == newest
    assert len(found.records) == 3


def test_a_falsification_counts_whatever_comes_after_it_as_claims_list_has_it(ledger):
    import_claims(ledger, [CLAIMS["CY-12"]])
    adjudicate(ledger, [CLAIMS["CY-12"]])
    rule = standings(ledger.records())["CY-12"].imported
    later = {"key": "CY-12", "rule_record": rule.id, "verdict": says("SUPPORTED")}
    ledger.append(Kind.CLAIM, {"claim": "in other words", **later}, cites=[rule.id])
    [found] = scores(ledger)
    assert found.standing == standings(ledger.records())["CY-12"].outcome == "FALSIFIED"
    assert found.statement == CLAIMS["CY-12"].entry.statement
    assert found.rule["holds if"] == "at least 226 tokens"


def test_a_new_version_of_a_rule_begins_anew_here_too(ledger):
    import_claims(ledger, [CLAIMS["CY-12"]])
    adjudicate(ledger, [CLAIMS["CY-12"]])
    entry = CLAIMS["CY-12"].entry
    rule = msgspec.structs.replace(entry.rule, bound=100)
    changed = msgspec.structs.replace(
        CLAIMS["CY-12"], entry=msgspec.structs.replace(entry, rule=rule)
    )
    import_claims(ledger, [changed])
    assert [each.standing for each in scores(ledger)] == ["INCONCLUSIVE"]


def test_a_statement_without_a_rule_is_told_apart(ledger):
    ledger.append(Kind.CLAIM, {"claim": "every cheat is caught", "verdict": says("SUPPORTED")})
    ledger.append(Kind.CLAIM, {"claim": "it is fast", "protocol": "ab" * 32, "key": "fast"})
    assert [(each.key, each.has_rule) for each in scores(ledger)] == [("fast", True), ("", False)]
    contents = Contents(Reading.of(ledger))
    assert [each.key for each in contents.claims] == ["fast"]
    assert [each.statement for each in contents.statements] == ["every cheat is caught"]


def test_a_page_shows_statements_apart_and_says_which_verdicts_are_retrospective(ledger):
    ledger.append(Kind.CLAIM, {"claim": "no cheat gets away", "verdict": says("SUPPORTED")})
    import_claims(ledger, [CLAIMS["PR-01"]])
    rule = standings(ledger.records())["PR-01"].imported
    seen = {"key": "PR-01", "rule_record": rule.id, "basis": "recorded-results"}
    body = {"claim": "as it was", **seen, "verdict": says("FALSIFIED")}
    ledger.append(Kind.CLAIM, body, cites=[rule.id])
    html = page(Contents(Reading.of(ledger)))
    scored, apart = html.split("<h3>Statements without a rule")
    apart, _ = apart.split("</section>", 1)
    assert "no cheat gets away" not in scored.split("<main>")[1]
    assert "no cheat gets away" in apart
    assert "retrospective: by results that were there before" in scored
    assert "besides 1 statement without a rule" in scored


def test_a_verdict_that_was_taken_back_gives_way_to_the_one_before_it(ledger):
    ledger.append(Kind.CLAIM, claim("DCR-18", says("SUPPORTED")))
    wrong = ledger.append(Kind.CLAIM, claim("DCR-18", says("FALSIFIED")))
    retract(ledger, wrong.id, Reason.WRONG_BASELINE, "SDPA ran in math")
    assert scores(ledger)[0].standing == "SUPPORTED"


def test_a_claim_of_which_nothing_stands_is_taken_back(ledger):
    rests_on = ledger.append(Kind.RESULT, ledgers.result("r", "sdpa"))
    ledger.append(Kind.CLAIM, claim("SL-1", says("SUPPORTED")), cites=[rests_on.id])
    retract(ledger, rests_on.id, Reason.MEASUREMENT_ERROR, "it throttled")
    [found] = scores(ledger)
    assert (found.standing, found.reason) == ("taken back", "bound-missed")


def test_what_was_explored_counts_nowhere_and_alone_says_that(ledger):
    loose = {**claim("SL-1", says("FALSIFIED")), "promise": {"exploratory": True}}
    ledger.append(Kind.CLAIM, loose)
    assert scores(ledger)[0].standing == "exploratory"
    ledger.append(Kind.CLAIM, {**claim("SL-1", says("SUPPORTED")), "promise": {}})
    ledger.append(Kind.CLAIM, loose)
    assert scores(ledger)[0].standing == "SUPPORTED"


def test_an_imported_claim_is_open_until_something_decides_it(ledger):
    ledger.append(Kind.CLAIM, claim("CY-01"))
    ledger.append(Kind.CLAIM, {"claim": "decided by nobody"})
    imported, loose = scores(ledger)
    assert (imported.standing, imported.reason) == ("INCONCLUSIVE", "not-measured")
    assert (imported.provenance, loose.standing) == ("imported, not measured", "no verdict")


def test_a_falsification_counts_before_support_as_where_claims_are_listed(ledger):
    imported = ledger.append(Kind.CLAIM, claim("DCR-18"))
    falsified = decided(ledger, imported, "FALSIFIED")
    for outcome in ("SUPPORTED", "VOID"):
        decided(ledger, imported, outcome)
    key = "nobody-imported-this"
    first, *_ = (
        ledger.append(Kind.CLAIM, claim(key, says(outcome)))
        for outcome in ("FALSIFIED", "SUPPORTED", "VOID")
    )
    assert [found.counting for found in scores(ledger)] == [falsified, first]
    assert standings(ledger.records())["DCR-18"].outcome == "FALSIFIED"


def test_what_an_older_rule_decided_says_nothing_of_the_new_one(ledger):
    first = ledger.append(Kind.CLAIM, claim("DCR-18"))
    decided(ledger, first, "FALSIFIED")
    changed = import_body(claim_of("DCR-18", statement="another one"), first)
    imported = ledger.append(Kind.CLAIM, changed)
    decided(ledger, first, "FALSIFIED")
    [found] = scores(ledger)
    assert (found.standing, found.statement) == ("INCONCLUSIVE", "another one")
    assert found.counting == imported


def test_what_was_imported_is_what_is_claimed_whatever_a_protocol_calls_it(ledger):
    imported = ledger.append(Kind.CLAIM, claim("DCR-18"))
    decided(ledger, imported, "SUPPORTED")
    [found] = scores(ledger)
    assert found.statement == imported.body["claim"]
    assert (found.figure, found.rederived) == ("≈9 %", "7.5 to 8.6 %")
    assert (found.observed, found.bound) == (
        "1.048 speed-up",
        "about 1.09 ratio of times within 2 %",
    )
    assert found.rule["void when"] == imported.body["rule"]["void_when"]


def test_the_claim_of_a_protocol_alone_has_the_bound_that_its_record_names(ledger):
    interval = {"low": 0.25, "high": 0.27, "level": 0.95}
    ledger.append(
        Kind.CLAIM,
        {
            **claim("of-a-protocol", says("SUPPORTED")),
            "bound": {"direction": "at-most", "value": 0.3},
            "quantity": "kv-bytes",
            "observed": {"value": 0.26, "intervals": [interval]},
        },
    )
    [found] = scores(ledger)
    assert (found.bound, found.observed) == ("at most 0.3 kv-bytes", "0.26 (0.25 to 0.27) kv-bytes")


def test_a_rule_of_an_unknown_form_is_not_printed_as_it_is(ledger):
    ledger.append(Kind.CLAIM, {**claim("DCR-18"), "rule": {"at": "most"}})
    [found] = scores(ledger)
    assert list(found.rule) == ["rule"]
    assert "cannot read" in found.rule["rule"]


def test_claims_without_a_key_are_one_where_they_say_the_same_or_cite_each_other(ledger):
    first = ledger.append(Kind.CLAIM, {"claim": "every cheat is caught"})
    ledger.append(Kind.CLAIM, {"claim": "every cheat is caught", "verdict": says("SUPPORTED")})
    worded_anew = {"claim": "no cheat gets away", "verdict": says("FALSIFIED")}
    ledger.append(Kind.CLAIM, worded_anew, cites=[first.id])
    ledger.append(Kind.CLAIM, {"claim": "something else"})
    found = scores(ledger)
    assert [(each.statement, len(each.records)) for each in found] == [
        ("no cheat gets away", 3),
        ("something else", 1),
    ]
    assert {each.system for each in found} == {"attnbench"}


def test_keys_are_in_the_order_of_their_numbers_and_claims_without_come_last(ledger):
    ledger.append(Kind.CLAIM, {"claim": "no key"})
    for key in ("DCR-18", "DCR-2", "CY-10", "odd"):
        ledger.append(Kind.CLAIM, claim(key))
    assert [each.key for each in scores(ledger)] == ["CY-10", "DCR-2", "DCR-18", "odd", ""]


def test_claims_are_counted_by_system_and_by_where_they_stand(ledger):
    ledger.append(Kind.CLAIM, claim("DCR-1", says("SUPPORTED")))
    ledger.append(Kind.CLAIM, claim("DCR-2", says("SUPPORTED")))
    ledger.append(Kind.CLAIM, claim("SL-1", says("PUZZLING"), system="slay"))
    found = scores(ledger)
    assert counts(found) == {"dcr": {"SUPPORTED": 2}, "slay": {"PUZZLING": 1}}
    assert columns(found)[0] == "SUPPORTED"
    assert columns(found)[-1] == "PUZZLING"


def test_the_quality_of_what_a_claim_rests_on_stands_beside_it(ledger):
    arm = ledger.append(Kind.RESULT, ledgers.candidate("r", "int8", 1.2))
    ledger.append(Kind.CLAIM, claim("DCR-1", says("SUPPORTED")), cites=[arm.id])
    [found] = scores(ledger)
    assert [(each.arm, each.verdict) for each in found.qualities] == [("int8", "PASS")]
