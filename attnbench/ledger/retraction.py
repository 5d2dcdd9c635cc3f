"""Taking a record back, and bringing it back: it stays in the ledger, and so does what was said.

What derives from a retracted record is tainted, and no longer so once that is reinstated. Results
that were judged by a retracted baseline derive from it without a citation: its retraction names
them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from attnbench.ledger.bearing import standing
from attnbench.ledger.book import Ledger
from attnbench.ledger.canonical import Json
from attnbench.ledger.faults import Refused
from attnbench.ledger.folding import State
from attnbench.ledger.lookup import find_record, is_of_an_arm, matching, results_of
from attnbench.ledger.record import Kind, Record
from attnbench.ledger.survey import Survey


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


def retract(
    ledger: Ledger, target: str, reason: Reason | None, note: str, evidence: str = ""
) -> Record:
    """Append the retraction of the record whose id begins with `target`.

    `evidence` is a record's id, or text that says where to look. Raises UnknownRecord, and Refused
    where the record is retracted already or is one that cannot be (a retraction stands until a
    reinstatement brings its target back), and only then where no reason or note is given.
    """
    record, state = _found(ledger, target)
    if record.kind in _STANDING:
        raise Refused(
            f"{record.id[:12]} is a {record.kind}, which cannot be retracted",
            hint=_instead(record),
        )
    if earlier := state.retracted_by.get(record.id):
        raise Refused(
            f"{record.id[:12]} was retracted before, by {earlier[:12]}",
            hint=f"`attnbench ledger show {earlier[:12]}` says why.",
        )
    if reason is None:
        known = ", ".join(each.value for each in Reason)
        raise Refused("a retraction needs a reason", hint=f"Say --reason REASON: {known}.")
    _require_note(note, "a retraction needs a note", "Say in --note what was wrong.")
    body: dict[str, Json] = {"target": record.id, "reason": reason.value, "note": note}
    if judged := _judged_by(ledger, record):
        body["baseline_of"] = judged
    return ledger.append(Kind.RETRACTION, body | _evidence(evidence))


def reinstate(ledger: Ledger, named: str, note: str, evidence: str = "") -> Record:
    """Append the reinstatement of a retracted record; `named` begins its id or its retraction's.

    Raises UnknownRecord, and Refused where nothing is retracted that could be brought back.
    """
    record, state = _found(ledger, named)
    target = record.id
    if record.kind is Kind.RETRACTION:
        target = str(record.body.get("target", ""))
        _, state = _found(ledger, target)
    retraction = state.retracted_by.get(target)
    if retraction is None:
        raise Refused(
            f"{target[:12]} is not retracted, so there is nothing to reinstate",
            hint="`attnbench ledger log --kind retraction` lists what was retracted.",
        )
    _require_note(note, "a reinstatement needs a note", "Say in --note why it counts after all.")
    body: dict[str, Json] = {"target": target, "retraction": retraction, "note": note}
    return ledger.append(Kind.REINSTATEMENT, body | _evidence(evidence))


def _found(ledger: Ledger, named: str) -> tuple[Record, State]:
    walk: Survey[Any]
    walk, records = matching(ledger.path, named)
    record = find_record(records, named)
    return record, standing(walk, [record])


def _judged_by(ledger: Ledger, record: Record) -> list[Json]:
    """The ids of the results whose speed-up is over this one: those of its run and cell, where it
    is of the baseline, or of A′, which says whether the baseline can be told from itself.

    They cite the sessions, which still count, so that only the retraction can name them.
    """
    body = record.body
    is_baseline = str(body.get("arm")).removesuffix("#2") == body.get("baseline")
    if not (is_of_an_arm(record) and is_baseline and body.get("run")):
        return []
    run = str(body["run"])
    _, records = matching(ledger.path, run)
    return [
        other.id
        for other in results_of(records, run)
        if other.id != record.id and other.body.get("cell") == body.get("cell")
    ]


def _instead(record: Record) -> str:
    if record.kind is Kind.RETRACTION:
        return "It stands; `attnbench ledger reinstate` brings its target back."
    if record.kind is Kind.REINSTATEMENT:
        return "It stands; `attnbench ledger retract` takes its target back once more."
    return "It says what happened to the ledger, and nothing derives from it."


def _require_note(note: str, message: str, hint: str) -> None:
    if not note.strip():
        raise Refused(message, hint=hint)


def _evidence(evidence: str) -> dict[str, Json]:
    return {"evidence": evidence} if evidence else {}
