"""What is kept of a text, in a terminal, as a picture and on the page."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from attnbench.ledger import Kind, Reason, retract
from attnbench.protocol.kept_map import KeptMap
from attnbench.report.head_maps import draw_maps, head_maps
from attnbench.report.page.html import Contents, page
from attnbench.report.page.reading import Reading
from attnbench.report.text_maps import excerpt_lines, kept_drawing, text_map_lines, text_maps
from tests.quality.test_kept_map import mapped
from tests.report import ledgers
from tests.report.runs import printed


def test_a_row_a_head_is_darker_where_more_steps_attended_and_the_text_stands_below():
    lines = printed(text_map_lines(text_maps({"mine": mapped()})), 200)
    assert "mine: kept over the text, 16 tokens a column, 2 steps" in lines[0]
    assert [line.split(maxsplit=1) for line in lines[1:5]] == [
        ["1.0", "▒██"],
        ["1.1", "▒ █"],
        ["4.0", "▒██"],
        ["4.1", "▒ █"],
    ]
    assert lines[5].strip() == "most 100% of tokens 32 to 39: “ghijklmn”"
    assert "least  50% of tokens 16 to 31: “qrstuvwxyzabcdef”" in "\n".join(lines)


def test_of_many_heads_the_layers_means_are_shown_and_what_cannot_be_told_is_a_question():
    arrays = mapped()
    many = np.repeat(arrays.kept_map, 40, axis=3)
    many[:, 1] = np.nan
    lines = printed(text_map_lines(text_maps({"mine": replace(arrays, kept_map=many)})), 200)
    assert "mean of its heads" in lines[0]
    assert [line.split(maxsplit=1) for line in lines[1:3]] == [["1", "▒▒█"], ["4", "???"]]


def test_a_map_that_outputs_contradict_says_so():
    false = replace(mapped(), map_outside=np.full((1, 2), 0.25, np.float32))
    for each in (false, replace(mapped(), map_outside=np.full((1, 2), 0.001, np.float32))):
        lines = printed(text_map_lines(text_maps({"mine": each})), 200)
        assert ("not so: a head gave 25.0% of its weight" in lines[0]) == (each is false)


def test_maps_over_heads_and_over_the_text_are_one_picture(tmp_path):
    arrays = {"mine": mapped(), "other": replace(mapped(), kept_map=np.zeros(0, np.float32))}
    arrays = {name: replace(each, cosine=np.ones((1, 2, 2, 2))) for name, each in arrays.items()}
    draw_maps((*head_maps(arrays), *text_maps(arrays)), tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 1000


@pytest.fixture
def ledger(tmp_path):
    return ledgers.ledger_at(tmp_path / "ledger.jsonl")


def test_the_page_shows_a_map_and_the_text_behind_it_unless_it_was_taken_back(ledger):
    body = ledgers.appraisal("q1", "mine", kept=ledgers.kept_map())
    record = ledger.append(Kind.RESULT, body)
    ledger.append(Kind.RESULT, ledgers.appraisal("q1", "other"))
    html = page(Contents(Reading.of(ledger)))
    assert html.count("What is kept of the text") == 1
    assert "most 100% of tokens 32 to 39: “once upon a time”" in html
    assert "25.0% of the tokens on average" in html
    retract(ledger, record.id, Reason.MEASUREMENT_ERROR, "a test")
    assert "once upon a time”" not in page(Contents(Reading.of(ledger))).split('id="records"')[0]


def test_a_drawing_has_a_cell_for_each_bin_that_is_kept():
    said = msgspec.convert(ledgers.kept_map(), KeptMap)
    svg = ElementTree.fromstring(kept_drawing(said, "mine", "kept-1").inline())
    filled = [
        each.get("style", "") for each in svg.iter() if "var(--good)" in each.get("style", "")
    ]
    assert len(filled) == 2
    assert sum("opacity: 0.5" in style for style in filled) == 1
    assert "25.0%" in svg.get("aria-label")
    assert len(list(excerpt_lines(said))) == 2
