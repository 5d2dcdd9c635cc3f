"""Is a ledger what was appended to it, and is it the one that somebody saw before?"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import Exit, LedgerError, UsageError
from attnbench.ledger.blobs import refs_of
from attnbench.ledger.book import Ledger
from attnbench.ledger.canonical import parse
from attnbench.ledger.faults import BadBlob, BadLine, BrokenLedger, NotCanonical, TornTail
from attnbench.ledger.record import Record


@dataclass(frozen=True)
class Checkpoint:
    """What a ledger was at one time, small enough to keep elsewhere: its chain up to one record."""

    origin: str
    seq: int
    hash: str
    utc: str


@dataclass(frozen=True)
class Problem:
    """What is wrong: `what` is torn, broken, blob or checkpoint; `line` counts from 1."""

    what: str
    line: int
    reason: str
    hint: str


@dataclass(frozen=True)
class Report:
    """The outcome of a check: the records that hold, and what is wrong."""

    path: Path
    records: int
    head: str
    origin: str
    blobs: int
    against: Checkpoint | None
    problems: tuple[Problem, ...]

    @property
    def is_sound(self) -> bool:
        return not self.problems

    @property
    def exit_code(self) -> Exit:
        return Exit.DONE if self.is_sound else Exit.LEDGER_BROKEN


def verify(path: Path, checkpoint: Checkpoint | None = None) -> Report:
    """Check every line, its place, every blob that a record names, and the checkpoint if given.

    The chain alone shows edits only relative to something kept elsewhere: whoever rewrites the
    whole file can make a new chain, but not one that has the checkpoint's hash in its place.
    Raises LedgerUnavailable where the file cannot be read.
    """
    check = _Check(Ledger(path), checkpoint)
    check.run()
    return Report(
        path=path,
        records=check.records,
        head=check.last.hash if check.last else "",
        origin=check.last.origin if check.last else "",
        blobs=len(check.blobs),
        against=checkpoint,
        problems=tuple(check.problems),
    )


class _Check:
    """One walk along a ledger, and what it finds on the way."""

    def __init__(self, ledger: Ledger, checkpoint: Checkpoint | None) -> None:
        self.ledger = ledger
        self.checkpoint = checkpoint
        self.last: Record | None = None
        self.lines_by_id: dict[str, int] = {}
        self.blobs: set[str] = set()
        self.problems: list[Problem] = []

    @property
    def records(self) -> int:
        return len(self.lines_by_id)

    def run(self) -> None:
        try:
            for record in self.ledger.records():
                self.last = record
                self._look_for_a_twin(record)
                self._look_at_its_blobs(record)
                self._compare_with_checkpoint(record)
        except TornTail as torn:
            self._note("torn", torn.line, torn)
        except BrokenLedger as broken:
            self._note("broken", broken.line, broken)
            return
        self._look_for_lost_records()

    def _look_for_a_twin(self, record: Record) -> None:
        first = self.lines_by_id.setdefault(record.id, record.seq)
        if first != record.seq:
            twin = BadLine(f"line {record.seq} repeats the record of line {first}")
            self._note("broken", record.seq, twin)

    def _look_at_its_blobs(self, record: Record) -> None:
        for ref in refs_of(record.body):
            if ref in self.blobs:
                continue
            self.blobs.add(ref)
            try:
                self.ledger.get_blob(ref)
            except BadBlob as bad:
                self._note("blob", record.seq, bad)

    def _compare_with_checkpoint(self, record: Record) -> None:
        known = self.checkpoint
        if known is None or record.seq != known.seq:
            return
        if record.origin != known.origin:
            other = BadLine("this is another ledger than the one the checkpoint was taken of")
            self._note("checkpoint", record.seq, other)
        elif record.hash != known.hash:
            rewritten = BadLine(
                f"record {known.seq} is not the one that the checkpoint saw on {known.utc}: "
                "it, or a record before it, was rewritten",
                hint="Compare with a copy that agrees with the checkpoint.",
            )
            self._note("checkpoint", record.seq, rewritten)

    def _look_for_lost_records(self) -> None:
        known, count = self.checkpoint, self.last.seq if self.last else 0
        if known is not None and count < known.seq:
            lost = BadLine(
                f"records {count + 1} to {known.seq} are gone: the checkpoint of {known.utc} "
                "saw them",
                hint="Restore them from a copy.",
            )
            self._note("checkpoint", count + 1, lost)

    def _note(self, what: str, line: int, error: LedgerError) -> None:
        self.problems.append(Problem(what, line, error.message, error.hint))


def take_checkpoint(path: Path) -> Checkpoint:
    """Return what to keep elsewhere, so that a later `verify` can tell whether history changed.

    Raises what reading raises (a checkpoint of a broken ledger would vouch for it), and UsageError
    for a ledger without records.
    """
    tail = deque(Ledger(path).records(), maxlen=1)
    if not tail:
        raise UsageError(f"{path} has no records", hint="Take a checkpoint after the first one.")
    last = tail.pop()
    return Checkpoint(last.origin, last.seq, last.hash, last.utc)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint from the file it was printed to; raises UsageError."""
    try:
        members = parse(path.read_bytes())
    except (OSError, NotCanonical) as error:
        raise UsageError(f"{path} cannot be read as a checkpoint: {error}", hint=_HINT) from None
    fields = members if isinstance(members, Mapping) else {}
    origin, seq, hash, utc = (fields.get(name) for name in ("origin", "seq", "hash", "utc"))
    if not (isinstance(origin, str) and isinstance(hash, str) and isinstance(utc, str)):
        raise UsageError(f"{path} holds no checkpoint", hint=_HINT)
    if not isinstance(seq, int) or seq < 1:
        raise UsageError(f"{path} holds no checkpoint: seq is {seq!r}", hint=_HINT)
    return Checkpoint(origin, seq, hash, utc)


_HINT = "Make one with `attnbench ledger checkpoint > FILE`, and keep it elsewhere."
