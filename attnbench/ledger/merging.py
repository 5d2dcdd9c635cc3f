"""Another machine's records, taken into this ledger: each keeps its id, and none comes twice.

A record's place (number, chain, hash of the line before) is this ledger's; what was recorded is as
it was. A last record says where they came from and how far that chain reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.errors import UsageError
from attnbench.ledger.blobs import refs_of
from attnbench.ledger.book import Ledger
from attnbench.ledger.record import Kind, Record


@dataclass(frozen=True)
class Merged:
    """How many records came in, and how many of the other ledger's were here already."""

    added: int
    known: int
    origin: str


def merge(ledger: Ledger, other: Path) -> Merged:
    """Append what `other` holds and this ledger does not, in its order, with its raw samples.

    Raises what reading `other` raises before anything is appended, BadBlob where samples that it
    names are gone, and `UsageError` for a ledger without records or this ledger itself.
    """
    source = Ledger(other)
    if other.resolve() == ledger.path.resolve():
        raise UsageError(f"{other} is this ledger", hint="Name another machine's.")
    records = list(source.records())
    if not records:
        raise UsageError(f"{other} has no records", hint="There is nothing to take over.")
    known = {record.id for record in ledger.records()} if ledger.path.exists() else set()
    new = [record for record in records if record.id not in known]
    for ref in (ref for record in new for ref in refs_of(record.body)):
        ledger.put_blob(source.get_blob(ref))
    for record in new:
        ledger.adopt(record)
    last = records[-1]
    if new:
        ledger.append(Kind.CHECKPOINT, _said(last, len(new)))
    return Merged(added=len(new), known=len(records) - len(new), origin=last.origin)


def _said(last: Record, added: int) -> dict[str, Any]:
    return {
        "merged": {"origin": last.origin, "seq": last.seq, "hash": last.hash, "records": added},
    }
