from __future__ import annotations

import pytest

from attnbench.errors import LedgerError, UsageError
from attnbench.ledger import Kind, Ledger, fold, merge, merging, retract, storage, verify
from attnbench.ledger.retraction import Reason


@pytest.fixture
def other(tmp_path) -> Ledger:
    """Two records of another machine, the second with samples and citing the first."""
    ledger = Ledger(tmp_path / "other" / "ledger.jsonl")
    opened = ledger.append(Kind.SESSION, {"phase": "opened", "run": "ab"})
    samples = ledger.put_blob(b"raw")
    ledger.append(Kind.SESSION, {"phase": "closed", "samples": samples}, cites=(opened.id,))
    return ledger


def test_records_keep_id_time_and_citations_and_get_a_place_in_this_chain(three, other):
    before = list(three.records())
    merged = merge(three, other.path)
    after = list(three.records())
    taken, theirs = after[3:5], list(other.records())
    assert (merged.added, merged.known) == (2, 0)
    assert after[:3] == before
    assert [r.id for r in taken] == [r.id for r in theirs]
    assert [(r.utc, r.nonce, r.cites) for r in taken] == [(r.utc, r.nonce, r.cites) for r in theirs]
    assert {r.origin for r in after} == {before[0].origin}
    assert verify(three.path).exit_code == 0


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_records_are_taken_a_batch_at_a_time_and_never_all_read(three, other, monkeypatch, batch):
    for number in range(5):
        other.append(Kind.CLAIM, {"number": number})
    theirs = list(other.records())
    monkeypatch.setattr(merging, "BATCH", batch)
    with monkeypatch.context() as patch:
        patch.delattr(Ledger, "records")
        assert merge(three, other.path).added == 7
    assert [r.id for r in three.records()][3:-1] == [r.id for r in theirs]
    assert verify(three.path).is_sound


def test_a_batch_that_does_not_fit_on_the_disk_leaves_nothing_of_itself(three, other, monkeypatch):
    before = three.path.read_bytes()
    monkeypatch.setattr(storage.os, "write", lambda fd, data: len(data) - 1)
    with pytest.raises(LedgerError, match="bytes were written"):
        merge(three, other.path)
    assert three.path.read_bytes() == before


def test_samples_come_along(three, other):
    merge(three, other.path)
    assert three.get_blob(list(other.records())[1].body["samples"]) == b"raw"


def test_evidence_comes_along_too(three, other):
    evidence = other.put_blob(b"a table")
    other.append(Kind.CONCERN, {"target": list(other.records())[1].id, "evidence": evidence})
    merge(three, other.path)
    assert three.get_blob(evidence) == b"a table"


def test_a_last_record_says_where_they_came_from(three, other):
    merge(three, other.path)
    last, source = list(three.records())[-1], list(other.records())[-1]
    assert last.kind is Kind.CHECKPOINT
    assert last.body["merged"] == {
        "origin": source.origin, "seq": 2, "hash": source.hash, "records": 2,
    }  # fmt: skip


def test_merging_again_adds_only_what_is_new(three, other):
    merge(three, other.path)
    assert merge(three, other.path).added == 0
    assert len(list(three.records())) == 6
    other.append(Kind.CLAIM, {"later": True})
    merged = merge(three, other.path)
    assert (merged.added, merged.known) == (1, 2)


def test_a_ledger_that_does_not_exist_yet_takes_everything(ledger, other):
    assert merge(ledger, other.path).added == 2


def test_a_retraction_counts_here_as_it_did_there(three, other):
    first = next(other.records())
    retract(other, first.id, Reason.WRONG_BASELINE, "it was slow", "")
    merge(three, other.path)
    assert fold(three.records()).statuses[first.id] == fold(other.records()).statuses[first.id]


def test_a_broken_ledger_and_lost_samples_add_nothing(three, other):
    before = three.path.read_bytes()
    blob = next(other.blob_folder.rglob("*/*"))
    kept = blob.read_bytes()
    blob.unlink()
    with pytest.raises(LedgerError):
        merge(three, other.path)
    blob.write_bytes(kept)
    other.path.write_bytes(other.path.read_bytes().replace(b'"ab"', b'"cd"'))
    with pytest.raises(LedgerError):
        merge(three, other.path)
    assert three.path.read_bytes() == before


def test_itself_and_an_empty_one_are_refused(three, tmp_path):
    with pytest.raises(UsageError, match="this ledger"):
        merge(three, three.path)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(UsageError, match="no records"):
        merge(three, empty)
