from __future__ import annotations

import json
import math
import struct
from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.ledger.canonical import canonical_bytes, number_text, parse
from attnbench.ledger.faults import NotCanonical

# RFC 8785, appendix B: IEEE 754 bits and their ECMAScript form.
RFC_NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}


@pytest.mark.parametrize(("bits", "text"), RFC_NUMBERS.items())
def test_numbers_are_written_as_in_rfc_8785_appendix_b(bits, text):
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert number_text(value) == text


def test_the_example_of_rfc_8785_section_3_2_2_has_its_canonical_form():
    source = (
        rb'{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],'
        rb'"string": "\u20ac$\u000F\u000aA' + rb"'" + rb'\u0042\u0022\u005c\\\"\/",'
        rb'"literals": [null, true, false]}'
    )
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical_bytes(parse(source)) == expected.encode()


def test_members_are_sorted_by_utf_16_code_units_as_in_rfc_8785_section_3_2_3():
    names = ["€", "\r", "\ufb33", "1", "😀", "\u0080", "ö"]
    text = canonical_bytes(dict.fromkeys(names, 0)).decode()
    assert list(json.loads(text)) == ["\r", "1", "\u0080", "ö", "€", "😀", "\ufb33"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**53 + 1, -(2**53) - 1])
def test_numbers_that_another_reader_would_not_see_the_same_are_refused_with_their_place(value):
    with pytest.raises(NotCanonical, match=r"^cells\[1\]\.median: "):
        canonical_bytes({"cells": [{}, {"median": value}]})


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1, 2}}, b"bytes", "\ud800", {"\udc00": 1}, 1j])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(NotCanonical):
        canonical_bytes(value)


def test_a_list_that_holds_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(NotCanonical, match="nested too deeply"):
        canonical_bytes(loop)


def test_whole_numbers_up_to_two_to_the_53_are_exact():
    assert canonical_bytes([2**53, -(2**53), True]) == b"[9007199254740992,-9007199254740992,true]"


def test_enumerations_and_numpy_floats_are_written_as_the_numbers_they_are():
    numpy = pytest.importorskip("numpy")
    level = IntEnum("Level", {"HIGH": 7})
    assert canonical_bytes([level.HIGH, numpy.float64(1.5)]) == b"[7,1.5]"


@pytest.mark.parametrize(
    "text",
    [b'{"a":1.0}', b"-0", b"[1, 2]", b'{"b":1,"a":1}', b'{"a":1,"a":1}', rb'"\u0041"', b"1E5",
     b"9007199254740993", rb'"\/"'],
)  # fmt: skip
def test_other_forms_of_the_same_json_are_told_by_encoding_again(text):
    assert canonical_bytes(parse(text)) != text


@pytest.mark.parametrize(
    "text", [b"", b"{", b"NaN", b"[Infinity]", b'"\xff"', b"[" * 100_000, b'"\n"']
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(NotCanonical):
        parse(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_reads_back_as_itself_from_its_canonical_form(value):
    text = canonical_bytes(value)
    assert float(text) == value
    assert canonical_bytes(parse(text)) == text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=10,
)


@given(JSON)
def test_the_canonical_form_is_a_fixed_point_and_holds_the_same_values(value):
    text = canonical_bytes(value)
    assert parse(text) == value
    assert canonical_bytes(parse(text)) == text
