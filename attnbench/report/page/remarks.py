"""What was taken back, put right or doubted, and what is tainted by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attnbench.ledger import Kind, Record
from attnbench.report.page.reading import SHORT, Reading

KINDS = (Kind.RETRACTION, Kind.REINSTATEMENT, Kind.CORRECTION, Kind.CONCERN)
SAID = ("note", "concern", "correction")  # members that are text for people, in order


@dataclass(frozen=True)
class Remark:
    """A record about another; `target` is None where this ledger does not hold that."""

    record: Record
    reason: str
    said: Sequence[str]
    tried: str
    evidence: str
    evidence_record: Record | None
    target_id: str
    target: Record | None
    target_is: str
    tainted: Sequence[Record]


def remarks(reading: Reading) -> tuple[Remark, ...]:
    """Newest first."""
    return tuple(_remark(record, reading) for record in reversed(reading.of_kind(*KINDS)))


def in_few_words(record: Record | None) -> str:
    """What a record is about."""
    if record is None:
        return ""
    body = record.body
    what = {
        Kind.RESULT: _of_result(body),
        Kind.SESSION: f"{body.get('session', '')} {body.get('phase', '')}".strip(),
        Kind.CLAIM: str(body.get("key") or ""),
        Kind.REGISTRATION: str(body.get("protocol") or ""),
    }.get(record.kind, "")
    run = f"of run {body['run']}" if body.get("run") else ""
    return " ".join(filter(None, (record.kind.value, what, run)))


def _of_result(body: Mapping[str, object]) -> str:
    what = str(body.get("method") or f"calibration {body.get('calibration', '')}")
    if "training" in body:
        return f"training with {what}"
    return f"quality of {what}" if "appraisal" in body else what


def _remark(record: Record, reading: Reading) -> Remark:
    body = record.body
    target_id = str(body.get("target", ""))
    evidence = str(body.get("evidence") or body.get("samples") or "")
    target = reading.find(target_id)
    return Remark(
        record=record,
        reason=str(body.get("reason") or ""),
        said=tuple(_said(body)),
        tried=str(body.get("tried") or ""),
        evidence=evidence,
        evidence_record=reading.find(evidence),
        target_id=target_id,
        target=target,
        target_is=in_few_words(target) or f"{target_id[:SHORT]}, not in this ledger",
        tainted=reading.tainted.get(target_id, ()) if record.kind is Kind.RETRACTION else (),
    )


def _said(body: Mapping[str, object]) -> Iterator[str]:
    if "member" in body:
        yield f"{body['member']}: {body.get('was')} → {body.get('value')}"
    yield from (str(body[name]) for name in SAID if body.get(name))
