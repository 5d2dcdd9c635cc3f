from __future__ import annotations

import os
import signal
import subprocess
import sys

from attnbench.ledger import Kind, verify
from attnbench.ledger.faults import TornTail

WRITERS, EACH = 8, 100

APPEND_MANY = """
import sys
from pathlib import Path
from attnbench.ledger import Kind, Ledger
ledger, writer = Ledger(Path(sys.argv[1])), int(sys.argv[2])
for i in range(int(sys.argv[3])):
    size = 100_000 if i % 25 == writer else (200, 500, 2_000, 10_000)[i % 4]
    ledger.append(Kind.CLAIM, {"writer": writer, "i": i, "text": "x" * size})
    print(i, flush=True)
"""


def start(path, writer: int, records: int, output) -> subprocess.Popen:
    command = [sys.executable, "-c", APPEND_MANY, str(path), str(writer), str(records)]
    return subprocess.Popen(command, stdout=output)


def test_eight_processes_make_one_chain_and_lose_nothing(ledger):
    writers = [start(ledger.path, w, EACH, subprocess.DEVNULL) for w in range(WRITERS)]
    assert [writer.wait() for writer in writers] == [0] * WRITERS
    assert verify(ledger.path).is_sound
    written = [(record.body["writer"], record.body["i"]) for record in ledger.records()]
    for w in range(WRITERS):
        assert [i for writer, i in written if writer == w] == list(range(EACH))
    assert len(written) == WRITERS * EACH


def test_a_killed_writer_loses_nothing_that_it_was_told_is_recorded(ledger):
    acknowledged = 0
    for _ in range(4):
        writer = start(ledger.path, 0, 10_000, subprocess.PIPE)
        for _ in range(30):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += 30 + len(writer.stdout.read().splitlines())
        writer.wait()
        writer.stdout.close()
        assert verify(ledger.path).records >= acknowledged
        assert {problem.what for problem in verify(ledger.path).problems} <= {"torn"}
        cut_torn_tail(ledger)
        acknowledged = verify(ledger.path).records
    assert ledger.append(Kind.CLAIM, {}).seq == acknowledged + 1


def cut_torn_tail(ledger) -> None:
    try:
        list(ledger.records())
    except TornTail as torn:
        os.truncate(ledger.path, torn.intact_bytes)


def test_readers_beside_a_writer_see_whole_records_only(ledger):
    ledger.append(Kind.CLAIM, {"writer": 0, "i": -1})
    writer = start(ledger.path, 0, EACH, subprocess.DEVNULL)
    while writer.poll() is None:
        seen = [record.body["i"] for record in ledger.records()]
        assert seen == list(range(-1, len(seen) - 1))
    assert writer.returncode == 0
    assert len(list(ledger.records())) == EACH + 1


def test_reading_while_appending_in_one_process_ends_at_what_was_there(ledger):
    for i in range(3):
        ledger.append(Kind.CLAIM, {"i": i})
    for record in ledger.records():
        ledger.append(Kind.CLAIM, {"i": record.body["i"] + 10})
    assert [record.body["i"] for record in ledger.records()] == [0, 1, 2, 10, 11, 12]
