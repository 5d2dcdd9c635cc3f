"""Promises in the ledger: which protocol files are registered, in which versions.

A registration holds the file's whole text. A file that changed is a new version, which names the
one before it; the last version that was not retracted is the one that counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnbench.errors import UsageError
from attnbench.ledger import Kind, Ledger, Record, Status, fold
from attnbench.protocol.imported_rule import imported_of
from attnbench.protocol.reading import Source, read
from attnbench.protocol.result import Promise
from attnbench.protocol.strict import nearest


@dataclass(frozen=True)
class Registered:
    """A registration, whether it is new, and the one that counts."""

    record: Record
    is_new: bool
    current: Record


def register(ledger: Ledger, source: Source) -> Registered:
    """Promise what a protocol file says. The same bytes are registered once.

    Raises what reading and writing the ledger raises, and UsageError for a file that would decide
    an imported claim by another rule than that claim's.
    """
    records = list(ledger.records()) if ledger.path.exists() else []
    imported_of(records, source.file)
    versions = versions_of(records, source.file.id)
    same = [record for record in versions if record.body["file_sha256"] == source.sha256]
    if same:
        return Registered(same[-1], is_new=False, current=versions[-1])
    claim = source.file.claim
    ever = [r for r in registrations(records) if r.body["protocol"] == source.file.id]
    record = ledger.append(
        Kind.REGISTRATION,
        {
            "protocol": source.file.id,
            "title": source.file.title,
            "file_sha256": source.sha256,
            "text": source.text,
            "version": 1 + max((int(r.body["version"]) for r in ever), default=0),
            "parent": versions[-1].id if versions else None,
            "claim": claim.key or claim.statement,
        },
    )
    return Registered(record, is_new=True, current=record)


def registrations(records: Iterable[Record]) -> list[Record]:
    """Every registration of a protocol file, retracted ones too, oldest first."""
    return [r for r in records if r.kind is Kind.REGISTRATION and "file_sha256" in r.body]


def versions_of(records: Sequence[Record], id: str) -> list[Record]:
    """The registrations of one protocol that stand, oldest first."""
    statuses = fold(records).statuses
    return [
        record
        for record in registrations(records)
        if record.body["protocol"] == id and statuses[record.id] is Status.LIVE
    ]


def registered_source(records: Sequence[Record], id: str) -> Source:
    """The text of the version that counts, by the protocol's id.

    Raises UsageError where none is registered.
    """
    versions = versions_of(records, id)
    if not versions:
        known = sorted({str(r.body["protocol"]) for r in registrations(records)})
        near = nearest(id, known) if known else ""
        raise UsageError(
            f"no protocol {id!r} is registered{near}",
            hint="`attnbench protocol register FILE` registers one, `attnbench protocol list` "
            "shows what there is",
        )
    last = versions[-1]
    return read(str(last.body["text"]).encode(), f"version {last.body['version']} of {id}")


def promise_of(records: Sequence[Record], source: Source, *, exploratory: bool) -> Promise:
    """Under which promise a file runs now.

    Raises UsageError where its bytes are not those of the version that counts, unless the run says
    that it is exploratory: then nothing was promised, whatever is registered.
    """
    versions = versions_of(records, source.file.id)
    current = versions[-1] if versions else None
    kept = current is not None and current.body["file_sha256"] == source.sha256
    if not kept and not exploratory:
        raise UsageError(_why_not(source, current), hint=_what_then(source))
    bare = Promise(
        protocol=source.file.id,
        file_sha256=source.sha256,
        exploratory=exploratory,
        baseline=source.file.named_baseline,
    )
    if exploratory or current is None:
        return bare
    return Promise(
        protocol=bare.protocol,
        file_sha256=bare.file_sha256,
        exploratory=False,
        baseline=bare.baseline,
        registration=current.id,
        version=int(current.body["version"]),
    )


def _why_not(source: Source, current: Record | None) -> str:
    if current is None:
        return f"protocol {source.file.id} is not registered, and a promise comes before its run"
    return (
        f"{source.name} is not what was registered as version {current.body['version']} of "
        f"{source.file.id} ({current.id[:12]})"
    )


def _what_then(source: Source) -> str:
    return (
        f"`attnbench protocol register {source.name}` promises it; --exploratory runs it without, "
        "and says so in every record"
    )
