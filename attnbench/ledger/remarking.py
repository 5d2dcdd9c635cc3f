"""Saying beside a record what of it is wrong, or what is doubted: the record stays and counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from attnbench.ledger.book import Ledger
from attnbench.ledger.canonical import Json, canonical_bytes
from attnbench.ledger.faults import Refused
from attnbench.ledger.lookup import find_record, matching
from attnbench.ledger.record import Kind, Record

_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def correct(
    ledger: Ledger, target: str, member: str, value: str, reason: str, evidence: str = ""
) -> Record:
    """Append what a member of a record's body should say; `target` begins the record's id.

    `member` is a path as in `observed.value` or `cells[0].claim`, `value` is JSON or else text.
    Raises UnknownRecord, and Refused for a member that is not there, a value of another type than
    the recorded one or the same, and where no reason is given.
    """
    record = _found(ledger, target)
    was, new = _recorded(record, member), _read(value)
    if _type(new) != _type(was):
        raise Refused(
            f"{member} of {record.id[:12]} is {_text(was)}, a {_type(was)}, and {value!r} is a "
            f"{_type(new)}",
            hint="Give a value of the same type, in JSON.",
        )
    if _text(new) == _text(was):
        raise Refused(f"{member} of {record.id[:12]} is {_text(was)} already")
    _require(reason, "a correction needs a reason", "Say in --reason what was wrong.")
    body: dict[str, Json] = {
        "target": record.id, "member": member, "was": was, "value": new, "note": reason,
    }  # fmt: skip
    return ledger.append(Kind.CORRECTION, body | _evidence(evidence))


def concern(ledger: Ledger, target: str, note: str, evidence: str = "") -> Record:
    """Append a doubt about the record whose id begins with `target`.

    Raises UnknownRecord, and Refused where nothing is said.
    """
    record = _found(ledger, target)
    _require(note, "a concern needs a note", "Say in --note what is doubted.")
    body: dict[str, Json] = {"target": record.id, "concern": note}
    return ledger.append(Kind.CONCERN, body | _evidence(evidence))


def _found(ledger: Ledger, target: str) -> Record:
    _, records = matching(ledger.path, target)
    return find_record(records, target)


def _recorded(record: Record, member: str) -> Json:
    value: Json = dict(record.body)
    for name, number in _STEP.findall(member):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list | tuple) and number and int(number) < len(value):
            value = value[int(number)]
        else:
            raise Refused(
                f"{record.id[:12]} has no member {member!r}", hint=_near(member, record.body)
            )
    if not member or isinstance(value, Mapping | list | tuple):
        raise Refused(
            f"{member!r} of {record.id[:12]} is no single value", hint=_near(member, record.body)
        )
    return value


def _near(member: str, body: Mapping[str, Json]) -> str:
    known = list(_members(body, ""))
    near = get_close_matches(member, known, n=3, cutoff=0.4)
    begin = [each for each in known if member and each.startswith(member)][:3]
    return f"Name one of its values, as in {', '.join(begin or near or known[:3])}."


def _members(value: Json, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _members(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _members(inner, f"{path}[{number}]")
    else:
        yield path


def _read(value: str) -> Json:
    try:
        found: Json = json.loads(value)
    except ValueError:
        return value
    return found


def _type(value: Json) -> str:
    kinds = {bool: "truth value", int: "number", float: "number", str: "text", type(None): "null"}
    return kinds.get(type(value), "list or table")


def _text(value: Json) -> str:
    return canonical_bytes(value).decode()


def _require(said: str, message: str, hint: str) -> None:
    if not said.strip():
        raise Refused(message, hint=hint)


def _evidence(evidence: str) -> dict[str, Json]:
    return {"evidence": evidence} if evidence else {}
