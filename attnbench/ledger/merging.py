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
from attnbench.ledger.record import Envelope, Kind, Record, content
from attnbench.ledger.survey import Survey, survey

BATCH = 500  # records that are held, and written and synced together


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
    walk = survey(other, Samples())
    if not walk:
        raise UsageError(f"{other} has no records", hint="There is nothing to take over.")
    new = _unknown(walk, ledger.path)
    wanted = set(new)
    for ref in (ref for seq, refs in walk.finds if seq in wanted for ref in refs):
        ledger.put_blob(source.get_blob(ref))
    for start in range(0, len(new), BATCH):
        ledger.adopt(walk.records(new[start : start + BATCH]))
    (last,) = walk.records([len(walk)])
    if new:
        ledger.append(Kind.CHECKPOINT, _said(last, len(new)))
    return Merged(added=len(new), known=len(walk) - len(new), origin=last.origin)


@dataclass(frozen=True)
class Samples:
    """A look that reads every line in full, for the raw samples that it names."""

    def __call__(self, text: bytes, about: Envelope) -> tuple[str, ...] | None:
        return refs_of(content(text, about)["body"]) or None


def _unknown(walk: Survey[tuple[str, ...]], path: Path) -> list[int]:
    """The numbers of the lines whose records are not in the ledger at `path`."""
    known = set(survey(path, Samples()).all_ids()) if path.exists() else set()
    return [seq for seq, id in enumerate(walk.all_ids(), start=1) if id not in known]


def _said(last: Record, added: int) -> dict[str, Any]:
    return {
        "merged": {"origin": last.origin, "seq": last.seq, "hash": last.hash, "records": added},
    }
