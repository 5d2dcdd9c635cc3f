"""What was promised before it was measured, and everything that was begun under a promise.

Both follow from the log, and nobody declares them: a measurement is prospective where its
registration stands in the chain before its sessions were opened, and they name it; and a session
counts from the moment it was opened, however it ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from attnbench.ledger.folding import OPENED, phases
from attnbench.ledger.record import Kind, Record


class Timing(StrEnum):
    """Whether a promise came before what it is about."""

    PROSPECTIVE = "prospective"
    RETROSPECTIVE = "retrospective"


@dataclass(frozen=True)
class Account:
    """How many sessions were opened, and how they ended; abandoned is what has no end (yet)."""

    opened: int
    closed: int
    failed: int
    aborted: int
    abandoned: int

    def __str__(self) -> str:
        ends = ("closed", "failed", "aborted", "abandoned")
        said = ", ".join(f"{n} {end}" for end in ends if (n := getattr(self, end)))
        return f"{self.opened} opened{': ' if said else ''}{said}"


def timing_of(record: Record, by_id: Mapping[str, Record]) -> Timing | None:
    """Whether what `record` rests on was promised first; None where it rests on no registration or
    on no session.

    Of several registrations, the record's own (the one that it cites itself) counts.
    """
    rests_on = {each.id: each for each in _ancestors(record, by_id)}.values()
    registration = _registration(record, rests_on, by_id)
    openings = [each for each in (record, *rests_on) if is_opening(each)]
    if registration is None or not openings:
        return None
    return timing(registration, openings)


def timing(registration: Record, openings: Iterable[Record]) -> Timing:
    """Prospective only where every session was opened after the registration, in the same chain,
    and names it.

    By its time too: records of a merged ledger have their places from the merge.
    """
    kept = all(
        opening.origin == registration.origin
        and opening.seq > registration.seq
        and opening.utc >= registration.utc
        and registration.id in opening.cites
        for opening in openings
    )
    return Timing.PROSPECTIVE if kept else Timing.RETROSPECTIVE


def is_opening(record: Record) -> bool:
    """Whether this is the record that opens a session."""
    return record.kind is Kind.SESSION and record.body.get("phase") == OPENED


def account(records: Iterable[Record], belongs: Callable[[Record], bool]) -> Account:
    """Count the sessions whose opening record belongs to what is asked about."""
    known = list(records)
    ours = {record.id for record in known if is_opening(record) and belongs(record)}
    ends = Counter(phase for id, phase in phases(known).items() if id in ours)
    return Account(
        opened=len(ours),
        closed=ends["closed"],
        failed=ends["failed"],
        aborted=ends["aborted"],
        abandoned=ends[OPENED],
    )


def _ancestors(record: Record, by_id: Mapping[str, Record]) -> Iterator[Record]:
    """Everything that a record derives from, each once."""
    seen: set[str] = {record.id}
    waiting = list(record.cites)
    while waiting:
        id = waiting.pop()
        if id in seen or id not in by_id:
            continue
        seen.add(id)
        yield by_id[id]
        waiting.extend(by_id[id].cites)


def _registration(
    record: Record, rests_on: Iterable[Record], by_id: Mapping[str, Record]
) -> Record | None:
    own = [by_id[id] for id in record.cites if id in by_id]
    candidates = (each for each in (*own, *rests_on) if each.kind is Kind.REGISTRATION)
    return next(candidates, None)
