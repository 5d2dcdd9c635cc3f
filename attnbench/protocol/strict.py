"""Reads a table into a typed record, and says everything that is wrong with it at once.

`msgspec.convert` stops at the first problem; somebody who writes a file wants all of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import EnumType
from math import isfinite
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo, fields

IN_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
    "datetime": "a date",
    "date": "a date",
    "time": "a time",
}


@dataclass(frozen=True)
class Problem:
    """What is wrong, and with which key."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


def read_table(
    kind: type[msgspec.Struct], table: object, where: str, problems: list[Problem]
) -> dict[str, Any]:
    """The fields of `kind` that the table holds and that are right, defaults filled in.

    What is wrong goes into `problems`: keys that nobody knows (with the nearest one), keys that are
    missing, values of another type.
    """
    if not isinstance(table, Mapping):
        problems.append(Problem(where, f"this is a table of keys, not {_kind_of(table)}"))
        return {}
    known = {field.encode_name: field for field in fields(kind)}
    problems += [_unknown(key, known, where) for key in table if key not in known]
    problems += [
        Problem(_path(where, key), "is missing")
        for key, field in known.items()
        if field.required and key not in table
    ]
    found = {f.name: f.default for f in known.values() if f.default is not msgspec.NODEFAULT}
    for key, value in table.items():
        if key in known:
            _read_field(known[key], value, _path(where, key), found, problems)
    return found


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` where a known word is near, `; there are …` where none is."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _read_field(
    field: FieldInfo, value: object, where: str, found: dict[str, Any], problems: list[Problem]
) -> None:
    """Put the value into `found`; where it is wrong, leave the field out of it."""
    before = len(problems)
    read = _read(field.type, value, where, problems)
    if len(problems) == before:
        found[field.name] = read
    else:
        found.pop(field.name, None)


def _read(kind: Any, value: object, where: str, problems: list[Problem]) -> Any:
    kind = _without_unset(kind)
    if _is_struct(kind):
        return _read_struct(kind, value, where, problems)
    if isinstance(value, float) and not isfinite(value):
        problems.append(Problem(where, f"{value} is no number to compare with"))
        return None
    arguments = get_args(kind)
    if get_origin(kind) is tuple and _is_struct(arguments[0]):
        return _read_list(arguments[0], value, where, problems)
    if get_origin(kind) is dict and _is_struct(arguments[1]):
        return _read_tables(arguments[1], value, where, problems)
    if isinstance(kind, EnumType):
        choices: dict[str, Any] = {str(member.value): member for member in kind}  # type: ignore[var-annotated]
        return _read_choice(choices, value, where, problems)
    if get_origin(kind) is Literal:
        return _read_choice({choice: choice for choice in arguments}, value, where, problems)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        problems.append(Problem(where, _in_words(str(error))))
        return None


def _read_struct(
    kind: type[msgspec.Struct], value: object, where: str, problems: list[Problem]
) -> msgspec.Struct | None:
    before = len(problems)
    found = read_table(kind, value, where, problems)
    return kind(**found) if len(problems) == before else None


def _read_list(
    kind: type[msgspec.Struct], value: object, where: str, problems: list[Problem]
) -> tuple[msgspec.Struct | None, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        problems.append(Problem(where, f"write [[{where}]], so that there can be several"))
        return ()
    return tuple(
        _read_struct(kind, each, f"{where} {number}", problems)
        for number, each in enumerate(value, start=1)
    )


def _read_tables(
    kind: type[msgspec.Struct], value: object, where: str, problems: list[Problem]
) -> dict[str, msgspec.Struct | None]:
    if not isinstance(value, Mapping):
        problems.append(Problem(where, f"this is a table of tables, not {_kind_of(value)}"))
        return {}
    return {
        key: _read_struct(kind, each, _path(where, key), problems) for key, each in value.items()
    }


def _read_choice(
    choices: Mapping[str, Any], value: object, where: str, problems: list[Problem]
) -> Any:
    if isinstance(value, str) and value in choices:
        return choices[value]
    problems.append(Problem(where, f"{value!r} is not known{nearest(str(value), choices)}"))
    return None


def _without_unset(kind: Any) -> Any:
    """Of `X | UnsetType` the X: a file leaves a key out, and never says so."""
    members = [each for each in get_args(kind) if each is not msgspec.UnsetType]
    is_union = get_origin(kind) in (Union, UnionType)
    return members[0] if is_union and len(members) == 1 else kind


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _unknown(key: str, known: Mapping[str, FieldInfo], where: str) -> Problem:
    return Problem(_path(where, key), f"nobody knows this key{nearest(key, known)}")


def _path(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _kind_of(value: object) -> str:
    names = {bool: "bool", int: "int", float: "float", str: "str", list: "array", dict: "object"}
    return IN_WORDS[names.get(type(value), "date")]


def _in_words(said: str) -> str:
    """msgspec's message with the words of a TOML file."""
    text = re.sub(r"`([a-z]+)`", lambda found: IN_WORDS.get(found[1], found[0]), said)
    text = re.sub(r" - at `\$(.*)`$", r" (at \1)", text)
    return text[:1].lower() + text[1:]
