"""A quick look at a line never turns away what the filter itself lets pass."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.cli.ledger_filters import Filters
from attnbench.ledger.canonical import canonical_bytes
from attnbench.ledger.record import GENESIS, Head, Kind, draft, envelope, seal

PRINTED = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
VALUES = PRINTED | st.integers(-999, 9999) | st.lists(st.integers(0, 99), max_size=2)


def line_of(**body) -> bytes:
    utc = datetime(2026, 1, 1, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    about = {"utc": utc, "nonce": "0" * 32, "tool": "0.1.0", "commit": None}
    return seal(draft(Kind.RESULT, body, (), **about), Head(0, GENESIS, "0" * 32))[:-1]


def finds(line: bytes, **wanted: str) -> bool:
    given = {"cell": "", "method": "", "verdict": "", "run": "", **wanted}
    look = Filters(kind=None, since=None, tainted=False, **given)
    return bool(look(line, envelope(line)))


@given(st.data())
def test_any_part_of_a_cell_finds_it(data):
    cell = data.draw(st.dictionaries(PRINTED, VALUES, min_size=1, max_size=3))
    name, value = data.draw(st.sampled_from(sorted(cell.items(), key=str)))
    said = value if isinstance(value, str) else canonical_bytes(value).decode()
    words = f"{name}={said}".split() or [""]
    word = data.draw(st.sampled_from(words))
    start = data.draw(st.integers(0, len(word)))
    assert finds(line_of(cell=cell), cell=word[start:])


@given(PRINTED, PRINTED)
def test_any_beginning_of_a_run_finds_it(begin, end):
    assert finds(line_of(run=begin + end), run=begin)


@pytest.mark.parametrize("word", ["context=8192", "text=81", "=8192", "window=4", "b=[4,4]"])
def test_a_number_behind_an_equals_sign_is_found_as_number_text_and_list(word):
    line = line_of(cell={"context": 8192, "kept": "window=4", "b": [4, 4]})
    assert finds(line, cell=word)


def test_a_number_behind_an_equals_sign_is_not_found_within_another_number():
    assert not finds(line_of(cell={"context": 18192, "batch": 1}), cell="context=8192")
