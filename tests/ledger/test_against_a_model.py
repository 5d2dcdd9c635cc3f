"""The ledger against a list in memory, under random appends, retractions, tears and repairs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from attnbench.ledger import (
    Kind,
    Ledger,
    Reason,
    Record,
    Status,
    fold,
    reinstate,
    repair,
    retract,
    verify,
)
from attnbench.ledger.faults import Refused, TornTail

BODIES = st.dictionaries(
    st.text(max_size=4),
    st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    max_size=3,
)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        self.ledger.path.touch()
        self.model: list[Record] = []
        self.retracted: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(body=BODIES, data=st.data())
    def append(self, body, data):
        ids = [record.id for record in self.model]
        cites = data.draw(st.lists(st.sampled_from(ids), max_size=2)) if ids else []
        self.model.append(self.ledger.append(Kind.CLAIM, body, cites=cites))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def retract(self, data):
        target = data.draw(st.sampled_from(self.model))
        if target.kind is not Kind.CLAIM or target.id in self.retracted:
            with pytest.raises(Refused):
                retract(self.ledger, target.id, Reason.SUPERSEDED, "again")
            return
        self.model.append(retract(self.ledger, target.id, Reason.SUPERSEDED, "newer"))
        self.retracted.add(target.id)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def reinstate(self, data):
        named = data.draw(st.sampled_from(self.model))
        target = named.body["target"] if named.kind is Kind.RETRACTION else named.id
        if target not in self.retracted:
            with pytest.raises(Refused, match="not retracted"):
                reinstate(self.ledger, named.id, "it was right")
            return
        self.model.append(reinstate(self.ledger, named.id, "it was right"))
        self.retracted.remove(target)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def tear_and_repair(self, data):
        whole = self.ledger.path.read_bytes()
        start = whole.rfind(b"\n", 0, -1) + 1
        os.truncate(self.ledger.path, data.draw(st.integers(start + 1, len(whole) - 1)))
        torn = self.ledger.path.read_bytes()[start:]
        done = repair(self.ledger)
        if done.quarantine is not None:
            assert done.quarantine.read_bytes() == torn
            self.forget(self.model.pop())
        self.model.append(done.record)

    def forget(self, lost):
        """What a record that was never written to its end said of others never held."""
        self.retracted.discard(lost.id)
        if lost.kind is Kind.RETRACTION:
            self.retracted.discard(lost.body["target"])
        elif lost.kind is Kind.REINSTATEMENT:
            self.retracted.add(lost.body["target"])

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def tear(self, data):
        size = self.ledger.path.stat().st_size
        whole = self.ledger.path.read_bytes()
        start = whole.rfind(b"\n", 0, -1) + 1
        os.truncate(self.ledger.path, data.draw(st.integers(start + 1, size - 1)))
        with pytest.raises(TornTail) as caught:
            self.ledger.append(Kind.CLAIM, {})
        assert caught.value.intact_bytes == start
        self.ledger.path.write_bytes(whole)

    @rule()
    def reopen(self):
        self.ledger = Ledger(self.ledger.path)

    @invariant()
    def holds_what_the_model_holds(self):
        assert list(self.ledger.records()) == self.model
        assert verify(self.ledger.path).is_sound

    @invariant()
    def has_the_standing_that_the_model_says(self):
        tainted: set[str] = set()
        for record in self.model:
            if set(record.cites) & (tainted | self.retracted):
                tainted.add(record.id)
        statuses = fold(self.ledger.records()).statuses
        for record in self.model:
            expected = Status.TAINTED if record.id in tainted else Status.LIVE
            assert statuses[record.id] is (
                Status.RETRACTED if record.id in self.retracted else expected
            )


TestLedgerAgainstAModel = LedgerMachine.TestCase
TestLedgerAgainstAModel.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
