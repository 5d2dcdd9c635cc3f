"""One walk along a ledger of any size, in several processes where it is large.

Every line is checked: its bytes against its hash, its place in the chain, its kind. What a caller
wants of a line, a `Look`, is asked of each; whoever needs whole records reads the few that
were found, and each is then checked in full. Of all lines the id, the place in the file and the
citations are kept, as bytes: the standing of a record follows from them (`bearing`).
"""

from __future__ import annotations

import os
import sys
import threading
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

from attnbench.ledger.chain import misplaced
from attnbench.ledger.chunks import (
    Chunk,
    Look,
    Walk,
    bounds_of,
    head_after,
    head_before,
    identity_of,
)
from attnbench.ledger.faults import BadLine, BrokenLedger, TornTail
from attnbench.ledger.record import Head, Record, unseal
from attnbench.ledger.storage import explained, settled_size

_T = TypeVar("_T")
CHUNK_BYTES = 32 * 1024 * 1024
"""What a process walks at a time; a ledger that is not larger is walked in this one."""
ID = 64  # bytes of an id
_NEAR_BYTES = 1000 * ID


class Find(NamedTuple, Generic[_T]):
    """What a look found in the line of this number."""

    seq: int
    what: _T


@dataclass
class Survey(Generic[_T]):
    """What one walk found, up to the first line that is not what was appended (`fault`).

    `offsets` holds where each line begins, and at last where the walk ended; `citing` the numbers
    of the lines that cite something, and `cites` the text of these lists, a line each, in parts.
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

    def numbers(self, citing: Mapping[str, int]) -> list[int]:
        """The lines of these ids, ascending, as far as they are here.

        Each id comes with the number of a line that cites it: most cite what is shortly before.
        """
        found: list[int] = []
        far: set[bytes] = set()
        for id, seq in citing.items():
            wanted, end = id.encode(), max(0, seq - 1) * ID
            at = self.ids.rfind(wanted, max(0, end - _NEAR_BYTES), end)
            if at >= 0 and at % ID == 0:
                found.append(at // ID + 1)
            else:
                far.add(wanted)
        if far:
            found += (seq for seq, id in enumerate(self.all_ids(), start=1) if id in far)
        return sorted(found)

    def links(self) -> Iterator[tuple[int, bytes]]:
        """The lines that cite something, by their numbers, and the text of their lists."""
        texts = (text for part in self.cites for text in part.split(b"\n"))
        return zip(self.citing, texts, strict=True)

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
    path: Path,
    look: Look[_T],
    *,
    source: str = "",
    chunk_bytes: int = CHUNK_BYTES,
    processes: int = 0,
) -> Survey[_T]:
    """Walk a ledger and ask `look` of every line; `source` is what to call it in errors.

    `processes` 0 means as many as there are cores. Raises LedgerUnavailable, TornTail and
    BrokenLedger.
    """
    found = survey_until_fault(
        path, look, source=source, chunk_bytes=chunk_bytes, processes=processes
    )
    if found.fault is not None:
        raise found.fault
    return found


def survey_until_fault(
    path: Path,
    look: Look[_T],
    *,
    source: str = "",
    chunk_bytes: int = CHUNK_BYTES,
    processes: int = 0,
) -> Survey[_T]:
    """As `survey`, but what was found before a fault is returned with it."""
    found: Survey[_T] = Survey(path, source or str(path))
    for chunk in _chunks(path, look, chunk_bytes, processes or len(os.sched_getaffinity(0))):
        _add(found, chunk)
        if found.fault is not None:
            break
    return found


def _chunks(path: Path, look: Look[_T], chunk_bytes: int, processes: int) -> Iterator[Chunk[_T]]:
    with explained(path, "read"):
        with path.open("rb") as file:
            size, identity = settled_size(file.fileno()), identity_of(file.fileno())
            parts = list(pairwise(bounds_of(file.fileno(), size, chunk_bytes)))
        walk = Walk(path, identity, look)
        if min(len(parts), processes) <= 1:
            yield from map(walk, parts)
            return
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        workers = min(len(parts), processes)
        with ProcessPoolExecutor(workers, mp_context=get_context(_start_method())) as pool:
            try:
                yield from pool.map(walk, parts)
            finally:
                pool.shutdown(cancel_futures=True)


def _start_method() -> Literal["fork", "spawn"]:
    """A copy of this process starts at once, but is safe only where nothing else runs in it."""
    alone = threading.active_count() == 1 and "torch" not in sys.modules
    return "fork" if alone else "spawn"


def _add(survey: Survey[_T], chunk: Chunk[_T]) -> None:
    """Append a part to what comes before it, if it continues that."""
    before = len(survey)
    head = survey.head
    if chunk.first is not None and (wrong := misplaced(head_before(chunk.first), head)):
        survey.fault = BrokenLedger(survey.source, before + 1, wrong)
        return
    survey.ids += chunk.ids
    survey.offsets.extend(chunk.ends)
    survey.finds += [Find(before + number, what) for number, what in chunk.finds]
    survey.citing.extend(before + number for number in chunk.citing)
    survey.cites += [chunk.cites] if chunk.citing else []
    survey.remarks += [before + number for number in chunk.remarks]
    survey.loose_ends += [before + number for number in chunk.loose_ends]
    survey.head = head_after(chunk.last) if chunk.last else head
    survey.fault = _fault(survey, chunk)


def _fault(survey: Survey[_T], chunk: Chunk[_T]) -> BrokenLedger | TornTail | None:
    line = len(survey) + 1
    if chunk.bad:
        return BrokenLedger(survey.source, line, chunk.bad)
    if chunk.torn is not None:
        start = survey.offsets[-1]
        return TornTail(survey.source, line, start, only_newline=chunk.torn)
    return None
