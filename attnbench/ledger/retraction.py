"""Taking a record back: it stays in the ledger, and what derives from it is tainted."""

from __future__ import annotations

from enum import StrEnum

from attnbench.ledger.book import Ledger
from attnbench.ledger.canonical import Json
from attnbench.ledger.faults import Refused
from attnbench.ledger.folding import fold
from attnbench.ledger.lookup import find_record
from attnbench.ledger.record import Kind, Record


class Reason(StrEnum):
    """Why a record no longer counts."""

    WRONG_BASELINE = "wrong-baseline"
    MEASUREMENT_ERROR = "measurement-error"
    BROKEN_METHOD = "broken-method"
    ENVIRONMENT = "environment"
    SUPERSEDED = "superseded"
    DUPLICATE = "duplicate"
    MISWORDED = "misworded"


_STANDING = frozenset({Kind.RETRACTION, Kind.REINSTATEMENT, Kind.CHECKPOINT, Kind.REPAIR})


def retract(ledger: Ledger, target: str, reason: Reason, note: str, evidence: str = "") -> Record:
    """Append the retraction of the record whose id begins with `target`.

    `evidence` is a record's id, or text that says where to look. Raises UnknownRecord, and Refused
    where the record is retracted already or is one that cannot be: a retraction stands until a
    reinstatement brings its target back.
    """
    records = list(ledger.records())
    record = find_record(records, target)
    if record.kind in _STANDING:
        raise Refused(
            f"{record.id[:12]} is a {record.kind}, which cannot be retracted",
            hint="A retraction stands; only a reinstatement of its target undoes it.",
        )
    if earlier := fold(records).retracted_by.get(record.id):
        raise Refused(
            f"{record.id[:12]} was retracted before, by {earlier[:12]}",
            hint=f"`attnbench ledger show {earlier[:12]}` says why.",
        )
    if not note.strip():
        raise Refused("a retraction needs a note", hint="Say in --note what was wrong.")
    body: dict[str, Json] = {"target": record.id, "reason": reason.value, "note": note}
    return ledger.append(Kind.RETRACTION, body | ({"evidence": evidence} if evidence else {}))
