"""One walk, in any number of parts, sees what reading line after line sees."""

from __future__ import annotations

import pytest

from attnbench.ledger import Kind, Ledger
from attnbench.ledger.chunks import Look
from attnbench.ledger.faults import BrokenLedger, LedgerUnavailable, TornTail
from attnbench.ledger.record import Envelope
from attnbench.ledger.survey import Survey, survey, survey_until_fault
from tests.ledger.samples import record_run

SIZES = (1, 300, 700, 1500, 10**6)  # bytes of a part: less than a line, and more than the file


def kind_of(_text: bytes, about: Envelope) -> str | None:
    return about.kind.decode() if about.kind != b"claim" else None


def in_parts(ledger: Ledger, size: int, look: Look[str] = kind_of) -> Survey[str]:
    return survey_until_fault(ledger.path, look, chunk_bytes=size, processes=1)


@pytest.fixture
def mixed(ledger) -> Ledger:
    for run in ("aa", "bb"):
        record_run(ledger, run)
        ledger.append(Kind.CLAIM, {"text": "μs · 注意 · 🙂", "cites": ["not the record's own"]})
    return ledger


def what(walk: Survey[str]) -> tuple:
    return (
        bytes(walk.ids), list(walk.offsets), walk.finds, list(walk.links()), walk.head,
        str(walk.fault),
    )  # fmt: skip


def serial_fault(ledger: Ledger) -> str:
    try:
        list(ledger.records())
    except (BrokenLedger, TornTail) as fault:
        return str(fault)
    return "None"


def test_a_walk_in_parts_finds_what_a_walk_in_one_finds(mixed):
    whole = in_parts(mixed, 10**6)
    records = list(mixed.records())
    assert [whole.id_of(seq) for seq in range(1, len(whole) + 1)] == [r.id for r in records]
    assert whole.records(range(1, len(whole) + 1)) == records
    assert [find.what for find in whole.finds] == ["session", "session", "result"] * 2
    assert list(whole.citing) == [r.seq for r in records if r.cites]
    assert next(whole.links())[1].decode() == f'"{records[1].id}"'
    for size in SIZES:
        assert what(in_parts(mixed, size)) == what(whole)


def test_several_processes_find_the_same(mixed):
    alone = in_parts(mixed, 10**6)
    together = survey(mixed.path, kind_of, chunk_bytes=700, processes=2)
    assert what(together) == what(alone)


@pytest.mark.parametrize("size", SIZES)
def test_a_flipped_byte_stops_every_walk_at_the_same_line(mixed, size):
    whole = mixed.path.read_bytes()
    for at in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[at] ^= 0x01
        mixed.path.write_bytes(flipped)
        fault = in_parts(mixed, size).fault
        assert str(fault) == serial_fault(mixed), at


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "order", [(1, 2, 3), (0, 2, 3), (1, 0, 2, 3), (0, 2, 1, 3), (0, 1, 3), (0, 0, 1), (0, 1, 2, 2)]
)
def test_lines_that_were_moved_stop_every_walk_at_the_same_line(mixed, size, order):
    lines = mixed.path.read_bytes().splitlines(keepends=True)
    mixed.path.write_bytes(b"".join(lines[i] for i in order))
    walk = in_parts(mixed, size)
    assert str(walk.fault) == serial_fault(mixed)
    assert len(walk) == walk.fault.line - 1


@pytest.mark.parametrize("size", SIZES)
def test_an_end_that_is_torn_is_told_with_what_was_found_before(mixed, size):
    whole = mixed.path.read_bytes()
    start = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(start + 1, len(whole), 37):
        mixed.path.write_bytes(whole[:cut])
        walk = in_parts(mixed, size)
        assert isinstance(walk.fault, TornTail)
        assert walk.fault.intact_bytes == start
        assert len(walk) == 7
        assert walk.finds[-1].what == "result"


def test_a_fault_is_raised_to_who_wants_none(three):
    three.path.write_bytes(three.path.read_bytes()[:-1])
    with pytest.raises(TornTail):
        survey(three.path, kind_of)


def test_a_line_that_changed_after_the_walk_is_not_taken_for_what_it_was(three):
    walk = survey(three.path, kind_of)
    three.path.write_bytes(three.path.read_bytes().replace(b'"number":1', b'"number":7'))
    with pytest.raises(BrokenLedger, match="line 2"):
        walk.records([2])


def test_a_file_that_was_exchanged_between_two_parts_is_told(mixed):
    def exchanging(_text: bytes, _about: Envelope) -> None:
        other = mixed.path.with_suffix(".new")
        other.write_bytes(mixed.path.read_bytes())
        other.replace(mixed.path)

    with pytest.raises(LedgerUnavailable, match="exchanged"):
        survey(mixed.path, exchanging, chunk_bytes=700, processes=1)


def test_an_empty_ledger_has_nothing_to_walk(ledger):
    ledger.path.parent.mkdir()
    ledger.path.touch()
    walk = survey(ledger.path, kind_of)
    assert (len(walk), walk.head, walk.finds) == (0, None, [])


@pytest.mark.parametrize("citing", [0, 1, 3, 6, 7, 99])
def test_the_number_of_an_id_is_found_wherever_it_is_cited(mixed, citing, monkeypatch):
    monkeypatch.setattr("attnbench.ledger.survey._NEAR_BYTES", 2 * 64)
    walk = survey(mixed.path, kind_of)
    ids = [record.id for record in mixed.records()]
    wanted = dict.fromkeys([ids[4], ids[0], ids[7], "f" * 64], citing)
    assert walk.numbers(wanted) == [1, 5, 8]
    assert walk.numbers({}) == []
