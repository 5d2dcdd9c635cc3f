"""The canonical form of JSON (RFC 8785), which is what the ledger stores and hashes.

Members are sorted by the UTF-16 code units of their names, nothing stands between tokens, strings
escape only what they must, and numbers are written as ECMAScript writes them (ECMA-262, 6.1.6.1.20
Number::toString), so that any language can reproduce the bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import NoReturn, TypeAlias

from attnbench.ledger.faults import NotCanonical

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

LARGEST_WHOLE = 2**53
"""Beyond it doubles skip whole numbers, so a reader in another language would see another one."""


def canonical_bytes(value: Json) -> bytes:
    """Return the one UTF-8 encoding of `value`; raises NotCanonical for what has none."""
    try:
        return _text(value).encode()
    except UnicodeEncodeError:
        raise NotCanonical("text with half a surrogate pair is not Unicode") from None
    except RecursionError:
        raise NotCanonical("nested too deeply") from None


def parse(data: bytes) -> Json:
    """Read JSON of any form; whole numbers beyond 2^53 are doubles, as they were written.

    Raises NotCanonical for what is no JSON. Whether the form was canonical is told by encoding
    again and comparing bytes.
    """
    try:
        return _DECODER.decode(data.decode())  # type: ignore[no-any-return]
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"no JSON ({error})") from None


def number_text(value: float) -> str:
    """Write a finite double as ECMAScript does: the fewest digits that read back the same."""
    if not math.isfinite(value):
        raise NotCanonical(f"{value} is not a number that JSON can hold")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    return sign + _positional(*_shortest_digits(abs(value)))


def _shortest_digits(value: float) -> tuple[str, int]:
    """Return (digits, point) with value = 0.digits × 10^point; Python's repr is shortest too."""
    mantissa, _, exponent = float.__repr__(value).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    leading_zeros = len(whole + fraction) - len(digits)
    return digits.rstrip("0"), len(whole) - leading_zeros + int(exponent or 0)


def _positional(digits: str, point: int) -> str:
    if len(digits) <= point <= 21:
        return digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{fraction}e{point - 1:+d}"


def _text(value: Json) -> str:
    if isinstance(value, str):
        return encode_basestring(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return _whole_text(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, Mapping):
        return _object_text(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(_inner(item, f'[{i}]') for i, item in enumerate(value))}]"
    raise NotCanonical(f"{type(value).__name__} is no JSON type")


def _whole_text(value: int) -> str:
    if abs(value) > LARGEST_WHOLE:
        raise NotCanonical(f"{value} is beyond 2^53, where doubles skip whole numbers")
    return int.__repr__(value)


def _object_text(value: Mapping[str, Json]) -> str:
    for key in value:
        if not isinstance(key, str):
            raise NotCanonical(f"{key!r} names a member but is no string")
    members = (f"{encode_basestring(key)}:{_inner(value[key], key)}" for key in _sorted(value))
    return f"{{{','.join(members)}}}"


def _sorted(keys: Mapping[str, Json]) -> list[str]:
    if all(map(str.isascii, keys)):
        return sorted(keys)
    return sorted(keys, key=lambda key: key.encode("utf-16-be"))


def _inner(value: Json, key: str) -> str:
    try:
        return _text(value)
    except NotCanonical as refusal:
        raise refusal.inside(key) from None


def _whole(digits: str) -> int | float:
    value = int(digits) if len(digits) < 18 else float(digits)
    return value if abs(value) <= LARGEST_WHOLE else float(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(parse_int=_whole, parse_constant=_refuse_constant)
