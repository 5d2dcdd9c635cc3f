"""Figures that claims are about: by hand, paired with random blocks, and bounds held to logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t

from attnbench.methods import registry
from attnbench.quality.bounds import bound_violations
from attnbench.quality.claimed import quantities
from attnbench.quality.null_cosines import NullCosines
from attnbench.quality.nulls import exact_weights
from attnbench.quality.replay import sdpa_outputs
from tests.quality.layers import gaussian_trace
from tests.quality.test_gates import H, L, S, W, perfect

TRACE = gaussian_trace(context=150, steps=3, heads=4, kv_heads=2, dim=16, sharpness=2)


def by_window(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None, None, None] * np.ones((1, L, S, H), np.float32)


def test_a_cosine_has_its_t_interval_over_windows():
    nulls = dict.fromkeys(("null_random", "null_oracle"), np.zeros(0, np.float32))
    found = quantities(perfect(cosine=by_window(0.9, 0.94, 0.95), **nulls))["cosine"]
    half = t.ppf(0.975, 2) * np.std([0.9, 0.94, 0.95], ddof=1) / 3**0.5
    assert found.estimate == pytest.approx(0.93)
    assert (found.low, found.high) == pytest.approx((0.93 - half, 0.93 + half))


def test_a_gain_is_over_random_blocks_where_the_method_takes_blocks():
    cosine = by_window(0.9, 0.92)
    tokens = np.full((W, L, H), 0.8, np.float32)
    arrays = perfect(cosine=cosine, null_random=tokens)
    assert quantities(arrays)["over-random"].estimate == pytest.approx(0.11)
    arrays = replace(arrays, null_random_blocks=tokens + 0.05)
    assert quantities(arrays)["over-random"].estimate == pytest.approx(0.06)


def test_what_is_counted_has_no_interval_and_perplexity_is_in_per_cent():
    nll = np.full((5, 64), 3.0, np.float32)
    arrays = perfect(
        kl_nats=nll * 0,
        agree=nll,
        nll_nats=nll + np.float32(0.01),
        nll_sdpa_nats=nll,
        bound_violations=np.full((1, L, S, H), 0.25, np.float32),
    )
    found = quantities(arrays)
    assert found["perplexity-change"].estimate == pytest.approx(1.005, abs=1e-3)
    for name in ("kept-share", "bound-violations"):
        assert (found[name].low, found[name].high) == (0.25, 0.25)


def test_samples_that_are_not_finite_or_of_one_window_give_no_figure():
    spoiled = by_window(0.9, 0.92)
    spoiled[0, 0, 0, 0] = np.nan
    assert "cosine" not in quantities(perfect(cosine=spoiled))
    nulls = dict.fromkeys(("null_random", "null_oracle"), np.zeros(0, np.float32))
    assert "cosine" not in quantities(perfect(cosine=by_window(0.9), **nulls))
    assert "bound-violations" not in quantities(perfect())


def test_random_blocks_keep_whole_blocks_and_all_of_them_are_exact_attention():
    weights = exact_weights(TRACE.q, TRACE.k, TRACE.v, TRACE.shape.scale, TRACE.context)
    torch.testing.assert_close(
        next(weights.random_blocks(153, 16, 1, torch.Generator())), weights.exact()
    )
    block = torch.arange(153) // 16
    v = torch.nn.functional.one_hot(block, 16).double().expand(2, -1, -1)
    flat = replace(weights, weights=torch.ones_like(weights.weights), v=v)
    (out,) = flat.random_blocks(32, 16, 1, torch.Generator().manual_seed(3))
    for head in out[-1]:
        kept = head[head > 0]
        assert len(kept) == 2  # blocks, each with all of its rows
        assert kept.tolist() in ([0.5, 0.5], pytest.approx([16 / 25, 9 / 25]))


def test_blocks_by_lot_are_not_tokens_by_lot_and_are_the_same_on_every_call():
    nulls = NullCosines(TRACE, sdpa_outputs(TRACE), (0, 0, 0))
    blocks, tokens = nulls.blocks_at(0.3, 16), nulls.at(0.3)["null_random"]
    assert torch.equal(blocks, nulls.blocks_at(0.3, 16))
    assert not torch.equal(blocks, tokens)
    assert ((blocks - tokens).abs() < 0.3).all()


@pytest.mark.parametrize("spec", ["aether,block=16", "aether,variant=rust,block=7", "quest,page=8"])
def test_a_bound_holds_on_a_models_logits(spec):
    assert bound_violations(registry.parse(spec), TRACE).max() == 0


def test_what_is_no_bound_is_counted_and_a_method_that_bounds_nothing_has_no_count():
    found = bound_violations(registry.parse("aether,variant=trt,block=16"), TRACE)
    assert found.shape == (3, 4)
    assert 0.2 < found.mean() < 0.9
    assert bound_violations(registry.parse("sink_window,window=9,impl=torch"), TRACE) is None
