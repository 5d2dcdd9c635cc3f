"""Planted caches are ordinary noise, and what changes between them tells the weights of tokens."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from attnbench.measure.planted import (
    SCORE_SPREAD,
    Planted,
    PlantedLayer,
    even_scores,
    influential,
)
from attnbench.methods.base import LayerShape
from tests.measure.standing import CPU, standing, with_arms

TOKENS = 100
LONG = msgspec.structs.replace(CPU, context=TOKENS)
WIDE = "llama-biased"  # 64 channels
SHAPE = LayerShape(
    batch=1,
    heads=4,
    kv_heads=2,
    head_dim=64,
    capacity=0,
    dtype=torch.float32,
    device=torch.device("cpu"),
    layer=0,
    scale=0.125,
)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_both_caches_hold_ordinary_noise_that_adds_up_to_zero(dtype):
    with standing(msgspec.structs.replace(with_arms("sdpa", bench=LONG), dtype=dtype), WIDE) as b:
        planted = Planted(b, 1)
        for _ in range(2):
            for view in b.cache.views:
                keys, values = (rows[:, :, :TOKENS].double() for rows in (view.k, view.v))
                assert keys.std() == pytest.approx(1, abs=0.03)
                assert values.std() == pytest.approx(1, abs=0.03)
                assert not view.k[:, :, TOKENS:].any()
                assert not view.v[:, :, TOKENS:].any()
            planted.turn()
        sums = values.sum(dim=2)  # of the second cache, in which some rows are turned
        assert sums.abs().max() > 1
        assert b.cache.views[-1].v[:, :, :TOKENS].double().sum(dim=2).abs().max() < 0.2


def test_the_second_cache_differs_in_the_signs_of_the_planted_rows_and_in_nothing_else():
    with standing(with_arms("sdpa", bench=LONG), WIDE) as bench:
        planted = Planted(bench, 1)
        before = [(view.k.clone(), view.v.clone()) for view in bench.cache.views]
        planted.turn()
        for shape, layer, (k, v) in zip(bench.tables.shapes, planted.layers, before, strict=True):
            view = bench.cache.views[shape.layer]
            turned = (view.v != v).any(dim=-1)
            assert layer.tokens.shape == (2, 2, 8)
            assert (turned.nonzero()[:, 2].view(2, 2, 8) == layer.tokens.sort().values).all()
            assert torch.equal(view.v.abs(), v.abs())
            assert torch.equal(view.v[turned], -v[turned])
            assert torch.equal(view.k, k)


def test_turning_twice_brings_the_first_cache_back_and_the_bench_takes_each_for_intact():
    with standing(with_arms("sdpa", bench=LONG), WIDE) as bench:
        planted = Planted(bench, 1)
        first = bench.cache.sha256()
        bench.require_intact(thoroughly=True)
        planted.turn()
        second = bench.cache.sha256()
        bench.require_intact(thoroughly=True)
        bench.cache.views[1].v[0, 0, 3] += 1
        bench.reclaim()
        assert bench.cache.sha256() == second != first
        planted.turn()
        assert bench.cache.sha256() == first


def test_places_differ_by_seed_layer_sequence_and_head_and_by_nothing_else():
    with standing(with_arms("sdpa", bench=LONG), WIDE) as bench:
        first, again, other = (
            [layer.tokens for layer in Planted(bench, seed).layers] for seed in (1, 1, 2)
        )
    assert all(map(torch.equal, first, again))
    rows = [tuple(r.tolist()) for p in (first, other) for t in p for r in t.flatten(0, 1)]
    assert len(set(rows)) == len(rows) == 2 * 3 * 4


def test_the_first_step_has_small_queries_and_ordinary_new_tokens():
    with standing(with_arms("sdpa", bench=LONG), WIDE) as bench:
        even_scores(bench)
        rows = bench.tables.rows
        for (q, k, v), shape in zip(bench.tables.split(rows[0]), bench.tables.shapes, strict=True):
            assert float(q.std()) * shape.scale * 8 == pytest.approx(SCORE_SPREAD, rel=0.3)
            assert float(k.std()) == pytest.approx(1, abs=0.3)
            assert float(v.std()) == pytest.approx(1, abs=0.3)
        assert all(q.std() > 0.5 for q, _, _ in bench.tables.split(rows[1]))
        bench.require_intact()


def noise_of(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, PlantedLayer]:
    """Weights [1,2,2,N] of even attention, values that add up to zero, and 8 planted rows."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn((1, 2, 2, tokens), generator=generator) * SCORE_SPREAD
    values = torch.randn((1, 2, tokens, 64), generator=generator)
    values -= values.mean(dim=2, keepdim=True)
    places = torch.rand((1, 2, tokens), generator=generator).argsort(dim=-1)[..., :8]
    return scores, values, planted_in(values, places)


def planted_in(values: Tensor, places: Tensor) -> PlantedLayer:
    rows = values.gather(2, places[..., None].expand(1, 2, 8, 64)).double()
    return PlantedLayer(places, rows, torch.linalg.inv(rows @ rows.mT))


def turned(values: Tensor, places: Tensor) -> Tensor:
    return values.scatter(
        2,
        places[..., None].expand(1, 2, 8, 64),
        -values.gather(2, places[..., None].expand(1, 2, 8, 64)),
    )


def attended(scores: Tensor, values: Tensor, kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Attention [1,4,1,64] to the kept tokens: weights and result are rounded to the dtype."""
    weights = scores.masked_fill(~kept, -torch.inf).softmax(-1).to(dtype)
    out = torch.empty(1, 2, 2, 64)
    for head in range(2):  # the sum in float32, as kernels do it
        out[:, head] = weights[:, head].float() @ values[:, head].to(dtype).float()
    return out.to(dtype).view(1, 4, 1, 64)


@pytest.mark.parametrize("tokens", [4096, 131072])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.05])
def test_what_is_attended_to_shows_and_what_is_not_does_not_in_long_caches(tokens, dtype, share):
    scores, values, layer = noise_of(tokens)
    values = values.to(dtype).float()
    layer = planted_in(values, layer.tokens)
    kept = torch.rand((1, 2, 1, tokens), generator=torch.Generator().manual_seed(1)) < share
    both = [values, turned(values, layer.tokens)]
    outputs = [attended(scores, each, kept, dtype) for each in both]
    found = influential(*outputs, layer, SHAPE, 1 / (tokens + 1))
    expected = kept[:, :, 0].gather(2, layer.tokens)[:, :, None].expand(found.shape)
    assert torch.equal(found, expected)


def test_sums_that_are_not_zero_would_hide_a_token_of_a_long_cache_in_bfloat16():
    """Which is why the values add up to zero."""
    scores, values, _ = noise_of(131072)
    values = values.add_(1).bfloat16().float()
    layer = planted_in(values, torch.arange(16).view(1, 2, 8) * 5000)
    kept = torch.ones(1, 2, 1, 131072, dtype=torch.bool)
    both = [values, turned(values, layer.tokens)]
    outputs = [attended(scores, each, kept, torch.bfloat16) for each in both]
    assert not influential(*outputs, layer, SHAPE, 1 / 131073).all()


@pytest.mark.parametrize(("size", "most"), [(0.1, 0.0), (0.5, 0.001), (1.0, 0.001), (2.0, 0.02)])
def test_noise_that_no_planted_row_explains_is_no_influence(size, most):
    """As of rounding: an estimate errs by about a tenth of `size`, all in even weights, and half a
    weight counts."""
    _, _, layer = noise_of(4096)
    generator = torch.Generator().manual_seed(2)
    shown = []
    for _ in range(500):
        before, after = torch.randn((2, 1, 4, 1, 64), generator=generator) * size / 4097
        shown.append(influential(before, after, layer, SHAPE, 1 / 4097).double().mean())
    assert float(torch.stack(shown).mean()) <= most


def test_a_head_that_repeats_another_ones_output_attends_to_nothing_of_its_own():
    scores, values, layer = noise_of(4096)
    kept = torch.ones(1, 2, 1, 4096, dtype=torch.bool)
    outputs = [
        attended(scores, each, kept, torch.float32)
        for each in (values, turned(values, layer.tokens))
    ]
    for out in outputs:
        out[:, 2:] = out[:, :2]
    found = influential(*outputs, layer, SHAPE, 1 / 4097)
    assert found[:, 0].all()
    assert found[:, 1].double().mean() < 0.5


def test_one_row_is_planted_where_a_head_has_few_channels_or_the_cache_few_tokens():
    with standing(with_arms("sdpa", bench=msgspec.structs.replace(CPU, context=3)), WIDE) as bench:
        assert Planted(bench, 1).layers[0].tokens.shape == (2, 2, 3)
    with standing(with_arms("sdpa")) as bench:
        assert Planted(bench, 1).layers[0].tokens.shape == (2, 2, 1)


def test_any_head_that_weighs_a_token_negatively_has_its_influence():
    scores, values, layer = noise_of(4096)
    kept = torch.ones(1, 2, 1, 4096, dtype=torch.bool)
    outputs = [
        -attended(scores, each, kept, torch.float32)
        for each in (values, turned(values, layer.tokens))
    ]
    assert influential(*outputs, layer, SHAPE, 1 / 4097).all()
