"""The model card and its picture, from invented figures."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import asdict

import pytest

from training.card import model_card
from training.curve import BOTTOM, TOP, loss_curve_svg
from training.schedule import Recipe

SVG = "{http://www.w3.org/2000/svg}"
LOG = [
    {"kind": "step", "step": 20, "row_tokens": 8, "rate": 0.1, "prose_loss": 7.0},
    {"kind": "check", "progress": 0.5, "held_out_loss": 3.5, "recall_256": 0.123},
    {"kind": "step", "step": 40, "row_tokens": 8, "rate": 0.0, "prose_loss": 0.0}
    | {"recall_loss": 3.5},
]
HARDWARE = {"device": "Abacus 9", "torch": "2", "transformers": "5", "python": "3"}
RESULTS = {
    "recipe": asdict(Recipe()),
    "training": {
        "parameters": 5_000_000,
        "training_tokens": 9_000_000,
        "documents": ["emma", "wikitext-2-valid"],
        "training_keys": 1120,
        "steps": 40,
        "tokens_seen": 80,
        "minutes": 5.0,
        "wall_seconds": 360.0,
    },
    "environment": HARDWARE,
    "perplexity": {
        "a-book-of-the-sea": {
            "tokens": 10,
            "model": 20.04,
            "bigram": 80.0,
            "unigram": 600.0,
            "bits_per_byte": 1.3,
        }
    },
    "recall": {"256": {"needles": 100, "retrieved": 0.97, "by_depth": [1.0, 0.9, 1.0, 1.0, 0.95]}},
    "distractors": 7,
    "recall_examined": {"when": "later", "dtype": "float32", **HARDWARE, "device": "Slide rule"},
    "attention": [
        {"layer": 0, "head": 0, "uniform_nats": 6.6, "sink_share": 0.001}
        | {"entropy_nats": 5.0, "previous_share": 0.1},
        {"layer": 0, "head": 1, "uniform_nats": 6.6, "sink_share": 0.25}
        | {"entropy_nats": 3.0, "previous_share": 0.2},
    ],
}


@pytest.fixture(scope="module")
def card() -> str:
    return model_card(RESULTS, LOG, 10_000_000)


def test_card_gives_perplexity_beside_both_baselines(card):
    assert "| A Book of the Sea | 10 | **20.0** | 80.0 | 600.0 | 1.300 |" in card


def test_card_gives_retrieval_with_its_interval_and_where_it_was_examined(card):
    # 97 of 100, Clopper and Pearson: 91.48 to 99.38 %.
    assert "| 256 | 100 | **97.0 %** | 91.5 to 99.4 % | 100 · 90 · 100 · 100 · 95 |" in card
    assert "Examined later, in float32 on Slide rule" in card


def test_card_names_the_head_with_the_largest_sink_and_the_spread_of_entropy(card):
    assert "no head gives it more than 25.0% (layer 0, head 1)" in card
    assert "between 3.00 and 5.00 nats, mean 4.00" in card


def test_card_names_the_machine_and_leaves_retrieval_logged_in_training_out(card):
    assert "on Abacus 9" in card
    assert "12 %" not in card
    assert "0.123" not in card


def test_picture_draws_each_loss_at_its_height():
    svg = ET.fromstring(loss_curve_svg(LOG))
    prose, recall = svg.findall(f"{SVG}polyline")
    first, last = ((float(n) for n in p.split(",")) for p in prose.get("points").split())
    assert list(first)[1] == TOP
    assert list(last)[1] == BOTTOM
    (dot,) = svg.findall(f"{SVG}circle")
    assert float(dot.get("cy")) == (TOP + BOTTOM) / 2 == float(recall.get("points").split(",")[1])
