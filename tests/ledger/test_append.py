from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

import attnbench
from attnbench.errors import Exit
from attnbench.ledger import Kind, Ledger, storage, verify
from attnbench.ledger.faults import (
    BadBlob,
    BrokenLedger,
    LedgerUnavailable,
    NotCanonical,
    Refused,
    TornTail,
)
from attnbench.ledger.record import Head, draft, seal, unseal
from attnbench.ledger.source import files_sha256, source_commit
from tests.ledger.samples import START, ticking_clock


def lines(ledger: Ledger) -> list[bytes]:
    return ledger.path.read_bytes().splitlines()


def test_the_first_record_makes_the_file_its_folder_and_its_origin(ledger):
    first = ledger.append(Kind.CLAIM, {"text": "a"})
    second = ledger.append(Kind.CLAIM, {"text": "b"})
    assert [first.seq, second.seq] == [1, 2]
    assert first.prev == "0" * 64
    assert second.prev == first.hash
    assert second.origin == first.origin
    assert list(ledger.records()) == [first, second]


def test_hash_and_id_can_be_recomputed_from_the_bytes_as_documented(three):
    for line in lines(three):
        members = json.loads(line)
        without_hash = line.replace(b',"hash":"%b"' % members["hash"].encode(), b"")
        assert hashlib.sha256(without_hash).hexdigest() == members["hash"]
        content = without_hash
        for name in ("id", "origin", "prev"):
            content = content.replace(b',"%b":"%b"' % (name.encode(), members[name].encode()), b"")
        content = content.replace(b',"seq":%d' % members["seq"], b"")
        assert hashlib.sha256(content).hexdigest() == members["id"]


GOLDEN = (
    '{"body":{"text":"注意","x":[1e-7,0.000002,1e+21]},"cites":[],"commit":null,'
    '"hash":"%s","id":"%s","kind":"claim","nonce":"%s","origin":"%s","prev":"%s","schema":1,'
    '"seq":1,"tool":"0.1.0","utc":"2026-01-02T03:04:05.000000Z"}\n'
)
GOLDEN_HASH = "ca7e55efe69df6925076569ff9c9d0ce576ffa1ee16d00bd6089d0b1df386a2c"
GOLDEN_ID = "8f501cbff0a247e6d6ce06345c190df055547bf4aa40798798355ddddb333d75"


def test_a_line_has_the_bytes_that_any_other_program_would_write():
    entry = draft(
        Kind.CLAIM,
        {"x": [1e-7, 2e-6, 1e21], "text": "注意"},
        (),
        utc="2026-01-02T03:04:05.000000Z",
        nonce="a" * 32,
        tool="0.1.0",
        commit=None,
    )
    line = seal(entry, Head(0, "0" * 64, "b" * 32))
    place = ("a" * 32, "b" * 32, "0" * 64)
    assert line.decode() == GOLDEN % (GOLDEN_HASH, GOLDEN_ID, *place)
    assert unseal(line[:-1]).body == {"text": "注意", "x": [1e-7, 2e-6, 1e21]}


def test_the_same_content_twice_is_two_records(ledger):
    ids = {ledger.append(Kind.CLAIM, {"text": "same"}).id for _ in range(3)}
    assert len(ids) == 3


def test_a_body_that_looks_like_an_envelope_does_not_confuse_the_reader(ledger):
    nested = {"hash": "0" * 64, "id": "0" * 64, "kind": "claim", "text": ',"hash":"'}
    ledger.append(Kind.CLAIM, {"hash": "f" * 64, "z": nested, "text": '","hash":"x"}'})
    assert next(ledger.records()).body["z"] == nested
    assert verify(ledger.path).is_sound


def test_a_body_that_has_no_canonical_form_leaves_no_trace(ledger):
    with pytest.raises(NotCanonical, match=r"body\.latency_ms\.median"):
        ledger.append(Kind.RESULT, {"latency_ms": {"median": float("nan")}})
    assert not ledger.path.parent.exists()


def test_only_record_ids_can_be_cited(ledger):
    with pytest.raises(Refused, match="no record id"):
        ledger.append(Kind.RESULT, {}, cites=["the session before"])


def test_a_clock_that_goes_back_changes_no_order(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", clock=ticking_clock(step_s=-60))
    for i in range(3):
        ledger.append(Kind.CLAIM, {"i": i})
    assert [record.body["i"] for record in ledger.records()] == [0, 1, 2]
    assert [record.seq for record in ledger.records()] == [1, 2, 3]
    last = list(ledger.records())[-1]
    assert last.utc == (START - timedelta(seconds=120)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert verify(ledger.path).is_sound


def test_appending_reads_the_last_line_however_long_and_not_the_rest(ledger):
    ledger.append(Kind.CLAIM, {"text": "first"})
    ledger.append(Kind.CLAIM, {"text": "é" * 200_000})
    ledger.path.write_bytes(b"#" + ledger.path.read_bytes()[1:])
    assert ledger.append(Kind.CLAIM, {"text": "third"}).seq == 3


def test_a_link_to_a_ledger_is_that_ledger_with_its_blobs(ledger, tmp_path):
    ledger.append(Kind.CLAIM, {"by": "name"})
    ref = ledger.put_blob(b"samples")
    link = tmp_path / "elsewhere.jsonl"
    link.symlink_to(ledger.path)
    linked = Ledger(link)
    linked.append(Kind.CLAIM, {"by": "link"})
    assert [record.body["by"] for record in ledger.records()] == ["name", "link"]
    assert linked.get_blob(ref) == b"samples"
    assert verify(link).is_sound


def test_a_ledger_that_was_exchanged_while_waiting_for_its_lock_is_opened_again(ledger):
    import portalocker

    ledger.append(Kind.CLAIM, {"i": 1})
    before = ledger.path.read_bytes()
    with ledger.path.open("rb") as held:
        portalocker.lock(held, portalocker.LockFlags.EXCLUSIVE)
        waiting = subprocess.Popen([sys.executable, "-c", APPEND_ONE, str(ledger.path)])
        wait_until_blocked(waiting)
        other = ledger.path.with_suffix(".new")
        other.write_bytes(before)
        other.replace(ledger.path)
    assert waiting.wait() == 0
    assert [record.seq for record in ledger.records()] == [1, 2]


def test_a_reader_waits_for_a_record_that_is_being_written(three):
    import portalocker

    whole = three.path.read_bytes()
    with three.path.open("ab", buffering=0) as writer:
        portalocker.lock(writer, portalocker.LockFlags.EXCLUSIVE)
        writer.write(whole[:50])
        reader = subprocess.Popen([sys.executable, "-c", READ_ALL, str(three.path)])
        wait_until_blocked(reader)
        os.truncate(three.path, len(whole))
    assert reader.wait() == 0


READ_ALL = """
import sys
from pathlib import Path
from attnbench.ledger import Ledger
assert len(list(Ledger(Path(sys.argv[1])).records())) == 3
"""


APPEND_ONE = """
import sys
from pathlib import Path
from attnbench.ledger import Kind, Ledger
Ledger(Path(sys.argv[1])).append(Kind.CLAIM, {"by": "another process"})
"""


def wait_until_blocked(process: subprocess.Popen) -> None:
    """Wait until the kernel lists a process as waiting for a lock."""
    locks = Path("/proc/locks")
    if not locks.exists():
        pytest.skip("the kernel does not list its locks")
    while process.poll() is None:
        if any("->" in row and f" {process.pid} " in row for row in locks.read_text().splitlines()):
            return
        time.sleep(0.01)
    pytest.fail("it did not wait for the lock")


def test_a_short_write_leaves_the_ledger_as_it_was(three, monkeypatch):
    before, real_write = three.path.read_bytes(), os.write
    monkeypatch.setattr(storage.os, "write", lambda fd, data: real_write(fd, data[:50]))
    with pytest.raises(LedgerUnavailable, match="only 50 of") as caught:
        three.append(Kind.CLAIM, {"text": "lost"})
    assert caught.value.exit_code == Exit.RUNTIME
    assert "Free some space" in caught.value.hint
    assert three.path.read_bytes() == before
    monkeypatch.undo()
    assert three.append(Kind.CLAIM, {"text": "kept"}).seq == 4


@pytest.mark.parametrize("interruption", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failed_sync_or_an_interrupt_after_the_write_leaves_the_ledger_as_it_was(
    three, monkeypatch, interruption
):
    before = three.path.read_bytes()

    def fail(fd):
        raise interruption

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises((LedgerUnavailable, KeyboardInterrupt)):
        three.append(Kind.CLAIM, {"text": "lost"})
    assert three.path.read_bytes() == before


FILL = """
import resource, signal, sys
from pathlib import Path
from attnbench.ledger import Kind, Ledger
from attnbench.ledger.faults import LedgerUnavailable
ledger = Ledger(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    for i in range(1000):
        ledger.append(Kind.CLAIM, {"i": i, "text": "x" * 500})
        print(i, flush=True)
except LedgerUnavailable as error:
    print(error.exit_code, error.hint)
"""


def test_where_the_file_may_not_grow_all_that_was_acknowledged_is_there_and_no_more(ledger):
    run = subprocess.run(
        [sys.executable, "-c", FILL, str(ledger.path)], capture_output=True, text=True, check=True
    )
    *acknowledged, refusal = run.stdout.splitlines()
    assert len(acknowledged) > 5
    assert refusal.startswith("1 Nothing was recorded.")
    assert [str(record.body["i"]) for record in ledger.records()] == acknowledged
    assert verify(ledger.path).is_sound


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_ledger_that_may_not_be_written_says_so_and_what_to_do(three, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.os, "open", refuse)
    with pytest.raises(LedgerUnavailable, match="cannot be written") as caught:
        three.append(Kind.CLAIM, {})
    assert caught.value.exit_code == Exit.RUNTIME
    assert "--ledger PATH" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_ledger_can_be_read_and_not_written(three):
    three.path.chmod(0o444)
    assert len(list(three.records())) == 3
    with pytest.raises(LedgerUnavailable):
        three.append(Kind.CLAIM, {})


def test_a_folder_in_the_place_of_a_ledger_is_an_environment_error(tmp_path):
    for use in (lambda: Ledger(tmp_path).append(Kind.CLAIM, {}), lambda: verify(tmp_path)):
        with pytest.raises(LedgerUnavailable) as caught:
            use()
        assert caught.value.exit_code == Exit.RUNTIME


def test_whether_a_ledger_can_be_written_is_tried_and_leaves_nothing_behind(three, tmp_path):
    before = three.path.read_bytes(), sorted(tmp_path.rglob("*"))
    three.require_writable()
    Ledger(tmp_path / "new" / "folder" / "ledger.jsonl").require_writable()
    assert (three.path.read_bytes(), sorted(tmp_path.rglob("*"))) == before
    for place in ("/proc/x/ledger.jsonl", "/proc/ledger.jsonl"):  # root may do all, but not this
        with pytest.raises(LedgerUnavailable, match="cannot be written") as caught:
            Ledger(Path(place)).require_writable()
        assert "--ledger PATH" in caught.value.hint
        assert "starts a ledger" not in caught.value.hint


def test_a_missing_ledger_names_what_starts_one(ledger):
    with pytest.raises(LedgerUnavailable, match="No such file") as caught:
        list(ledger.records())
    assert "attnbench decode" in caught.value.hint


def test_a_broken_last_line_stops_appending_and_names_the_first_bad_line(three):
    whole = three.path.read_bytes()
    second, third = lines(three)[1:]
    for damaged, line in ((second, 2), (third, 3)):
        broken = whole.replace(damaged, damaged.replace("注".encode(), "主".encode()))
        broken = broken.replace(third, third.replace("意".encode(), "義".encode()))
        three.path.write_bytes(broken)
        with pytest.raises(BrokenLedger) as caught:
            three.append(Kind.CLAIM, {})
        assert caught.value.line == line
        assert caught.value.exit_code == Exit.LEDGER_BROKEN
        assert three.path.read_bytes() == broken


def test_a_torn_last_line_stops_appending_and_names_the_repair(three):
    whole = three.path.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 100):
        three.path.write_bytes(whole[:cut])
        with pytest.raises(TornTail, match="line 3") as caught:
            three.append(Kind.CLAIM, {})
        assert "`attnbench ledger repair`" in caught.value.hint
        assert three.path.read_bytes() == whole[:cut]


def test_another_byte_in_the_place_of_the_last_newline_stops_appending(three):
    three.path.write_bytes(three.path.read_bytes()[:-1] + b"\x0b")
    with pytest.raises(TornTail):
        three.append(Kind.CLAIM, {})


def test_a_blob_is_stored_once_under_its_hash_and_checked_when_read(ledger):
    ref = ledger.put_blob(b"samples")
    assert ledger.put_blob(b"samples") == ref
    digest = hashlib.sha256(b"samples").hexdigest()
    assert ref == f"sha256:{digest}"
    stored = ledger.path.parent / "blobs" / digest[:2] / digest
    assert [path for path in ledger.blob_folder.rglob("*") if path.is_file()] == [stored]
    assert ledger.get_blob(ref) == b"samples"
    stored.write_bytes(b"samplez")
    with pytest.raises(BadBlob, match="was changed"):
        ledger.get_blob(ref)
    assert ledger.put_blob(b"samples") == ref
    assert ledger.get_blob(ref) == b"samples"


def test_a_blob_that_cannot_be_written_leaves_nothing_behind(ledger, monkeypatch):
    def fail(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(LedgerUnavailable):
        ledger.put_blob(b"samples")
    assert not [path for path in ledger.blob_folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("ref", ["sha256:../../etc/passwd", "md5:00", f"sha256:{'0' * 64}"])
def test_a_reference_that_leads_nowhere_is_told(ledger, ref):
    with pytest.raises(BadBlob):
        ledger.get_blob(ref)


def test_source_that_git_does_not_track_is_named_by_a_hash_of_its_files(tmp_path, monkeypatch):
    package = tmp_path / "attnbench"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(attnbench, "__file__", str(package / "__init__.py"))
    source_commit.cache_clear()
    try:
        before = source_commit()
        assert before == f"files:{files_sha256(package)}"
        (package / "inner" / "a.py").write_text("x = 2\n")
        assert files_sha256(package) != before.removeprefix("files:")
    finally:
        source_commit.cache_clear()
