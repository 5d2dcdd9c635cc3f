from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from attnbench.errors import Exit, UsageError
from attnbench.ledger import Kind, Ledger, Report, read_checkpoint, take_checkpoint, verify
from attnbench.ledger.canonical import canonical_bytes
from attnbench.ledger.faults import BrokenLedger
from attnbench.ledger.record import Head, draft, seal
from tests.ledger.samples import record_run


def first_problem(path: Path) -> tuple[str, int]:
    report = verify(path)
    assert report.exit_code == Exit.LEDGER_BROKEN
    return report.problems[0].what, report.problems[0].line


def forge(origin: str, bodies: list[dict], **changes) -> bytes:
    """A chain as somebody with our code would write it anew."""
    head, lines = Head(0, "0" * 64, origin), []
    made = {"utc": "2026-01-01T00:00:00.000000Z", "nonce": "0" * 32, "tool": "1", "commit": None}
    for body in bodies:
        entry = draft(Kind.CLAIM, body, (), **made)
        lines.append(seal(entry, head))
        members = json.loads(lines[-1])
        head = Head(members["seq"], members["hash"], origin)
    return b"".join(lines)


def resealed(line: bytes, **changes) -> bytes:
    """The record of a line with other members, sealed as somebody else's program would."""
    members = json.loads(line) | changes
    return with_new_hashes(canonical_bytes(members), keep_id="id" in changes)


def with_new_hashes(line: bytes, keep_id: bool = False) -> bytes:
    """A line whose bytes are kept but for hash and id, which fit them again; adds the newline."""
    hash = rb',"hash":"[0-9a-f]{64}"'
    place = rb'(,"id":"[0-9a-f]{64}"|,"origin":"[0-9a-f]{32}"|,"prev":"[0-9a-f]{64}"|,"seq":\d+)'
    unhashed = re.sub(hash, b"", line)
    if not keep_id:
        id = hashlib.sha256(re.sub(place, b"", unhashed)).hexdigest().encode()
        unhashed = re.sub(rb',"id":"[0-9a-f]{64}"', b',"id":"%b"' % id, unhashed)
    digest = hashlib.sha256(unhashed).hexdigest().encode()
    return unhashed.replace(b',"id":"', b',"hash":"%b","id":"' % digest) + b"\n"


def test_an_untouched_ledger_is_sound(three):
    report = verify(three.path)
    assert report.is_sound
    assert report.exit_code == Exit.DONE
    assert report.records == 3
    assert report.head == list(three.records())[-1].hash


def test_an_empty_ledger_is_sound_and_can_be_appended_to(ledger):
    ledger.path.parent.mkdir()
    ledger.path.touch()
    assert verify(ledger.path).records == 0
    assert verify(ledger.path).is_sound
    assert ledger.append(Kind.CLAIM, {}).seq == 1


def test_a_cut_at_every_byte_of_the_last_record_is_a_torn_tail(three):
    whole = three.path.read_bytes()
    start = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(start + 1, len(whole)):
        three.path.write_bytes(whole[:cut])
        assert first_problem(three.path) == ("torn", 3), cut
        assert verify(three.path).records == 2


def test_a_missing_newline_alone_is_told_apart_from_a_cut_record(three):
    whole = three.path.read_bytes()
    reasons = []
    for cut in (1, 2):
        three.path.write_bytes(whole[:-cut])
        reasons.append(verify(three.path).problems[0].reason)
    assert "lacks only its newline" in reasons[0]
    assert "not written to its end" in reasons[1]


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_a_flipped_bit_anywhere_names_the_first_bad_line(three, mask):
    whole = three.path.read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= mask
        three.path.write_bytes(flipped)
        line = whole.count(b"\n", 0, at) + 1
        what = "torn" if at == len(whole) - 1 else "broken"
        assert first_problem(three.path) == (what, line), at


@pytest.mark.parametrize(
    ("order", "line"),
    [((1, 2), 1), ((0, 2), 2), ((1, 0, 2), 1), ((0, 2, 1), 2), ((0, 0, 1, 2), 2), ((0, 1, 2, 2), 4),
     ((), 0)],
)  # fmt: skip
def test_deleted_swapped_and_repeated_lines_are_found_where_they_begin(three, order, line):
    lines = three.path.read_bytes().splitlines(keepends=True)
    three.path.write_bytes(b"".join(lines[i] for i in order))
    if not line:
        assert verify(three.path).records == 0
    else:
        assert first_problem(three.path) == ("broken", line)


@pytest.mark.parametrize(
    ("canonical", "other"),
    [
        (b'{"number":0,', b'{"number":0.0,'),
        (b'{"number":0,', b'{ "number":0,'),
        (b'{"number":0,', b'{"number":1,"number":0,'),
        (b'{"number":0,', b'{"number":9007199254740993,'),
        (b'"cites":[]', b'"cites":[ ]'),
    ],
)
def test_a_line_in_another_form_is_refused_though_its_hashes_fit(three, canonical, other):
    line = three.path.read_bytes().splitlines()[0]
    three.path.write_bytes(with_new_hashes(line))
    assert verify(three.path).is_sound
    three.path.write_bytes(with_new_hashes(line.replace(canonical, other)))
    assert first_problem(three.path) == ("broken", 1)
    assert "canonical" in verify(three.path).problems[0].reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seq": 3}, "it is record 3"),
        ({"prev": "f" * 64}, "does not continue the line before it"),
        ({"id": "f" * 64}, "does not match its id"),
    ],
)
def test_a_line_whose_place_or_id_was_changed_is_refused_though_its_hash_fits(
    three, changes, words
):
    first, second, _ = three.path.read_bytes().splitlines()
    three.path.write_bytes(first + b"\n" + resealed(second, **changes))
    assert first_problem(three.path) == ("broken", 2)
    assert words in verify(three.path).problems[0].reason


def test_a_record_that_stands_twice_is_found_though_the_chain_fits(three):
    lines = three.path.read_bytes().splitlines()
    head = json.loads(lines[2])
    again = resealed(lines[0], seq=4, prev=head["hash"])
    three.path.write_bytes(three.path.read_bytes() + again)
    assert first_problem(three.path) == ("broken", 4)
    assert "repeats the record of line 1" in verify(three.path).problems[0].reason


def test_a_line_of_another_chain_is_refused_though_its_place_fits(three, tmp_path):
    whole = three.path.read_bytes()
    origin = json.loads(whole.splitlines()[0])["origin"]
    foreign = forge("f" * 32, [{"i": i} for i in range(3)]).splitlines(keepends=True)
    ours = forge(origin, [{"i": i} for i in range(3)]).splitlines(keepends=True)
    three.path.write_bytes(b"".join([*ours[:2], foreign[2]]))
    assert first_problem(three.path) == ("broken", 3)
    changed = resealed(ours[1], origin="f" * 32)
    three.path.write_bytes(ours[0] + changed)
    assert "another ledger's chain" in verify(three.path).problems[0].reason


def test_a_file_rewritten_as_a_whole_is_caught_only_by_a_checkpoint(three):
    checkpoint = take_checkpoint(three.path)
    origin = next(three.records()).origin
    three.path.write_bytes(forge(origin, [{"number": i + 1} for i in range(4)]))
    assert verify(three.path).is_sound
    report = verify(three.path, checkpoint)
    assert report.exit_code == Exit.LEDGER_BROKEN
    assert report.problems[0].what == "checkpoint"
    assert "rewritten" in report.problems[0].reason


def test_a_ledger_that_only_grew_agrees_with_its_checkpoint(three):
    checkpoint = take_checkpoint(three.path)
    three.append(Kind.CLAIM, {"later": True})
    assert verify(three.path, checkpoint).is_sound


def test_records_lost_since_a_checkpoint_are_counted(three):
    checkpoint = take_checkpoint(three.path)
    lines = three.path.read_bytes().splitlines(keepends=True)
    three.path.write_bytes(lines[0])
    assert verify(three.path).is_sound
    problem = verify(three.path, checkpoint).problems[0]
    assert (problem.what, problem.line) == ("checkpoint", 2)
    assert "records 2 to 3 are gone" in problem.reason


def test_the_checkpoint_of_another_ledger_does_not_fit(three, tmp_path):
    other = Ledger(tmp_path / "other.jsonl")
    other.append(Kind.CLAIM, {})
    report = verify(three.path, take_checkpoint(other.path))
    assert "another ledger" in report.problems[0].reason


def test_no_checkpoint_is_taken_of_a_broken_or_empty_ledger(three):
    three.path.write_bytes(three.path.read_bytes().replace(b"claim", b"clain", 1))
    with pytest.raises(BrokenLedger):
        take_checkpoint(three.path)
    three.path.write_bytes(b"")
    with pytest.raises(UsageError):
        take_checkpoint(three.path)


@pytest.mark.parametrize("text", ["", "[]", '{"origin":"a","hash":"b","utc":"c"}', "no json"])
def test_what_is_no_checkpoint_is_told(tmp_path, text):
    path = tmp_path / "checkpoint.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "prophecy"}, "kind 'prophecy' is unknown to this attnbench"),
        ({"schema": 2}, "schema 2 is unknown to this attnbench"),
        ({"schema": 2, "extra": 1}, "schema 2 is unknown to this attnbench"),
    ],
)
def test_records_of_a_later_attnbench_are_refused_with_words_that_say_so(three, changes, words):
    line = three.path.read_bytes().splitlines()[0]
    three.path.write_bytes(resealed(line, **changes))
    report: Report = verify(three.path)
    assert words in report.problems[0].reason
    assert "upgrade" in report.problems[0].reason
    assert "leave the file as it is" in report.problems[0].hint
    assert "Restore" not in report.problems[0].hint
    with pytest.raises(BrokenLedger, match="upgrade"):
        three.append(Kind.CLAIM, {})


def test_members_that_a_record_does_not_have_are_refused(three):
    line = three.path.read_bytes().splitlines()[0]
    for changes in ({"author": "x"}, {"cites": "x"}, {"body": []}, {"commit": 1}):
        three.path.write_bytes(resealed(line, **changes))
        assert first_problem(three.path) == ("broken", 1)


def test_evidence_that_was_lost_is_found_and_a_record_as_evidence_is_no_blob(ledger):
    _, result = record_run(ledger, "aa")
    evidence = {"target": result.id, "evidence": ledger.put_blob(b"a table")}
    concern = ledger.append(Kind.CONCERN, evidence)
    ledger.append(Kind.CONCERN, {"target": result.id, "evidence": concern.id})
    assert verify(ledger.path).blobs == 2
    (blob,) = (p for p in ledger.blob_folder.rglob("*") if p.is_file() and p.stat().st_size == 7)
    blob.unlink()
    assert first_problem(ledger.path) == ("blob", concern.seq)


@pytest.mark.parametrize("harm", ["alter", "delete"])
def test_raw_samples_that_were_altered_or_lost_are_found(ledger, harm):
    closed, _ = record_run(ledger, "aa")
    assert verify(ledger.path).blobs == 1
    (blob,) = (path for path in ledger.blob_folder.rglob("*") if path.is_file())
    if harm == "alter":
        blob.write_bytes(b"better samples")
    else:
        blob.unlink()
    assert first_problem(ledger.path) == ("blob", closed.seq)


def test_a_hard_link_in_another_folder_is_told_where_blobs_are_looked_for(ledger, tmp_path):
    record_run(ledger, "aa")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    linked = folder / "ledger.jsonl"
    linked.hardlink_to(ledger.path)
    problem = verify(linked).problems[0]
    assert problem.reason.endswith(f"is not in {folder / 'blobs'}")
    assert "hard link" in problem.hint
