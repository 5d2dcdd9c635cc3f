"""Drift, overlap and their correlation, on selections that were made to have them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from attnbench.methods import registry
from attnbench.quality.trajectories import (
    axis_overlap,
    budget,
    correlated,
    drift,
    exact_selections,
    overlap_and_cosine,
    random_drift,
    ranks,
    reshuffle,
    spearman,
    spearman_interval,
    stable_heads,
)
from tests.quality.layers import gaussian_trace


def selections(*rows: str) -> torch.Tensor:
    """Steps of one head, a token a letter."""
    return torch.tensor([[[letter == "x" for letter in row]] for row in rows])


def test_drift_counts_from_the_first_step_and_reshuffle_from_the_one_before():
    selected = selections("xx....", ".xx...", "..xx..", "...xx.", "xx....")
    assert drift(selected)[:, 0].tolist() == [0, 0.5, 1, 1, 0]
    assert reshuffle(selected)[:, 0].tolist() == [0.5, 0.5, 0.5, 1]


def test_selections_by_chance_drift_by_what_is_not_covered():
    torch.manual_seed(0)
    scores = torch.rand(60, 20, 200)
    selected = scores >= scores.topk(30, dim=-1).values[..., -1:]
    assert random_drift(0.15, 200) == 0.85
    assert float(drift(selected)[1:].mean()) == pytest.approx(0.85, abs=0.01)
    assert float(reshuffle(selected).mean()) == pytest.approx(0.85, abs=0.01)


def test_a_head_is_stable_by_its_mean_drift_over_the_steps_that_count():
    drifted = torch.zeros(101, 3)
    drifted[1:51, 0] = 0.09
    drifted[1:51, 1] = 0.11
    drifted[51:, 2] = 1.0
    assert stable_heads(drifted.double(), 50) == 2


def test_the_exact_selection_is_of_the_prompt_alone_by_each_heads_logits():
    trace = gaussian_trace(context=40, steps=3)
    selected = exact_selections(trace, 0.2)
    assert selected.shape == (3, 4, 40)
    for step in range(3):
        for head in range(4):
            scores = trace.k[head // 2, :40].double() @ trace.q[step, head].double()
            best = sorted(range(40), key=lambda row: -float(scores[row]))[:8]
            assert selected[step, head].nonzero()[:, 0].tolist() == sorted(best)
    assert budget(0.001, 40) == 1


def test_an_axis_knows_queries_that_lie_along_it_and_not_those_that_lie_against_it():
    trace = gaussian_trace(context=300, steps=2, dim=16)
    along = torch.ones(16) / 4
    trace = replace(trace, k=trace.k + 2 * along, q=torch.ones_like(trace.q))
    found = axis_overlap(trace, 0.15)
    assert found.overlap.shape == found.correlation.shape == (2, 4)
    assert float(found.overlap.min()) == 1.0
    assert float(found.correlation.min()) > 0.9
    against = axis_overlap(replace(trace, q=-trace.q), 0.15)
    assert float(against.overlap.max()) == 0.0
    assert float(against.correlation.max()) < -0.9


def test_ranks_and_their_correlation_are_spearmans():
    one, other = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)).double()
    by_ranks = float(correlated(ranks(one), ranks(other)))
    assert by_ranks == pytest.approx(spearman(one.numpy(), other.numpy()))
    assert spearman(np.arange(9.0), np.exp(np.arange(9.0))) == pytest.approx(1)
    assert math.isnan(spearman(np.ones(9), np.arange(9.0)))
    assert float(correlated(torch.ones(9), torch.arange(9.0))) == 0.0


@pytest.mark.parametrize(
    ("spec", "overlap"),
    [
        ("oracle_topk,share=0.2", 1.0),
        ("rank_window,coverage=0.2,k_min=1", 1.0),  # a query beyond all keys: the best half
        ("sink_window,window=9,impl=torch", None),
        ("random_k,share=0.2", None),
        ("sdpa", 1.0),
    ],
)
def test_what_a_method_selects_is_read_off_its_outputs(spec, overlap):
    trace = gaussian_trace(context=60, steps=3, dim=64)
    found = overlap_and_cosine(registry.parse(spec), trace)
    assert found.overlap.shape == found.cosine.shape == (4,)
    if overlap is not None:
        assert found.overlap.tolist() == [overlap] * 4
    else:
        assert 0 <= float(found.overlap.mean()) < 1
    assert (float(found.cosine.min()) > 1 - 1e-6) == (spec == "sdpa")


def test_a_random_selection_overlaps_by_its_share():
    overlaps = [
        overlap_and_cosine(
            registry.parse(f"random_k,share=0.2,seed={seed}"), gaussian_trace(seed=seed, dim=64)
        ).overlap
        for seed in range(10)
    ]
    assert float(torch.stack(overlaps).mean()) == pytest.approx(0.2, abs=0.03)


def test_the_interval_of_a_correlation_is_narrow_where_windows_agree_and_wide_where_not():
    rng = np.random.default_rng(0)
    truth = rng.random(40)
    agreeing = np.stack([truth + 0.01 * rng.random(40) for _ in range(5)])
    found, low, high = spearman_interval(agreeing, agreeing**2, seed=1)
    assert found == pytest.approx(1.0, abs=0.01)
    assert high - low < 0.01
    noise = rng.random((2, 5, 40))
    found, low, high = spearman_interval(noise[0], noise[1], seed=1)
    assert low < 0 < high
    assert high - low > 0.1
