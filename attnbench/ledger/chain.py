"""The chain: every line follows from the one before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from attnbench.ledger.faults import BadLine, BrokenLedger, TornTail
from attnbench.ledger.record import GENESIS, Head, Record, unseal


def walk(stream: BinaryIO, size: int, source: str) -> Iterator[Record]:
    """Yield the records in the first `size` bytes of a ledger, each checked in its place.

    Raises BrokenLedger at the first line that is not what was appended, and TornTail where the last
    one was not written to its end.
    """
    head: Head | None = None
    offset = 0
    while offset < size:
        line = stream.readline(size - offset)
        record = _checked(line, head, source, offset)
        yield record
        head = Head(record.seq, record.hash, record.origin)
        offset += len(line)


def _checked(line: bytes, head: Head | None, source: str, offset: int) -> Record:
    number = head.seq + 1 if head else 1
    record = _intact(line, number, source, offset)
    before = Head(record.seq - 1, record.prev, record.origin)
    if wrong := misplaced(before, head):
        raise BrokenLedger(source, number, wrong)
    return record


def _intact(line: bytes, number: int, source: str, offset: int) -> Record:
    if not line.endswith(b"\n"):
        raise TornTail(source, number, offset, only_newline=_is_whole(line))
    try:
        return unseal(line[:-1])
    except BadLine as bad:
        raise BrokenLedger(source, number, bad.message) from None


def _is_whole(line: bytes) -> bool:
    try:
        unseal(line)
    except BadLine:
        return False
    return True


def misplaced(before: Head, head: Head | None) -> str:
    """What is wrong with a line that says it continues `before`, where the chain ends with `head`
    (None: it has no line yet); empty where it is in its place."""
    if before.seq != (head.seq if head else 0):
        return f"it is record {before.seq + 1}; records are missing, swapped or added before it"
    if before.hash != (head.hash if head else GENESIS):
        return "it does not continue the line before it, which was exchanged"
    if head and before.origin != head.origin:
        return "it comes from another ledger's chain"
    return ""
