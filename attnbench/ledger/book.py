"""The ledger as a place to append to and read from."""

from __future__ import annotations

import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from attnbench.ledger import blobs
from attnbench.ledger.canonical import Json
from attnbench.ledger.chain import walk
from attnbench.ledger.faults import BadLine, LedgerUnavailable, Refused
from attnbench.ledger.record import GENESIS, Draft, Head, Kind, Record, draft, seal, unseal
from attnbench.ledger.source import TOOL, source_commit
from attnbench.ledger.storage import (
    explained,
    last_line,
    locked_for_append,
    require_writable,
    settled_size,
    write_over,
    write_whole,
)

_ID = re.compile(r"[0-9a-f]{64}")


def utc_now() -> datetime:
    return datetime.now(UTC)


class Ledger:
    """A file of records that are only ever added; raw samples lie in `blobs/` beside it.

    Any number of processes may append at the same time. A link to a ledger is that ledger: its
    blobs are those of the file it points to.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.path = path
        self.blob_folder = path.resolve().parent / "blobs"
        self._clock = clock

    def append(self, kind: Kind, body: Mapping[str, Json], *, cites: Sequence[str] = ()) -> Record:
        """Record something; when this returns, it is on the disk.

        `cites` are the ids of the records that it derives from: retracting one of them taints it.
        Raises NotCanonical (a body that JSON cannot hold), LedgerUnavailable (the file system says
        no; nothing was recorded), TornTail or BrokenLedger (the file's end cannot be trusted).
        """
        return self._place(self._draft(kind, body, cites))

    def adopt(self, records: Iterable[Record]) -> None:
        """Append what another ledger recorded, as it is; only its place becomes this ledger's.

        All of it is written and synced at once, or none. Raises what `append` raises.
        """
        self._place(
            *(
                draft(
                    record.kind,
                    record.body,
                    record.cites,
                    utc=record.utc,
                    nonce=record.nonce,
                    tool=record.tool,
                    commit=record.commit,
                )
                for record in records
            )
        )

    def _place(self, *entries: Draft) -> Record:
        """Give each its place, in one write; returns the last one."""
        with locked_for_append(self.path) as fd:
            size = os.fstat(fd).st_size
            head, lines = self._head(fd, size), []
            for entry in entries:
                lines.append(seal(entry, head))
                record = unseal(lines[-1][:-1])
                head = _after(record)
            write_whole(fd, b"".join(lines), size)
        return record

    def replace_tail(
        self, torn: bytes, *, kept: bytes, head: Head | None, body: Mapping[str, Json]
    ) -> Record:
        """Put `kept` and a `repair` record that continues `head` in the place of `torn`, the end.

        Raises LedgerUnavailable where the file no longer ends so, or cannot be written.
        """
        entry = self._draft(Kind.REPAIR, body, ())
        with locked_for_append(self.path) as fd:
            start = os.fstat(fd).st_size - len(torn)
            if start < 0 or os.pread(fd, len(torn) + 1, start) != torn:
                raise LedgerUnavailable(f"{self.path} changed meanwhile", hint="Try again.")
            line = seal(entry, head or _first())
            record = unseal(line[:-1])
            write_over(self.path, kept + line, start)
        return record

    def records(self) -> Iterator[Record]:
        """Read all records, oldest first, each checked in its place.

        What others append meanwhile is not seen. Raises LedgerUnavailable, TornTail, BrokenLedger.
        """
        with explained(self.path, "read"), self.path.open("rb") as file:
            yield from walk(file, settled_size(file.fileno()), str(self.path))

    def require_writable(self) -> None:
        """Raise LedgerUnavailable where nothing could be appended; creates and changes nothing."""
        for path in (self.path, self.blob_folder / "blob"):
            require_writable(path)

    def put_blob(self, data: bytes) -> str:
        """Store raw samples durably; returns `sha256:<hex>`. Storing the same again is no harm."""
        return blobs.put(self.blob_folder, data)

    def get_blob(self, ref: str) -> bytes:
        """Return stored bytes, checked against their hash; raises BadBlob."""
        return blobs.get(self.blob_folder, ref)

    def _draft(self, kind: Kind, body: Mapping[str, Json], cites: Sequence[str]) -> Draft:
        for cited in cites:
            if not _ID.fullmatch(cited):
                raise Refused(f"{cited!r} is cited but is no record id (64 hex digits)")
        return draft(
            Kind(kind),
            body,
            tuple(cites),
            utc=self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            nonce=secrets.token_hex(16),
            tool=TOOL,
            commit=source_commit(),
        )

    def _head(self, fd: int, size: int) -> Head:
        if size == 0:
            return _first()
        line = last_line(fd, size)
        with suppress(BadLine):
            if line.endswith(b"\n"):
                return _after(unseal(line[:-1]))
        return _after(self._last_of_all(size))

    def _last_of_all(self, size: int) -> Record:
        """Walk the whole file after its last line failed: names the first line that is bad."""
        with self.path.open("rb") as file:
            return deque(walk(file, size, str(self.path)), maxlen=1).pop()


def _first() -> Head:
    """Where the first record of a new chain goes."""
    return Head(seq=0, hash=GENESIS, origin=secrets.token_hex(16))


def _after(last: Record) -> Head:
    return Head(last.seq, last.hash, last.origin)
