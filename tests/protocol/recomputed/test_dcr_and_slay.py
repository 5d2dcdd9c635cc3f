"""DCR's and SLAY's claims, against figures that were published or had another way."""

from __future__ import annotations

import numpy as np
import pytest

from attnbench.protocol.recomputed import dcr, slay, slay_tasks
from tests.protocol.claims import HELD, MISSED, VOID, verdict


def test_production_goes_half_of_the_way_and_would_go_a_quarter_if_it_were_slower():
    seen = dcr.captured_share()
    assert seen.low == pytest.approx(0.511, abs=5e-4)
    assert "0.599" in seen.note
    assert "0.249" in seen.note
    assert verdict("DCR-05", seen) == MISSED
    assert verdict("DCR-05", dcr.captured_share(production_ms=206.1)) == HELD


def test_dcr_reads_more_than_dense_above_an_eighth():
    assert dcr.traffic_ratio().low == pytest.approx(2.2 / 2)
    assert verdict("DCR-09", dcr.traffic_ratio()) == MISSED
    assert verdict("DCR-09", dcr.traffic_ratio(coverage=0.12)) == HELD
    assert verdict("DCR-09", dcr.traffic_ratio(query_heads_per_kv_head=1)) == HELD


def test_a_decode_state_keeps_its_size_and_a_cache_does_not(monkeypatch):
    seen = slay.decode_state_growth()
    assert seen.note.startswith("266240 bytes")  # 1024 · 65 · 4
    assert verdict("SL-11", seen) == HELD
    assert verdict("SL-11", slay.decode_state_growth(long=256, recurrent=False)) == MISSED
    monkeypatch.setattr(slay, "_state", _forgetful)
    assert verdict("SL-11", slay.decode_state_growth(long=256)) == VOID


def _forgetful(mapped, values, **_):
    """A state of constant size that knows the last token alone."""
    return mapped[-1:].T @ values[-1:].astype(np.float32), mapped[-1].copy()


def test_two_nodes_lose_near_parallel_pairs_and_many_do_not():
    places, weights = np.polynomial.laguerre.laggauss(2)
    assert places == pytest.approx([0.5857864, 3.4142136])  # published
    assert weights == pytest.approx([0.8535534, 0.1464466])
    seen = slay.worst_quadrature_ratio()
    assert seen.low == pytest.approx(0.058, abs=5e-4)
    assert slay.worst_quadrature_ratio(greatest_cosine=0.9).low == pytest.approx(0.46, abs=5e-3)
    assert verdict("SL-12", seen) == MISSED
    assert verdict("SL-12", slay.worst_quadrature_ratio(nodes=160)) == HELD


def test_anchor_products_of_orthogonal_vectors_are_a_third_of_those_of_equal_ones(monkeypatch):
    seen = slay.orthogonal_over_parallel()
    assert seen.low < 1 / 3 < seen.high
    assert verdict("SL-13", seen) == MISSED
    axes = np.eye(16)
    monkeypatch.setattr(slay, "unit", lambda rows: axes[np.arange(len(rows)) % 16])
    assert verdict("SL-13", slay.orthogonal_over_parallel(draws=3)) == HELD


def test_seven_tasks_need_no_mixing_and_tasks_that_do_are_not_counted(monkeypatch):
    seen = slay.tasks_without_attention()
    assert seen.low == 7
    scores = dict(part.split(" ") for part in seen.note.split(", "))
    published = {"histogram": 0.887, "selective_copy": 0.875, "stack": 0.757, "copy": 1.0}
    for name, score in published.items():
        assert float(scores[name]) == pytest.approx(score, abs=0.02)
    assert verdict("SL-15", seen) == MISSED
    monkeypatch.setattr(slay_tasks, "MAKE", {"reverse": _reverse})
    assert verdict("SL-15", slay.tasks_without_attention()) == HELD


def _reverse(rng, sequences):
    tokens = rng.integers(0, 32, (sequences, 32))
    return tokens, tokens[:, ::-1]


def test_a_constant_solves_retrieval_but_not_a_needle_of_random_value(monkeypatch):
    assert slay.constant_on_retrieval().low == 1
    assert verdict("SL-16", slay.constant_on_retrieval()) == MISSED
    monkeypatch.setattr(slay_tasks, "retrieval", _with_random_needle)
    assert verdict("SL-16", slay.constant_on_retrieval()) == HELD


def _with_random_needle(rng, sequences):
    return rng.integers(0, 62, (sequences, 1)), rng.integers(0, 62, (sequences, 1))
