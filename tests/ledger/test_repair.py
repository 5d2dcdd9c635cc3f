"""Only an end that was cut short is mended, what was cut is kept, and a record says so."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest

from attnbench.ledger import Kind, Ledger, plan_repair, repair, storage, verify
from attnbench.ledger.faults import BrokenLedger, LedgerUnavailable


def torn_at(ledger: Ledger, cut: int) -> tuple[bytes, bytes]:
    """Cut so many bytes off; returns what is whole, and what is left of the last record."""
    whole = ledger.path.read_bytes()
    start = whole.rfind(b"\n", 0, -1) + 1
    ledger.path.write_bytes(whole[: len(whole) - cut])
    return whole[:start], whole[start : len(whole) - cut]


def test_a_sound_ledger_needs_no_repair(three):
    before = three.path.read_bytes()
    assert plan_repair(three.path) is None
    assert repair(three) is None
    assert three.path.read_bytes() == before


def test_a_record_cut_anywhere_goes_into_a_file_beside_and_a_record_takes_its_place(
    three, monkeypatch
):
    monkeypatch.setattr(storage.os, "fsync", lambda fd: None)
    whole = three.path.read_bytes()
    length = len(whole) - whole.rfind(b"\n", 0, -1) - 1
    text = length - three.path.read_bytes().splitlines()[2].index("注".encode())
    inside = range(text - 8, text + 1)  # of characters of several bytes
    for cut in sorted({*inside, *range(2, length, 11)}):
        three.path.write_bytes(whole)
        kept, torn = torn_at(three, cut)
        done = repair(three)
        assert done.quarantine.read_bytes() == torn
        assert three.path.read_bytes().startswith(kept)
        assert done.record.seq == 3
        assert done.record.body == {
            "repaired": "torn-tail", "line": 3, "bytes": len(torn),
            "sha256": hashlib.sha256(torn).hexdigest(), "quarantine": done.quarantine.name,
        }  # fmt: skip
        done.quarantine.unlink()
    assert verify(three.path).is_sound
    assert three.append(Kind.CLAIM, {}).seq == 4


def test_a_record_without_its_newline_is_kept(three):
    last = list(three.records())[-1]
    torn_at(three, 1)
    done = repair(three)
    assert done.quarantine is None
    assert list(three.records())[-2:] == [last, done.record]
    assert done.record.body == {"repaired": "newline", "line": 3}
    assert [path.name for path in three.path.parent.iterdir()] == [three.path.name]


def test_a_plan_changes_nothing(three):
    torn_at(three, 40)
    before = {path: path.read_bytes() for path in three.path.parent.iterdir()}
    plan = plan_repair(three.path)
    assert (plan.line, plan.record) == (3, None)
    assert {path: path.read_bytes() for path in three.path.parent.iterdir()} == before


def test_a_first_record_that_was_cut_leaves_a_ledger_of_its_repair(ledger):
    ledger.append(Kind.CLAIM, {"text": "first"})
    torn_at(ledger, 30)
    assert repair(ledger).record.seq == 1
    assert verify(ledger.path).records == 1


def test_the_quarantine_of_a_link_lies_beside_the_ledger(three, tmp_path):
    torn_at(three, 40)
    link = tmp_path / "link.jsonl"
    link.symlink_to(three.path)
    assert repair(Ledger(link)).quarantine.parent == three.path.parent.resolve()
    assert link.is_symlink()
    assert verify(three.path).is_sound


@pytest.mark.parametrize("harm", ["change", "lose", "change and tear"])
def test_anything_else_that_is_broken_is_refused_and_left_alone(three, harm):
    lines = three.path.read_bytes().splitlines(keepends=True)
    changed = lines[1].replace(b'"number":1', b'"number":7')
    three.path.write_bytes(
        {
            "change": lines[0] + changed + lines[2],
            "lose": lines[0] + lines[2],
            "change and tear": lines[0] + changed + lines[2][:-9],
        }[harm]
    )
    before = three.path.read_bytes()
    for use in (lambda: plan_repair(three.path), lambda: repair(three)):
        with pytest.raises(BrokenLedger, match="line 2"):
            use()
    assert three.path.read_bytes() == before
    assert [path.name for path in three.path.parent.iterdir()] == [three.path.name]


def test_an_end_that_somebody_else_mended_meanwhile_is_left_alone(three, monkeypatch):
    whole = three.path.read_bytes()
    torn_at(three, 40)
    real = storage.locked_for_append

    def mended_first(path):
        path.write_bytes(whole)
        return real(path)

    monkeypatch.setattr("attnbench.ledger.book.locked_for_append", mended_first)
    with pytest.raises(LedgerUnavailable, match="changed meanwhile"):
        repair(three)
    assert three.path.read_bytes() == whole


@pytest.mark.parametrize("written", [0, 50, 10**6])
def test_an_interrupted_repair_leaves_an_end_that_is_torn_and_can_be_mended(
    three, monkeypatch, written
):
    torn_at(three, 40)
    real = os.pwrite

    def interrupted(fd, data, at):
        real(fd, data[:written], at)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(storage.os, "pwrite", interrupted)
    with pytest.raises(LedgerUnavailable, match="full"):
        repair(three)
    monkeypatch.undo()
    first = [path for path in three.path.parent.iterdir() if "torn" in path.name]
    assert len(first) == 1
    repair(three)
    assert verify(three.path).is_sound
    kinds = [record.kind for record in three.records()]
    assert kinds[:2] == [Kind.CLAIM] * 2
    assert kinds[2:] in ([Kind.REPAIR], [Kind.REPAIR] * 2)


def test_a_folder_without_room_for_the_quarantine_leaves_the_ledger_alone(three, monkeypatch):
    torn_at(three, 40)
    before = three.path.read_bytes()

    def refuse(fd):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(storage.os, "fsync", refuse)
    with pytest.raises(LedgerUnavailable):
        repair(three)
    assert three.path.read_bytes() == before
