"""Fieldprint's claims, against figures worked out by hand."""

from __future__ import annotations

import pytest

from attnbench.protocol.recomputed import anchors
from tests.protocol.claims import HELD, MISSED, VOID, verdict


@pytest.mark.parametrize(
    ("key", "seen", "figure", "expected", "other", "turned"),
    [
        ("FP-01", anchors.token_megabytes(), 2.62144, HELD,
         anchors.token_megabytes(kv_heads=8), MISSED),
        ("FP-02", anchors.context_gigabytes(), 262.144, HELD,
         anchors.context_gigabytes(kv_heads=8), MISSED),
        ("FP-03", anchors.tokens_in_a_gigabyte(), 30517.578125, MISSED,
         anchors.tokens_in_a_gigabyte(layers_sharing=80), HELD),
        ("FP-04", anchors.memory_share(), 1.0, MISSED,
         anchors.memory_share(bytes_a_layer=1e9 / 80), HELD),
        ("FP-05", anchors.bandwidth_percent(), 1.4925373, HELD,
         anchors.bandwidth_percent(total_bytes=80e9), MISSED),
        ("FP-08", anchors.hashing_ms(), 563.2, HELD,
         anchors.hashing_ms(hashing=1.75e9), MISSED),
    ],
)  # fmt: skip
def test_byte_and_time_figures_are_those_by_hand_and_hang_on_their_inputs(
    key, seen, figure, expected, other, turned
):
    assert seen.low == pytest.approx(figure)
    assert verdict(key, seen) == expected
    assert verdict(key, other) == turned


def test_notes_say_what_the_premises_hide():
    assert "0.328 MB" in anchors.token_megabytes().note
    assert "32.8 GB" in anchors.context_gigabytes().note
    assert anchors.tokens_in_a_gigabyte().note.endswith("381")
    assert "119 %" in anchors.bandwidth_percent().note
    assert "29.2 times" in anchors.decode_slow_down().note


def test_hashing_a_decoded_tokens_state_costs_a_sixth_and_that_of_a_prefill_thirty_times():
    seen = anchors.decode_slow_down()
    assert seen.high == pytest.approx(1.17, abs=5e-3)
    assert verdict("FP-09", seen) == MISSED
    prefill = anchors.decode_slow_down(bytes_a_layer=32e6, hash_rates=(5e9,))
    assert verdict("FP-09", prefill) == HELD


def test_one_anchor_gives_a_constant_and_two_do_not():
    assert verdict("FP-12", anchors.query_dependence()) == HELD
    assert verdict("FP-12", anchors.query_dependence(anchors=2)) == MISSED


def test_the_error_dies_out_below_the_threshold_and_grows_where_kappa_is_very_negative():
    seen = anchors.dies_out()
    assert seen.note == "by the exact law 1.000000"
    assert verdict("FP-13", seen) == MISSED
    assert verdict("FP-13", anchors.dies_out(kappa=-0.7)) == HELD
    assert verdict("FP-13", anchors.dies_out(horizon=20.0, dt=2.0)) == VOID  # steps far too long


def test_masked_keys_that_count_spoil_ragged_lengths_alone():
    assert verdict("FP-14", anchors.tail_error()) == MISSED
    assert verdict("FP-14", anchors.tail_error(lengths=(32, 64, 4096))) == HELD
    assert verdict("FP-14", anchors.tail_error(lengths=(64, 33))) == MISSED
