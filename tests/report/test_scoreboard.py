from __future__ import annotations

import pytest

from attnbench.ledger import Kind, Ledger, Reason, retract
from attnbench.report.page.claims import Claim, columns, counts, scoreboard
from attnbench.report.page.reading import Reading
from tests.report import ledgers
from tests.report.ledgers import claim, ledger_at


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return ledger_at(tmp_path / "ledger.jsonl")


def scores(ledger: Ledger) -> list[Claim]:
    return list(scoreboard(Reading.of(ledger)))


def says(outcome: str) -> dict[str, str]:
    return {"claim": outcome, "claim_reason": "bound-missed", "next_step": "withdraw it"}


def test_the_newest_record_of_a_key_counts(ledger):
    imported = ledger.append(Kind.CLAIM, claim("DCR-18"))
    ledger.append(Kind.CLAIM, claim("DCR-18", says("INCONCLUSIVE")), cites=[imported.id])
    newest = ledger.append(Kind.CLAIM, claim("DCR-18", says("FALSIFIED")), cites=[imported.id])
    [found] = scores(ledger)
    assert (found.standing, found.reason, found.next_step) == (
        "FALSIFIED",
        "bound-missed",
        "withdraw it",
    )
    assert found.counting == newest
    assert len(found.records) == 3


def test_a_verdict_that_was_taken_back_gives_way_to_the_one_before_it(ledger):
    ledger.append(Kind.CLAIM, claim("DCR-18", says("FALSIFIED")))
    wrong = ledger.append(Kind.CLAIM, claim("DCR-18", says("SUPPORTED")))
    retract(ledger, wrong.id, Reason.WRONG_BASELINE, "SDPA ran in math")
    assert scores(ledger)[0].standing == "FALSIFIED"


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


def test_an_imported_claim_has_no_verdict_until_one_is_recorded(ledger):
    ledger.append(Kind.CLAIM, claim("CY-1"))
    [found] = scores(ledger)
    assert (found.standing, found.provenance) == ("no verdict", "imported, not measured")


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
    ledger.append(Kind.CLAIM, claim("SL-1", says("PUZZLING"), system="SLAY"))
    found = scores(ledger)
    assert counts(found) == {"DCR": {"SUPPORTED": 2}, "SLAY": {"PUZZLING": 1}}
    assert columns(found)[0] == "SUPPORTED"
    assert columns(found)[-1] == "PUZZLING"


def test_the_quality_of_what_a_claim_rests_on_stands_beside_it(ledger):
    arm = ledger.append(Kind.RESULT, ledgers.candidate("r", "int8", 1.2))
    ledger.append(Kind.CLAIM, claim("DCR-1", says("SUPPORTED")), cites=[arm.id])
    [found] = scores(ledger)
    assert [(each.arm, each.verdict) for each in found.qualities] == [("int8", "PASS")]
