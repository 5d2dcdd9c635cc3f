"""Is a ledger what was appended to it, and is it the one that somebody saw before?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from attnbench.errors import Exit, LedgerError, UsageError
from attnbench.ledger.blobs import get, refs_of
from attnbench.ledger.book import Ledger
from attnbench.ledger.canonical import parse
from attnbench.ledger.faults import BadBlob, BadLine, BrokenLedger, NotCanonical, TornTail
from attnbench.ledger.record import Envelope, Head, content
from attnbench.ledger.survey import survey, survey_until_fault


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
    check = _Check(path, checkpoint)
    check.run()
    head = check.walk.head
    return Report(
        path=path,
        records=len(check.walk),
        head=head.hash if head else "",
        origin=head.origin if head else "",
        blobs=len(check.blobs),
        against=checkpoint,
        problems=tuple(check.problems),
    )


class Seen(NamedTuple):
    """What a check wants of a line: the blobs that it names, and itself where a checkpoint was."""

    refs: tuple[str, ...]
    head: Head | None


@dataclass(frozen=True)
class _Content:
    """Reads every line in full, so that its form is checked too. Of the lines that one process
    walks in one go it tells each blob once."""

    checkpoint_seq: int
    _told: set[str] = field(default_factory=set)

    def __call__(self, text: bytes, about: Envelope) -> Seen | None:
        refs = refs_of(content(text, about)["body"])
        if refs:
            refs = tuple(ref for ref in refs if ref not in self._told)
            self._told.update(refs)
        seq = int(about.seq)
        if seq != self.checkpoint_seq:
            return Seen(refs, None) if refs else None
        return Seen(refs, Head(seq, about.hash.decode(), about.origin.decode()))


class _Check:
    """One walk along a ledger, and what it finds on the way."""

    def __init__(self, path: Path, checkpoint: Checkpoint | None) -> None:
        self.checkpoint = checkpoint
        self.blobs: set[str] = set()
        self.problems: list[Problem] = []
        self.walk = survey_until_fault(path, _Content(checkpoint.seq if checkpoint else 0))
        self._folder = Ledger(path).blob_folder

    def run(self) -> None:
        self._look_for_twins()
        for seq, seen in self.walk.finds:
            self._look_at_blobs(seq, seen.refs)
            if seen.head is not None:
                self._compare_with_checkpoint(seen.head)
        self.problems.sort(key=lambda problem: problem.line)
        fault = self.walk.fault
        if fault is not None:
            self._note("torn" if isinstance(fault, TornTail) else "broken", fault.line, fault)
        if not isinstance(fault, BrokenLedger):
            self._look_for_lost_records()

    def _look_for_twins(self) -> None:
        if len(set(self.walk.all_ids())) == len(self.walk):
            return
        lines_by_id: dict[bytes, int] = {}
        for line, id in enumerate(self.walk.all_ids(), start=1):
            first = lines_by_id.setdefault(id, line)
            if first != line:
                twin = BadLine(f"line {line} repeats the record of line {first}")
                self._note("broken", line, twin)

    def _look_at_blobs(self, seq: int, refs: Iterable[str]) -> None:
        for ref in refs:
            if ref in self.blobs:
                continue
            self.blobs.add(ref)
            try:
                get(self._folder, ref)
            except BadBlob as bad:
                self._note("blob", seq, bad)

    def _compare_with_checkpoint(self, seen: Head) -> None:
        known = self.checkpoint
        if known is None:
            return
        if seen.origin != known.origin:
            other = BadLine("this is another ledger than the one the checkpoint was taken of")
            self._note("checkpoint", seen.seq, other)
        elif seen.hash != known.hash:
            rewritten = BadLine(
                f"record {known.seq} is not the one that the checkpoint saw on {known.utc}: "
                "it, or a record before it, was rewritten",
                hint="Compare with a copy that agrees with the checkpoint.",
            )
            self._note("checkpoint", seen.seq, rewritten)

    def _look_for_lost_records(self) -> None:
        known, count = self.checkpoint, len(self.walk)
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
    walk = survey(path, _Content(0))
    if not walk:
        raise UsageError(f"{path} has no records", hint="Take a checkpoint after the first one.")
    (last,) = walk.records([len(walk)])
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
