"""The standing of a few records is what folding the whole ledger says of them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnbench.ledger import Kind, Ledger, fold
from attnbench.ledger.bearing import around, descendants, shaken, standing
from attnbench.ledger.record import Envelope
from attnbench.ledger.survey import survey
from tests.ledger.samples import record_run, session_body

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "open", "end", "loose end", "retract", "reinstate", "concern"]),
        st.lists(st.integers(0, 30), max_size=3),
    ),
    min_size=1,
    max_size=14,
)


def nothing(_text: bytes, _about: Envelope) -> None:
    return None


def grow(ledger: Ledger, steps: list[tuple[str, list[int]]]) -> None:
    """Records that cite, retract and reinstate earlier ones and, where none fits, later ones."""
    ids: list[str] = ["0" * 64]
    for what, picks in steps:
        chosen = [ids[pick % len(ids)] for pick in picks]
        name = picks[0] % 2 if picks else 0
        kind, body = {
            "claim": (Kind.CLAIM, {}),
            "open": (Kind.SESSION, session_body("aa", "opened", name)),
            "end": (Kind.SESSION, session_body("aa", "closed", name)),
            "loose end": (Kind.SESSION, session_body("aa", "failed", name)),
            "retract": (
                Kind.RETRACTION,
                {"target": chosen[0] if chosen else "", "baseline_of": chosen[1:]},
            ),
            "reinstate": (Kind.REINSTATEMENT, {"target": chosen[0] if chosen else ""}),
            "concern": (Kind.CONCERN, {"target": chosen[0] if chosen else ""}),
        }[what]
        cites = chosen if what in ("claim", "open", "end") else []
        ids.append(ledger.append(kind, body, cites=cites).id)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.data())
def test_any_few_records_stand_as_the_whole_ledger_says(steps, data):
    folder = Path(tempfile.mkdtemp())
    try:
        ledger = Ledger(folder / "ledger.jsonl")
        grow(ledger, steps)
        records = list(ledger.records())
        few = data.draw(st.lists(st.sampled_from(records), min_size=1, unique_by=lambda r: r.seq))
        whole, walk = fold(records), survey(ledger.path, nothing)
        state = standing(walk, sorted(few, key=lambda r: r.seq), citing=True)
        for record in few:
            assert state.statuses[record.id] is whole.statuses[record.id]
            assert state.retracted_by.get(record.id) == whole.retracted_by.get(record.id)
            assert state.tainted_by.get(record.id) == whole.tainted_by.get(record.id)
            assert state.cited_by.get(record.id) == whole.cited_by.get(record.id)
            assert state.remarks.get(record.id) == whole.remarks.get(record.id)
            assert (record.id in state.abandoned) == (record.id in whole.abandoned)
        fallen = {r.seq for r in records if whole.statuses[r.id] != "live"}
        assert fallen <= shaken(walk)
    finally:
        shutil.rmtree(folder)


def test_descendants_are_followed_over_any_number_of_steps(ledger):
    first = ledger.append(Kind.CLAIM, {})
    second = ledger.append(Kind.CLAIM, {}, cites=[first.id])
    third = ledger.append(Kind.CLAIM, {}, cites=[second.id, first.id])
    ledger.append(Kind.CLAIM, {})
    walk = survey(ledger.path, nothing)
    assert descendants(walk, {first.id}) == {second.id, third.id}
    assert descendants(walk, {third.id}) == frozenset()


def test_around_a_record_is_all_that_it_names_and_that_names_it(ledger):
    closed, result = record_run(ledger, "aa")
    concern = ledger.append(Kind.CONCERN, {"target": result.id})
    heir = ledger.append(Kind.CLAIM, {}, cites=[result.id, "f" * 64])
    walk = survey(ledger.path, nothing)
    state = standing(walk, [result], citing=True)
    assert set(around(walk, result, state)) == {closed.id, concern.id, heir.id}
    assert set(around(walk, heir, standing(walk, [heir]))) == {result.id}


@pytest.mark.parametrize("citing", [True, False])
def test_who_cites_is_told_when_it_is_asked_for(ledger, citing):
    _, result = record_run(ledger, "aa")
    heir = ledger.append(Kind.CLAIM, {}, cites=[result.id])
    state = standing(survey(ledger.path, nothing), [result], citing=citing)
    assert state.cited_by.get(result.id) == ((heir.id,) if citing else None)
