"""The records of a ledger as JSON Schema, by kind: what every line has, and what its body has.

Bodies may hold more than their schema names; what a schema requires, every record of that kind has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from attnbench.ledger.record import SCHEMA, Kind
from attnbench.ledger.retraction import Reason

_REF = "#/$defs/{name}"
_HEX32, _HEX64 = ({"type": "string", "pattern": f"^[0-9a-f]{{{n}}}$"} for n in (32, 64))
_ENVELOPE: Mapping[str, Any] = {
    "cites": {"type": "array", "items": {"type": "string"}},
    "commit": {"type": ["string", "null"]},
    "hash": _HEX64,
    "id": _HEX64,
    "nonce": _HEX32,
    "origin": _HEX32,
    "prev": _HEX64,
    "schema": {"const": SCHEMA},
    "seq": {"type": "integer", "minimum": 1},
    "tool": {"type": "string"},
    "utc": {"type": "string"},
}


class Retraction(msgspec.Struct):
    """A record no longer counts: it, and why; and the results that it was the baseline of."""

    target: str
    reason: Reason
    note: str
    evidence: str | UnsetType = UNSET
    baseline_of: tuple[str, ...] | UnsetType = UNSET


class Reinstatement(msgspec.Struct):
    """A retracted record counts again."""

    target: str
    retraction: str
    note: str
    evidence: str | UnsetType = UNSET


class Concern(msgspec.Struct):
    """A doubt about a record, beside which it stays."""

    target: str
    concern: str
    evidence: str | UnsetType = UNSET
    samples: str | UnsetType = UNSET


class Correction(msgspec.Struct):
    """What of a record is wrong, beside which it stays: a member, what it was and should say."""

    target: str
    note: str
    member: str | UnsetType = UNSET
    was: bool | int | float | str | UnsetType | None = UNSET
    value: bool | int | float | str | UnsetType | None = UNSET
    evidence: str | UnsetType = UNSET


class MergedFrom(msgspec.Struct):
    """The end of a chain whose records were taken over, and how many they were."""

    origin: str
    seq: int
    hash: str
    records: int


class Checkpoint(msgspec.Struct):
    """Another ledger's records were taken over up to here."""

    merged: MergedFrom


class Repair(msgspec.Struct):
    """An end that was cut short: what was done about which line."""

    repaired: str
    line: int
    bytes: int | UnsetType = UNSET
    sha256: str | UnsetType = UNSET
    quarantine: str | UnsetType = UNSET


OWN: Mapping[Kind, tuple[type, ...]] = {
    Kind.RETRACTION: (Retraction,),
    Kind.REINSTATEMENT: (Reinstatement,),
    Kind.CONCERN: (Concern,),
    Kind.CORRECTION: (Correction,),
    Kind.CHECKPOINT: (Checkpoint,),
    Kind.REPAIR: (Repair,),
}


def json_schema(bodies: Mapping[Kind, Sequence[type]]) -> dict[str, Any]:
    """A JSON Schema (2020-12) of one line; `bodies` are the types of the kinds that others define.

    A kind with several types has a body of one of them, a kind without a type any body.
    """
    types = {**OWN, **bodies}
    every = [each for of_kind in types.values() for each in of_kind]
    schemas, parts = msgspec.json.schema_components(every, ref_template=_REF)
    by_type = dict(zip(every, schemas, strict=True))
    lines = {kind: _line(kind, [by_type[each] for each in types.get(kind, ())]) for kind in Kind}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of an attnbench ledger",
        "oneOf": [{"$ref": _REF.format(name=f"{kind.value}-record")} for kind in Kind],
        "$defs": {**parts, **{f"{kind.value}-record": line for kind, line in lines.items()}},
    }


def _line(kind: Kind, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    body: Mapping[str, Any] = {"anyOf": list(bodies)} if bodies else {"type": "object"}
    members = {**_ENVELOPE, "kind": {"const": kind.value}, "body": body}
    return {
        "type": "object",
        "properties": members,
        "required": sorted(members),
        "additionalProperties": False,
    }
