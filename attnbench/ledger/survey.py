"""One walk along a ledger of any size, in several processes where it is large.

Every line is checked: its bytes against its hash, its place in the chain, its kind. What
a caller wants of a line, a `Look`, is asked of each; whoever needs whole records reads the few that
were found, and each is then checked in full. Of all lines the id, the place in the file and the
citations are kept, as bytes: the standing of a record follows from them (`bearing`).
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Generic, NamedTuple, TypeVar

from attnbench.ledger.chain import misplaced
from attnbench.ledger.faults import BadLine, BrokenLedger, LedgerUnavailable, TornTail
from attnbench.ledger.record import (
    SCHEMA,
    Envelope,
    Head,
    Kind,
    Record,
    envelope,
    unknown_form,
    unseal,
)
from attnbench.ledger.storage import explained, settled_size

_T = TypeVar("_T")
_Identity = tuple[int, int]
CHUNK_BYTES = 32 * 1024 * 1024
"""What a process walks at a time; a ledger that is not larger is walked in this one."""
ID = 64  # bytes of an id


Look = Callable[[bytes, Envelope], "_T | None"]
"""What a caller wants of a line (without its newline, and what surrounds its content); None where
there is nothing. It is sent to other processes, and may raise BadLine."""


class Find(NamedTuple, Generic[_T]):
    """What a look found in the line of this number."""

    seq: int
    what: _T


@dataclass
class Survey(Generic[_T]):
    """What one walk found, up to the first line that is not what was appended (`fault`).

    `offsets` holds where each line begins, and at last where the walk ended; `citing` the numbers
    of the lines that cite something, and `cites` the text of these lists in the same order.
    """

    path: Path
    source: str
    head: Head | None = None
    ids: bytearray = field(default_factory=bytearray)
    offsets: array[int] = field(default_factory=lambda: array("Q", [0]))
    finds: list[Find[_T]] = field(default_factory=list)
    citing: array[int] = field(default_factory=lambda: array("I"))
    cites: list[bytes] = field(default_factory=list)
    remarks: list[int] = field(default_factory=list)
    loose_ends: list[int] = field(default_factory=list)
    fault: BrokenLedger | TornTail | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def id_of(self, seq: int) -> str:
        """The id of a line."""
        return self.ids[(seq - 1) * ID : seq * ID].decode()

    def all_ids(self) -> Iterator[bytes]:
        """The ids of all lines, in their order."""
        ids = bytes(self.ids)
        return (ids[at : at + ID] for at in range(0, len(ids), ID))

    def records(self, seqs: Iterable[int]) -> list[Record]:
        """Read these lines in full, each checked once more. Raises BrokenLedger."""
        with explained(self.path, "read"), self.path.open("rb") as file:
            return [self._record(seq, os.pread(file.fileno(), *self._place(seq))) for seq in seqs]

    def _place(self, seq: int) -> tuple[int, int]:
        start, end = self.offsets[seq - 1], self.offsets[seq]
        return end - start - 1, start

    def _record(self, seq: int, text: bytes) -> Record:
        try:
            record = unseal(text)
        except BadLine as bad:
            raise BrokenLedger(self.source, seq, bad.message) from None
        if record.id != self.id_of(seq):
            raise BrokenLedger(self.source, seq, "it was exchanged while it was read")
        return record


def survey(
    path: Path, look: Look[_T], *, source: str = "", chunk_bytes: int = CHUNK_BYTES
) -> Survey[_T]:
    """Walk a ledger and ask `look` of every line; `source` is what to call it in errors.

    Raises LedgerUnavailable, TornTail and BrokenLedger.
    """
    found = survey_until_fault(path, look, source=source, chunk_bytes=chunk_bytes)
    if found.fault is not None:
        raise found.fault
    return found


def survey_until_fault(
    path: Path, look: Look[_T], *, source: str = "", chunk_bytes: int = CHUNK_BYTES
) -> Survey[_T]:
    """As `survey`, but what was found before a fault is returned with it."""
    found: Survey[_T] = Survey(path, source or str(path))
    for chunk in _chunks(path, look, chunk_bytes):
        _add(found, chunk)
        if found.fault is not None:
            break
    return found


@dataclass
class _Chunk(Generic[_T]):
    """What one process saw of its part; numbers count from its beginning."""

    first: Envelope | None = None
    last: Envelope | None = None
    ids: list[bytes] = field(default_factory=list)
    ends: array[int] = field(default_factory=lambda: array("Q"))
    finds: list[tuple[int, _T]] = field(default_factory=list)
    citing: array[int] = field(default_factory=lambda: array("I"))
    cites: list[bytes] = field(default_factory=list)
    remarks: list[int] = field(default_factory=list)
    loose_ends: list[int] = field(default_factory=list)
    bad: str = ""
    torn: bool | None = None  # whether only a newline is missing


def _chunks(path: Path, look: Look[_T], chunk_bytes: int) -> Iterator[_Chunk[_T]]:
    with explained(path, "read"):
        with path.open("rb") as file:
            size, identity = settled_size(file.fileno()), _identity(file.fileno())
            parts = list(pairwise(_bounds(file.fileno(), size, chunk_bytes)))
        if len(parts) <= 1:
            yield from (_walked(path, identity, part, look) for part in parts)
            return
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        workers = min(len(parts), len(os.sched_getaffinity(0)))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            try:
                yield from pool.map(_Walk(path, identity, look), parts)
            finally:
                pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Walk(Generic[_T]):
    """The walk along any part of one file."""

    path: Path
    identity: _Identity
    look: Look[_T]

    def __call__(self, part: tuple[int, int]) -> _Chunk[_T]:
        return _walked(self.path, self.identity, part, self.look)


def _bounds(fd: int, size: int, chunk_bytes: int) -> list[int]:
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


def _identity(fd: int) -> _Identity:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _walked(path: Path, identity: _Identity, part: tuple[int, int], look: Look[_T]) -> _Chunk[_T]:
    start, end = part
    chunk: _Chunk[_T] = _Chunk()
    with explained(path, "read"), path.open("rb") as file:
        if _identity(file.fileno()) != identity:
            raise LedgerUnavailable(f"{path} was exchanged while it was read", hint="Try again.")
        file.seek(start)
        try:
            _walk_lines(chunk, _lines(file, start, end), look)
        except BadLine as bad:
            chunk.bad = bad.message
    return chunk


def _lines(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Each line between two places, with the place where it ends."""
    at = start
    while at < end:
        line = file.readline(end - at)
        at += len(line)
        yield at, line


def _walk_lines(chunk: _Chunk[_T], lines: Iterable[tuple[int, bytes]], look: Look[_T]) -> None:
    """Check lines and keep what is wanted of them; raises BadLine at the first that is bad."""
    before: Envelope | None = None
    seq = 0
    for end, line in lines:
        if line[-1:] != b"\n":
            chunk.torn = _is_whole(line)
            return
        text = line[:-1]
        about = envelope(text)
        if about.kind not in _KINDS or about.schema != _SCHEMA:
            raise BadLine(unknown_form(about.kind.decode(), int(about.schema)))
        if before is None:
            chunk.first, seq = about, int(about.seq)
        elif about.prev != before.hash or int(about.seq) != seq or about.origin != before.origin:
            raise BadLine(misplaced(_head_before(about), _head_after(before)))
        seq += 1
        found = look(text, about)
        if found is not None:
            chunk.finds.append((len(chunk.ids) + 1, found))
        chunk.ids.append(about.id)
        chunk.ends.append(end)
        chunk.last = before = about
        _keep_bearing(chunk, text, about)


def _head_before(about: Envelope) -> Head:
    """The end of the chain that a line says it continues."""
    return Head(int(about.seq) - 1, about.prev.decode(), about.origin.decode())


def _head_after(about: Envelope) -> Head:
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


def _keep_bearing(chunk: _Chunk[_T], text: bytes, about: Envelope) -> None:
    """Keep what may bear on the standing of other records.

    The last `,"cites":[` before the hash is the record's own: after its list only `commit` comes,
    a string or null, in which a quote would be escaped.
    """
    number = len(chunk.ids)
    begin = text.rfind(_CITES, 0, about.start) + len(_CITES)
    cites = text[begin : text.rfind(_AFTER_CITES, begin, about.start)]
    if cites:
        chunk.citing.append(number)
        chunk.cites.append(cites)
    if about.kind in _REMARKS:
        chunk.remarks.append(number)
    elif not cites and about.kind == _SESSION and b'"phase":"opened"' not in text:
        chunk.loose_ends.append(number)


def _is_whole(line: bytes) -> bool:
    try:
        unseal(line)
    except BadLine:
        return False
    return True


def _add(survey: Survey[_T], chunk: _Chunk[_T]) -> None:
    """Append a part to what comes before it, if it continues that."""
    before = len(survey)
    head = survey.head
    if chunk.first is not None and (wrong := misplaced(_head_before(chunk.first), head)):
        survey.fault = BrokenLedger(survey.source, before + 1, wrong)
        return
    survey.ids += b"".join(chunk.ids)
    survey.offsets.extend(chunk.ends)
    survey.finds += [Find(before + number, what) for number, what in chunk.finds]
    survey.citing.extend(before + number for number in chunk.citing)
    survey.cites += chunk.cites
    survey.remarks += [before + number for number in chunk.remarks]
    survey.loose_ends += [before + number for number in chunk.loose_ends]
    survey.head = _head_after(chunk.last) if chunk.last else head
    survey.fault = _fault(survey, chunk)


def _fault(survey: Survey[_T], chunk: _Chunk[_T]) -> BrokenLedger | TornTail | None:
    line = len(survey) + 1
    if chunk.bad:
        return BrokenLedger(survey.source, line, chunk.bad)
    if chunk.torn is not None:
        start = survey.offsets[-1]
        return TornTail(survey.source, line, start, only_newline=chunk.torn)
    return None
