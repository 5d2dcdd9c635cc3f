"""A part of a ledger, walked in one go: every line checked, and what is wanted of it kept."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from attnbench.ledger.chain import misplaced
from attnbench.ledger.faults import BadLine, LedgerUnavailable
from attnbench.ledger.record import (
    SCHEMA,
    Envelope,
    Head,
    Kind,
    envelope,
    unknown_form,
    unseal,
)
from attnbench.ledger.storage import explained

_T = TypeVar("_T")
Identity = tuple[int, int]
_BLOCK_BYTES = 1 << 18

Look = Callable[[bytes, Envelope], "_T | None"]
"""What a caller wants of a line (without its newline, and what surrounds its content); None where
there is nothing. It is sent to other processes, and may raise BadLine."""


@dataclass
class Chunk(Generic[_T]):
    """What one process saw of its part; numbers count from its beginning.

    `cites` holds the text of the lists that cite something, one a line.
    """

    first: Envelope | None = None
    last: Envelope | None = None
    ids: bytes = b""
    ends: array[int] = field(default_factory=lambda: array("Q"))
    finds: list[tuple[int, _T]] = field(default_factory=list)
    citing: array[int] = field(default_factory=lambda: array("I"))
    cites: bytes = b""
    remarks: list[int] = field(default_factory=list)
    loose_ends: list[int] = field(default_factory=list)
    bad: str = ""
    torn: bool | None = None  # whether only a newline is missing


@dataclass(frozen=True)
class Walk(Generic[_T]):
    """The walk along any part of one file."""

    path: Path
    identity: Identity
    look: Look[_T]

    def __call__(self, part: tuple[int, int]) -> Chunk[_T]:
        return _walked(self.path, self.identity, part, self.look)


def bounds_of(fd: int, size: int, chunk_bytes: int) -> list[int]:
    """Where the parts of a file begin, each at the beginning of a line, and its end."""
    bounds = [0]
    while bounds[-1] < size:
        bounds.append(_line_after(fd, bounds[-1] + chunk_bytes, size))
    return bounds


def _line_after(fd: int, at: int, size: int) -> int:
    while at < size:
        block = os.pread(fd, min(1 << 16, size - at), at)
        newline = block.find(b"\n")
        if newline >= 0:
            return at + newline + 1
        at += len(block)
    return size


def identity_of(fd: int) -> Identity:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _walked(path: Path, identity: Identity, part: tuple[int, int], look: Look[_T]) -> Chunk[_T]:
    start, end = part
    chunk: Chunk[_T] = Chunk()
    with explained(path, "read"), path.open("rb") as file:
        if identity_of(file.fileno()) != identity:
            raise LedgerUnavailable(f"{path} was exchanged while it was read", hint="Try again.")
        file.seek(start)
        try:
            _walk_lines(chunk, start, _blocks(file, end - start), look)
        except BadLine as bad:
            chunk.bad = bad.message
    return chunk


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """So many bytes, in pieces that a processor's cache holds."""
    while size > 0 and (block := file.read(min(size, _BLOCK_BYTES))):
        size -= len(block)
        yield block


def _lines(blocks: Iterable[bytes], chunk: Chunk[_T]) -> Iterator[bytes]:
    """Each line without its newline; what follows the last one is torn."""
    rest = b""
    for block in blocks:
        start = 0
        while (end := block.find(b"\n", start)) >= 0:  # faster than to split a block
            yield rest + block[start:end]
            start, rest = end + 1, b""
        rest += block[start:]
    if rest:
        chunk.torn = _is_whole(rest)


def _walk_lines(chunk: Chunk[_T], start: int, blocks: Iterable[bytes], look: Look[_T]) -> None:
    """Check lines and keep what is wanted of them; raises BadLine at the first that is bad."""
    ids, cites = bytearray(), bytearray()  # long texts; so many objects would be slow to keep
    ends, citing = chunk.ends, chunk.citing
    before: Envelope | None = None
    last_hash = last_origin = b""
    end, seq, line = start, 0, 0
    try:
        for text in _lines(blocks, chunk):
            about = envelope(text)
            hash, id, kind, _, origin, prev, schema, number, _ = about
            if kind not in _KINDS or schema != _SCHEMA:
                raise BadLine(unknown_form(kind.decode(), int(schema)))
            if before is None:
                chunk.first, seq = about, int(number)
            elif prev != last_hash or origin != last_origin or int(number) != seq:
                raise BadLine(misplaced(head_before(about), head_after(before)))
            found = look(text, about)
            before, last_hash, last_origin = about, hash, origin
            seq += 1
            line += 1
            end += len(text) + 1
            ids += id
            ends.append(end)
            if found is not None:
                chunk.finds.append((line, found))
            if cited := _cited(text, about):
                citing.append(line)
                cites += cited
                cites += b"\n"
            elif kind == _SESSION and b'"phase":"opened"' not in text:
                chunk.loose_ends.append(line)
            if kind in _REMARKS:
                chunk.remarks.append(line)
    finally:
        chunk.last = before
        chunk.ids, chunk.cites = bytes(ids), bytes(cites[:-1])


def head_before(about: Envelope) -> Head:
    """The end of the chain that a line says it continues."""
    return Head(int(about.seq) - 1, about.prev.decode(), about.origin.decode())


def head_after(about: Envelope) -> Head:
    """The end of the chain after a line."""
    return Head(int(about.seq), about.hash.decode(), about.origin.decode())


_KINDS = frozenset(kind.value.encode() for kind in Kind)
_SCHEMA = str(SCHEMA).encode()
_REMARKS = frozenset(
    kind.value.encode()
    for kind in (Kind.RETRACTION, Kind.REINSTATEMENT, Kind.CORRECTION, Kind.CONCERN)
)
_SESSION = Kind.SESSION.value.encode()
_CITES, _AFTER_CITES = b',"cites":[', b'],"commit":'


def _cited(text: bytes, about: Envelope) -> bytes:
    """The text of the list of citations, without its brackets.

    The last `,"cites":[` before the hash is the record's own: after its list only `commit` comes,
    a string or null, in which a quote would be escaped.
    """
    begin = text.rfind(_CITES, 0, about.start) + len(_CITES)
    return text[begin : text.rfind(_AFTER_CITES, begin, about.start)]


def _is_whole(line: bytes) -> bool:
    try:
        unseal(line)
    except BadLine:
        return False
    return True
