"""What the fast reader vouches for is canonical, and it vouches for what records hold."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.ledger.canonical import canonical_bytes, parse
from attnbench.ledger.faults import NotCanonical
from attnbench.ledger.quick import canonical_object, quick_object
from tests.ledger.test_canonical import JSON

DECADES = [float(f"{digits}e{k}") for k in range(-323, 308) for digits in ("1", "1.5", "9.75")]


def is_canonical(text: bytes) -> bool:
    try:
        return canonical_bytes(parse(text)) == text
    except NotCanonical:
        return False


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_of_any_size_is_vouched_for_in_its_canonical_form_alone(sign):
    for value in DECADES:
        for written in (msgspec.json.encode(sign * value), repr(sign * value).encode()):
            text = b'{"x":%b}' % written
            assert quick_object(text) is None or is_canonical(text), text


@pytest.mark.parametrize("value", [0.1, -0.25, 9.99e-6, -2e-6, 1e-5, 3e-7, 4.25e-300, 10**14])
def test_numbers_of_everyday_size_need_no_second_look(value):
    assert quick_object(canonical_bytes({"x": [value, {"y": value}]})) is not None


@pytest.mark.parametrize(
    "number",
    ["1.0", "-0.0", "-0", "1e16", "1e+16", "1e21", "2e-6", "1E5", "9007199254740993", "01", "1.50",
     "-9007199254740993", "18446744073709551616", "1e-06"],
)  # fmt: skip
@pytest.mark.parametrize(
    "place", ['{"x":%s}', '{"x":[%s]}', '{"x":[0,%s,1]}', '{"a":0,"x":%s,"y":1}']
)
def test_another_form_of_a_number_is_refused_wherever_it_stands(number, place):
    text = (place % number).encode()
    assert quick_object(text) is None
    with pytest.raises(NotCanonical):
        canonical_object(text)


@pytest.mark.parametrize(
    "text",
    [b'{"b":1,"a":1}', b'{"a":1,"a":1}', b'{"a": 1}', b'{"a":1}\n', b' {"a":1}', rb'{"a":"\u0041"}',
     rb'{"a":"\/"}', rb'{"a":"\u000A"}', b'{"a":"\xff"}', rb'{"a":"\ud800"}', b'{"a":"\t"}', b"[1]",
     b"1", b"", b"{", b'{"a":NaN}', b"[" * 5000],
)  # fmt: skip
def test_what_is_not_canonical_or_no_object_is_refused(text):
    assert quick_object(text) is None
    with pytest.raises(NotCanonical):
        canonical_object(text)


def test_every_character_is_written_as_the_pure_encoder_writes_it():
    plane = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(plane), 1000):
        value = {"text": plane[start : start + 1000]}
        assert quick_object(canonical_bytes(value)) == value


def test_names_beyond_the_first_plane_are_left_to_the_pure_encoder():
    text = canonical_bytes({"😀": 1, "\ufb33": 2})
    assert quick_object(text) is None
    assert canonical_object(text) == {"😀": 1, "\ufb33": 2}
    swapped = '{"\ufb33":2,"😀":1}'.encode()
    with pytest.raises(NotCanonical):
        canonical_object(swapped)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON))
def test_a_canonical_object_is_read_as_the_pure_reader_reads_it(value):
    text = canonical_bytes(value)
    assert canonical_object(text) == parse(text)


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), JSON, max_size=4),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_nothing_is_vouched_for_that_is_not_canonical(value, ascii_only, separators):
    text = json.dumps(value, ensure_ascii=ascii_only, separators=separators).encode()
    assert quick_object(text) is None or is_canonical(text)


@given(
    st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["%r", "%.3e", "%f", "%g"])
)
def test_a_number_in_any_format_is_vouched_for_only_if_it_is_canonical(value, form):
    text = b'{"x":%b}' % (form % value).encode()
    assert quick_object(text) is None or is_canonical(text)
