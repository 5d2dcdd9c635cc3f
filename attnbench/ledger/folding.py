"""What a ledger says today: the status of every record, folded from the log.

A record is never changed, so its standing follows from what was appended after it:

- a `retraction` takes its target (`body.target`) out; a `reinstatement` brings it back; of several,
  the last one counts;
- whatever derives from a retracted record, over any number of steps, is tainted: what cites it,
  and what its retraction names as judged by it (`body.baseline_of`), which cites sessions alone;
- a `correction` or a `concern` stays beside its target and changes nothing about it;
- a `session` that was opened and neither closed, aborted nor failed is abandoned (or still runs:
  the log cannot tell), also where a session of the same name was opened again later;
- `registration`, `claim`, `result`, `checkpoint` and `repair` change nothing about other records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from attnbench.ledger.canonical import Json, canonical_bytes
from attnbench.ledger.record import Kind, Record


class Status(StrEnum):
    """Whether a record counts."""

    LIVE = "live"
    RETRACTED = "retracted"
    TAINTED = "tainted"


@dataclass(frozen=True)
class State:
    """The standing of every record; each mapping is by record id.

    `retracted_by` names the retraction, `tainted_by` the retracted records a record derives from,
    `cited_by` what derives from it, `remarks` the retractions, reinstatements, corrections and
    concerns about it, oldest first. `abandoned` holds the opening records of unfinished sessions.
    """

    statuses: Mapping[str, Status]
    retracted_by: Mapping[str, str]
    tainted_by: Mapping[str, tuple[str, ...]]
    cited_by: Mapping[str, tuple[str, ...]]
    remarks: Mapping[str, tuple[str, ...]]
    abandoned: frozenset[str]


_REMARKS = frozenset({Kind.RETRACTION, Kind.REINSTATEMENT, Kind.CORRECTION, Kind.CONCERN})
OPENED = "opened"
_ENDINGS = frozenset({"closed", "aborted", "failed"})


def fold(records: Iterable[Record]) -> State:
    """Read a log from its beginning and return the standing of its records."""
    known = list(records)
    cited_by = _cited_by(known)
    remarks = _remarks(known)
    retracted_by = _retracted_by(known)
    tainted_by = _tainted_by(retracted_by, _heirs(known, retracted_by, cited_by))
    statuses = {record.id: _status(record.id, retracted_by, tainted_by) for record in known}
    return State(statuses, retracted_by, tainted_by, cited_by, remarks, _abandoned(known))


def _status(
    id: str, retracted_by: Mapping[str, str], tainted_by: Mapping[str, tuple[str, ...]]
) -> Status:
    if id in retracted_by:
        return Status.RETRACTED
    return Status.TAINTED if id in tainted_by else Status.LIVE


def _target(record: Record) -> str:
    return str(record.body.get("target", ""))


def _cited_by(records: Iterable[Record]) -> dict[str, tuple[str, ...]]:
    citing: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        for cited in dict.fromkeys(record.cites):
            citing[cited].append(record.id)
    return {cited: tuple(ids) for cited, ids in citing.items()}


def _remarks(records: Iterable[Record]) -> dict[str, tuple[str, ...]]:
    about: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        if record.kind in _REMARKS:
            about[_target(record)].append(record.id)
    return {target: tuple(ids) for target, ids in about.items()}


def _retracted_by(records: Iterable[Record]) -> dict[str, str]:
    retracted: dict[str, str] = {}
    for record in records:
        if record.kind is Kind.RETRACTION:
            retracted.setdefault(_target(record), record.id)
        elif record.kind is Kind.REINSTATEMENT:
            retracted.pop(_target(record), None)
    return retracted


def judged_by(retraction: Record) -> tuple[str, ...]:
    """The ids of the results that the target of a retraction was the baseline of."""
    return tuple(map(str, retraction.body.get("baseline_of", ())))


def _heirs(
    records: Iterable[Record],
    retracted_by: Mapping[str, str],
    cited_by: Mapping[str, tuple[str, ...]],
) -> dict[str, tuple[str, ...]]:
    """What derives from each record in one step."""
    heirs = dict(cited_by)
    for record in records:
        target = _target(record)
        if retracted_by.get(target) == record.id:
            heirs[target] = (*heirs.get(target, ()), *judged_by(record))
    return heirs


def _tainted_by(
    retracted: Iterable[str], heirs: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    roots: defaultdict[str, list[str]] = defaultdict(list)
    for root in retracted:
        for id in _descendants(root, heirs):
            roots[id].append(root)
    return {id: tuple(origins) for id, origins in roots.items()}


def _descendants(root: str, heirs: Mapping[str, tuple[str, ...]]) -> set[str]:
    found: set[str] = set()
    waiting = [root]
    while waiting:
        new = set(heirs.get(waiting.pop(), ())) - found
        found |= new
        waiting.extend(new)
    return found - {root}


def _abandoned(records: Iterable[Record]) -> frozenset[str]:
    return frozenset(id for id, phase in phases(records).items() if phase == OPENED)


def phases(records: Iterable[Record]) -> dict[str, str]:
    """How every session ended that was opened, by the id of its opening record; `opened` where
    nothing says so.

    An ending cites its opening. One that cites nothing ends the last session of its name.
    """
    ended: dict[str, str] = {}
    last_of_name: dict[bytes, str] = {}
    for record in records:
        phase = record.body.get("phase") if record.kind is Kind.SESSION else None
        if phase == OPENED:
            ended[record.id] = OPENED
            last_of_name[_session_key(record)] = record.id
        elif phase in _ENDINGS:
            named = record.cites or (last_of_name.get(_session_key(record), ""),)
            ended |= {id: phase for id in named if id in ended}
    return ended


def _session_key(record: Record) -> bytes:
    key: list[Json] = [record.body.get(name) for name in ("run", "session", "cell")]
    return canonical_bytes(key)
