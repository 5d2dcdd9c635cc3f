"""Reading a line that is canonical (RFC 8785), fast where a general encoder can prove that it is.

A text is canonical when parsing and encoding it again gives the same bytes. The pure encoder of
`canonical` decides that for anything; orjson's decides it many times faster, and is asked first.
Where it reproduces the bytes, there is no space between tokens, no name stands twice, strings are
as it writes them, which is as RFC 8785 does for every character, whole numbers are below 2^53 (it
refuses others), and each number is the shortest text of its value. Numbers from 1e-6 to 1e-5 are
common and are brought from its form, `2e-6`, into that of RFC 8785, `0.000002`. What else it writes
otherwise is looked for in the text itself, and where any of it occurs, in a number or in a string,
the pure encoder decides:

- an exponent other than one below -6 (RFC 8785 has plain digits from 1e-6 to 1e21), and a whole
  number with `.0`;
- characters beyond U+FFFF, whose UTF-16 code units sort before those of U+E000 to U+FFFF.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import orjson

from attnbench.ledger.canonical import canonical_bytes, parse
from attnbench.ledger.faults import NotCanonical

NOT_CANONICAL = "not in canonical form (RFC 8785)"
_DECODER = msgspec.json.Decoder()
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
_SIGNS_EXPONENTS = b"+" in orjson.dumps(1e16)  # a version of it that does not is asked more of
_DIGITS_AT_THE_END = re.compile(rb"([1-9])\.?([0-9]*)\Z")
_LONGEST_DIGITS = 18
_FRACTION_OF_ZERO = re.compile(rb"\.0[,\]}]")
_EXPONENT = re.compile(rb"e(?:-[1-6]|\+?[0-9]+)[,\]}]")
_BEYOND_THE_PLANE = re.compile(rb"[\xf0-\xff]")


def canonical_object(line: bytes) -> dict[str, Any]:
    """The members of a canonical object. Raises NotCanonical for anything else."""
    members = quick_object(line)
    return _object(line) if members is None else members


def quick_object(line: bytes) -> dict[str, Any] | None:
    """The members of an object that is certainly canonical; None where that is not certain."""
    try:
        value = _DECODER.decode(line)
        again = orjson.dumps(value, option=_OPTIONS)
    except (msgspec.MsgspecError, orjson.JSONEncodeError, UnicodeError, RecursionError):
        return None
    if again != line and _with_plain_millionths(again) != line:
        return None
    return value if isinstance(value, dict) and _has_plain_forms_only(line) else None


def _with_plain_millionths(text: bytes) -> bytes:
    *before, last = text.split(b"e-6")
    return b"".join([*map(_as_millionths, before), last])


def _as_millionths(text: bytes) -> bytes:
    """A text that ends with the digits before an `e-6`, with these digits in their place."""
    head, digits = text[:-_LONGEST_DIGITS], text[-_LONGEST_DIGITS:]
    return head + _DIGITS_AT_THE_END.sub(rb"0.00000\1\2", digits)


def _has_plain_forms_only(line: bytes) -> bool:
    return not (
        _FRACTION_OF_ZERO.search(line)
        or (_may_have_exponents(line) and _EXPONENT.search(line))
        or not (line.isascii() or _BEYOND_THE_PLANE.search(line) is None)
    )


def _may_have_exponents(line: bytes) -> bool:
    """Whether a reproduced text can hold an exponent but a small one, which has `e-` and digits."""
    return not _SIGNS_EXPONENTS or b"+" in line or b"e-6" in line


def _object(line: bytes) -> dict[str, Any]:
    value = parse(line)
    if canonical_bytes(value) != line or not isinstance(value, dict):
        raise NotCanonical(NOT_CANONICAL)
    return value
