r"""One record: what it holds, how it becomes a line, and how a line is checked.

A line is the canonical JSON object (RFC 8785) of the members below, then a newline. In canonical
order the members are `body, cites, commit, hash, id, kind, nonce, origin, prev, schema, seq, tool,
utc`, so every member from `hash` on is a scalar, and the last `,"hash":"` of a line is always the
record's own (inside a string the quotes would be escaped). That makes two cuts byte-exact:

- `hash` is the sha256 of the line's bytes without `,"hash":"<64 hex>"` and without the newline;
- `id` is the sha256 of the line's bytes without the members `hash, id, origin, prev, seq`: what was
  recorded, apart from its place, so that a record keeps its id in another ledger.

Both are hex. `prev` is the hash of the line before, 64 zeros on the first line; `seq` counts from 1
and equals the line's number; `origin` names the chain and is the same on every line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from attnbench.ledger.canonical import Json, canonical_bytes, parse
from attnbench.ledger.faults import UPGRADE, BadLine, NotCanonical
from attnbench.ledger.quick import canonical_object

SCHEMA = 1
GENESIS = "0" * 64


class Kind(StrEnum):
    """What a record is about."""

    REGISTRATION = "registration"
    SESSION = "session"
    RESULT = "result"
    CLAIM = "claim"
    CONCERN = "concern"
    CORRECTION = "correction"
    RETRACTION = "retraction"
    REINSTATEMENT = "reinstatement"
    CHECKPOINT = "checkpoint"
    REPAIR = "repair"


@dataclass(frozen=True)
class Record:
    """A record as it stands in a ledger; `body` is as its kind defines it."""

    schema: int
    seq: int
    prev: str
    hash: str
    id: str
    kind: Kind
    utc: str
    nonce: str
    tool: str
    commit: str | None
    origin: str
    body: Mapping[str, Any]
    cites: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A record without a place yet: its members in canonical form, and its id."""

    members: Mapping[str, bytes]
    id: str


@dataclass(frozen=True)
class Head:
    """The end of a chain: where the next record goes."""

    seq: int
    hash: str
    origin: str


def draft(
    kind: Kind,
    body: Mapping[str, Json],
    cites: Sequence[str],
    *,
    utc: str,
    nonce: str,
    tool: str,
    commit: str | None,
) -> Draft:
    """Bring what is to be recorded into its canonical form.

    Raises NotCanonical where the body holds what JSON cannot.
    """
    what: dict[str, Json] = {
        "body": body,
        "cites": cites,
        "commit": commit,
        "kind": kind.value,
        "nonce": nonce,
        "schema": SCHEMA,
        "tool": tool,
        "utc": utc,
    }
    members = {name: _member(name, value) for name, value in what.items()}
    return Draft(members, _sha256(_object(members)))


def seal(draft: Draft, head: Head) -> bytes:
    """Give a draft its place after `head` and return its line, newline included."""
    place: dict[str, Json] = {
        "id": draft.id,
        "origin": head.origin,
        "prev": head.hash,
        "seq": head.seq + 1,
    }
    placed = {**draft.members, **{name: canonical_bytes(value) for name, value in place.items()}}
    hashed = canonical_bytes(_sha256(_object(placed)))
    return _object({**placed, "hash": hashed}) + b"\n"


def unseal(line: bytes) -> Record:
    """Check a line (without its newline) on its own and read it.

    Raises BadLine where a byte was changed, the form is not canonical, or the record was written
    by a newer attnbench.
    """
    members = content(line, envelope(line))
    members["kind"], members["cites"] = _KINDS[members["kind"]], tuple(members["cites"])
    return Record(**members)


class Envelope(NamedTuple):
    """What a line says beside its content, as its bytes; `start` is where `hash` begins."""

    hash: bytes
    id: bytes
    kind: bytes
    nonce: bytes
    origin: bytes
    prev: bytes
    schema: bytes
    seq: bytes
    start: int


def envelope(line: bytes) -> Envelope:
    """Check the hash of a line (without its newline), and read what surrounds its content.

    Raises BadLine where a byte was changed or this is no record. The content is not read.
    """
    start = line.rfind(b',"hash":"')
    found = _ENVELOPE.fullmatch(line, start) if start >= 0 else None
    if found is None:
        raise BadLine(_why_unreadable(line))
    members = found.groups()
    hashed = hashlib.sha256(line[:start] + line[start + _HASH_BYTES :])
    if hashed.hexdigest().encode() != members[0]:
        raise BadLine("its bytes do not match its hash: it was changed after it was written")
    return _envelope_of(Envelope, (*members, start))


_envelope_of = tuple.__new__  # a million lines are read faster by it than by the class's own
_HASH_BYTES = len(',"hash":""') + 64
_PLACE_BYTES = len(',"origin":""') + 32 + len(',"prev":""') + 64
# What stands between these quotes are hex digits, which `content` looks at: this has to be fast.
_32, _64 = rb'[^"]{32}', rb'[^"]{64}'
_ENVELOPE = re.compile(
    rb',"hash":"(%b)","id":"(%b)"' % (_64, _64)
    + rb',"kind":"([^"\\]*)","nonce":"(%b)"' % _32
    + rb',"origin":"(%b)","prev":"(%b)"' % (_32, _64)
    + rb',"schema":([0-9]+),"seq":([0-9]+)'
    + rb',"tool":"[^"\\]*(?:\\.[^"\\]*)*","utc":"[0-9TZ:.-]+"\}',
    re.DOTALL,
)
_HEX = b"0123456789abcdef"


def _identified(line: bytes, start: int) -> bytes:
    """The line without the members that say its place, which are those that the id is not of."""
    kind = start + _HASH_BYTES + len(',"id":""') + 64
    origin = line.index(b',"origin":"', kind)
    schema = origin + _PLACE_BYTES
    seq = line.index(b',"seq":', schema)
    return line[:start] + line[kind:origin] + line[schema:seq] + line[line.index(b',"', seq + 1) :]


def content(line: bytes, about: Envelope) -> dict[str, Any]:
    """The members of a line that has this envelope.

    Raises BadLine where they do not match the id, the form is not canonical, or they are not those
    of a record.
    """
    if (about.id + about.nonce + about.origin + about.prev).translate(None, _HEX):
        raise BadLine(_why_unreadable(line))
    if _sha256(_identified(line, about.start)).encode() != about.id:
        raise BadLine("its content does not match its id")
    try:
        members = canonical_object(line)
    except NotCanonical as refusal:
        raise BadLine(str(refusal)) from None
    if unknown := unknown_form(members["kind"], members["schema"]):
        raise BadLine(unknown)
    if members.keys() != Record.__dataclass_fields__.keys() or not _well_typed(members):
        raise BadLine("its members are not those of a record")
    return members


_KINDS: Mapping[str, Kind] = {kind.value: kind for kind in Kind}


def unknown_form(kind: str, schema: int) -> str:
    """What of a record this attnbench does not know, in words; empty where it knows all."""
    if schema != SCHEMA:
        return _newer(f"schema {schema}")
    return "" if kind in _KINDS else _newer(f"kind {kind!r}")


def _well_typed(members: Mapping[str, Any]) -> bool:
    cites, commit = members["cites"], members["commit"]
    return (
        isinstance(members["body"], dict)
        and (commit is None or isinstance(commit, str))
        and isinstance(cites, list)
        and all(isinstance(cited, str) for cited in cites)
    )


def _newer(what: str) -> str:
    return f"{what} is unknown to this attnbench (it reads schema {SCHEMA}); {UPGRADE}"


def _why_unreadable(line: bytes) -> str:
    try:
        members = parse(line)
    except NotCanonical as refusal:
        return refusal.reason
    schema = members.get("schema") if isinstance(members, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        return _newer(f"schema {schema}")
    return "it does not have the members of a record in canonical order"


def _member(name: str, value: Json) -> bytes:
    try:
        return canonical_bytes(value)
    except NotCanonical as refusal:
        raise refusal.inside(name) from None


def _object(members: Mapping[str, bytes]) -> bytes:
    pairs = (b'"%b":%b' % (name.encode(), members[name]) for name in sorted(members))
    return b"{%b}" % b",".join(pairs)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
