"""Mending the end of a ledger that a crash or a full disk cut short. Nothing else is mended.

What was written of the last record goes into a file beside the ledger, and a `repair` record in its
place says so. It is written over the torn bytes before what is left of them is cut off, so that
whenever this is interrupted, the end is torn again and the file beside it still holds what it was.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from attnbench.ledger.book import Ledger
from attnbench.ledger.canonical import Json
from attnbench.ledger.faults import TornTail
from attnbench.ledger.record import Envelope, Head, Record, unseal
from attnbench.ledger.storage import write_file
from attnbench.ledger.survey import Survey, survey_until_fault


@dataclass(frozen=True)
class Repair:
    """What is wrong with a ledger's end and where its bytes go; `record` is None of a plan.

    `quarantine` is None where the last record is whole and only its newline is missing.
    """

    line: int
    torn_bytes: int
    quarantine: Path | None
    record: Record | None = None


@dataclass(frozen=True)
class _Tail:
    """The end of a ledger: what is torn, and the chain's end once that was mended."""

    line: int
    torn: bytes
    is_whole: bool
    head: Head | None

    def quarantine(self, path: Path) -> Path | None:
        """Beside the ledger itself, also where `path` is a link to it."""
        if self.is_whole:
            return None
        return path.resolve().with_name(f"{path.resolve().name}.torn-{self.sha256[:16]}")

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.torn).hexdigest()


def plan_repair(path: Path) -> Repair | None:
    """What `repair` would do; None where the end is sound.

    Raises BrokenLedger where anything but the end is not what was appended, LedgerUnavailable.
    """
    tail = _torn_tail(path)
    return None if tail is None else Repair(tail.line, len(tail.torn), tail.quarantine(path))


def repair(ledger: Ledger) -> Repair | None:
    """Mend the end of a ledger and record that; returns None where it is sound.

    Raises what `plan_repair` raises, also where the file cannot be written or changed meanwhile.
    """
    tail = _torn_tail(ledger.path)
    if tail is None:
        return None
    quarantine = tail.quarantine(ledger.path)
    if quarantine is not None:
        write_file(quarantine, tail.torn)
    record = ledger.replace_tail(
        tail.torn,
        kept=tail.torn + b"\n" if tail.is_whole else b"",
        head=tail.head,
        body=_said(tail, quarantine),
    )
    return Repair(tail.line, len(tail.torn), quarantine, record)


def _torn_tail(path: Path) -> _Tail | None:
    walk: Survey[None] = survey_until_fault(path, _nothing)
    fault = walk.fault
    if fault is None:
        return None
    if not isinstance(fault, TornTail):
        raise fault
    with path.open("rb") as file:
        file.seek(fault.intact_bytes)
        torn = file.read()
    head = walk.head
    if fault.only_newline:
        last = unseal(torn)
        head = Head(last.seq, last.hash, last.origin)
    return _Tail(fault.line, torn, fault.only_newline, head)


def _nothing(_text: bytes, _about: Envelope) -> None:
    return None


def _said(tail: _Tail, quarantine: Path | None) -> dict[str, Json]:
    if quarantine is None:
        return {"repaired": "newline", "line": tail.line}
    return {
        "repaired": "torn-tail",
        "line": tail.line,
        "bytes": len(tail.torn),
        "sha256": tail.sha256,
        "quarantine": quarantine.name,
    }
