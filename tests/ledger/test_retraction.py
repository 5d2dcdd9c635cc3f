"""A record is taken back and brought back by records; neither can be taken back itself."""

from __future__ import annotations

import pytest

from attnbench.errors import Exit
from attnbench.ledger import Kind, Reason, Record, Status, fold, reinstate, retract
from attnbench.ledger.faults import Refused, UnknownRecord
from tests.ledger.samples import cell, record_run, result_body

WHY = (Reason.ENVIRONMENT, "the fan had stopped")


def statuses(ledger):
    return fold(ledger.records()).statuses


def test_what_a_retraction_tainted_lives_again_after_the_reinstatement(ledger):
    closed, result = record_run(ledger, "aa")
    retraction = retract(ledger, closed.id, *WHY)
    back = reinstate(ledger, closed.id[:12], "it had not")
    assert back.body == {"target": closed.id, "retraction": retraction.id, "note": "it had not"}
    assert statuses(ledger)[closed.id] is statuses(ledger)[result.id] is Status.LIVE


def test_a_reinstatement_may_name_the_retraction(ledger):
    closed, _ = record_run(ledger, "aa")
    retraction = retract(ledger, closed.id, *WHY)
    assert reinstate(ledger, retraction.id, "it had not").body["target"] == closed.id


def test_a_record_can_be_retracted_again_after_its_reinstatement(ledger):
    closed, result = record_run(ledger, "aa")
    retract(ledger, closed.id, *WHY)
    reinstate(ledger, closed.id, "it had not")
    retract(ledger, closed.id, *WHY)
    assert statuses(ledger)[result.id] is Status.TAINTED


def test_what_was_not_retracted_or_was_brought_back_cannot_be_reinstated(ledger):
    closed, result = record_run(ledger, "aa")
    retraction = retract(ledger, closed.id, *WHY)
    reinstate(ledger, closed.id, "it had not")
    for named in (closed.id, result.id, retraction.id):
        with pytest.raises(Refused, match="not retracted") as caught:
            reinstate(ledger, named, "again")
        assert caught.value.exit_code == Exit.USAGE


def test_what_says_how_records_stand_cannot_be_retracted_and_the_hint_says_what_to_do(ledger):
    closed, _ = record_run(ledger, "aa")
    retraction = retract(ledger, closed.id, *WHY)
    back = reinstate(ledger, closed.id, "it had not")
    repair = ledger.append(Kind.REPAIR, {"repaired": "newline", "line": 1})
    for record, word in ((retraction, "reinstate"), (back, "retract"), (repair, "derives")):
        with pytest.raises(Refused, match=f"is a {record.kind}") as caught:
            retract(ledger, record.id, *WHY)
        assert word in caught.value.hint


@pytest.mark.parametrize("use", [lambda it: retract(it, "0" * 64, *WHY),
                                 lambda it: reinstate(it, "0" * 64, "x")])  # fmt: skip
def test_an_unknown_id_appends_nothing(ledger, use):
    record_run(ledger, "aa")
    before = ledger.path.read_bytes()
    with pytest.raises(UnknownRecord) as caught:
        use(ledger)
    assert caught.value.exit_code == Exit.USAGE
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("note", ["", "  "])
def test_both_need_a_note(ledger, note):
    closed, _ = record_run(ledger, "aa")
    with pytest.raises(Refused, match="needs a note"):
        retract(ledger, closed.id, WHY[0], note)
    retract(ledger, closed.id, *WHY)
    with pytest.raises(Refused, match="needs a note"):
        reinstate(ledger, closed.id, note)


def measured(ledger, run: str) -> dict[str, Record]:
    """A run of two cells, each with the baseline pair and two other arms that cite one session."""
    closed, _ = record_run(ledger, run, arm="other", baseline="sdpa", cell=cell(context=1))
    arms = ("sdpa", "sdpa#2", "int8_kv", "zero_cost")
    for context in (512, 1024):
        for arm in arms:
            body = result_body(run, arm, baseline="sdpa", cell=cell(context=context))
            ledger.append(Kind.RESULT, body, cites=[closed.id])
    last = [r for r in ledger.records() if r.kind is Kind.RESULT][-len(arms) :]
    return {record.body["arm"]: record for record in last}


@pytest.mark.parametrize("arm", ["sdpa", "sdpa#2"])
def test_results_that_were_judged_by_a_retracted_baseline_are_tainted_in_its_cell_alone(
    ledger, arm
):
    before = measured(ledger, "aa")
    claim = ledger.append(Kind.CLAIM, {}, cites=[before["int8_kv"].id])
    apart = ledger.append(Kind.CLAIM, {})
    retract(ledger, before[arm].id, Reason.WRONG_BASELINE, "SDPA ran in math")
    state = fold(ledger.records())
    others = [record.id for name, record in before.items() if name != arm]
    fallen = {id for id, status in state.statuses.items() if status is Status.TAINTED}
    assert fallen == {*others, claim.id}
    assert state.tainted_by[claim.id] == (before[arm].id,)
    assert state.statuses[apart.id] is Status.LIVE
    reinstate(ledger, before[arm].id, "it had not")
    assert set(statuses(ledger).values()) == {Status.LIVE}


def test_an_arm_that_nothing_was_judged_by_taints_no_other_result(ledger):
    arms = measured(ledger, "aa")
    measured(ledger, "ab")
    retraction = retract(ledger, arms["int8_kv"].id, *WHY)
    assert "baseline_of" not in retraction.body
    assert [s for s in statuses(ledger).values() if s is not Status.LIVE] == [Status.RETRACTED]


def test_what_was_measured_again_after_a_retraction_is_not_tainted_by_it(ledger):
    retract(ledger, measured(ledger, "aa")["sdpa"].id, *WHY)
    again = measured(ledger, "aa")
    assert {statuses(ledger)[record.id] for record in again.values()} == {Status.LIVE}
