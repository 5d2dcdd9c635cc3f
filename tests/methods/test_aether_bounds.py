"""Which of AETHER's formulas are upper bounds of q·k over a block, and what appending changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.methods.aether_bounds import BOUNDS, VARIANTS, Summary, rounded_up
from attnbench.methods.base import LayerShape
from attnbench.methods.block_store import BlockStore, blocks_in
from attnbench.protocol.recomputed.block_bounds import (
    Head,
    greatest_logits,
    trt_potentials,
    upper_bounds,
    varied_heads,
)

CPU = torch.device("cpu")
ROUNDING = 1e-12  # of float64 sums, relative to |q| |k|


def shape_of(keys: torch.Tensor, capacity: int, scale: float = 0.1) -> LayerShape:
    batch, kv_heads, _, dim = keys.shape
    return LayerShape(batch, kv_heads, kv_heads, dim, capacity, keys.dtype, CPU, 0, scale)


def summaries(name: str, keys: torch.Tensor, block: int) -> Summary:
    """Of keys [..,N,D], one ragged block after another."""
    found = [VARIANTS[name].summarise(rows) for rows in keys.split(block, dim=-2)]
    return Summary(*(torch.stack(part, dim=-2) for part in zip(*found, strict=True)))


def scores(name: str, q: torch.Tensor, keys: torch.Tensor, block: int, scale: float = 1.0):
    """In the units of logits: q [G,D] and keys [N,D] -> [G,n]."""
    variant = VARIANTS[name]
    found = variant.score(q.double(), summaries(name, keys, block), scale)
    return variant.logits(found, scale)


def greatest(q: torch.Tensor, keys: torch.Tensor, block: int, scale: float = 1.0):
    """The greatest logit of each block, in float64."""
    logits = q.double() @ keys.double().mT * scale
    return torch.stack([part.amax(dim=-1) for part in logits.split(block, dim=-1)], dim=-1)


def slack(q: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """What rounding may do to a logit: [G,1]."""
    lengths = keys.double().norm(dim=-1).max() * q.double().norm(dim=-1, keepdim=True)
    return ROUNDING * lengths + 1e-300


def violations(name: str, q: torch.Tensor, keys: torch.Tensor, block: int) -> int:
    """Blocks whose score is below a logit of theirs by more than rounding."""
    bound, truth = scores(name, q, keys, block), greatest(q, keys, block)
    return int((truth > bound + slack(q, keys)).sum())


def adversarial(seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Queries and keys that try a bound: a key apart from its block and along the query, keys alike
    but for rounding, huge and tiny ones, zeros, and the query against the block's direction."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=rng)

    q = normal(3, 16)
    base = normal(50, 16)
    yield q, base
    yield q, base / (torch.rand(50, 1, generator=rng) + 1e-3)
    yield q, 1000 * normal(1, 16) + 1e-4 * base
    yield q, normal(1, 16).expand(50, 16)
    yield q, torch.zeros(50, 16)
    yield 1e4 * q, torch.where(torch.arange(50)[:, None] == 20, 1e3 * q[:1], 1e-3 * base)
    yield q, -q[:1] + 0.7 * base
    yield (1e3 * q).half(), base.half() * 100
    yield q.bfloat16(), (base + 30).bfloat16()


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_never_below_a_logit_of_its_block(name, block):
    assert (
        sum(violations(name, q, k, block) for seed in range(8) for q, k in adversarial(seed)) == 0
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=4, max_size=4),
        min_size=2,
        max_size=9,
    ),
    st.sampled_from(BOUNDS),
)
def test_nor_for_any_finite_keys(rows, name):
    keys = torch.tensor(rows)
    assert violations(name, keys[:1], keys[1:], 3) == 0


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - set(BOUNDS)))
def test_a_formula_that_is_no_bound_lies_below_a_logit_somewhere(name):
    assert sum(violations(name, q, k, 16) for q, k in adversarial(0)) > 0


def test_the_cone_does_not_even_bound_unit_keys_where_the_query_points_away():
    turned = torch.deg2rad(torch.tensor([-60.0, 60.0]))
    keys = torch.stack((turned.cos(), turned.sin()), dim=-1)
    away = torch.deg2rad(torch.tensor(120.0))
    q = torch.stack((away.cos(), away.sin()))[None]
    assert float(greatest(q, keys, 2)) == pytest.approx(0.5)
    assert float(scores("cone", q, keys, 2)) == pytest.approx(-0.5 + 0.75**0.5, abs=1e-6)


def test_bounds_and_potentials_are_those_that_the_claims_were_recomputed_with():
    rng = np.random.default_rng(5)
    for head in varied_heads(rng, 4, 256):
        q, k = torch.from_numpy(head.q)[None], torch.from_numpy(head.k)
        scale = k.shape[1] ** -0.5
        for name, scaled in (("raw", False), ("scaled", True)):
            seen = VARIANTS[name].score(q, summaries(name, k, 64), scale)[0].numpy()
            np.testing.assert_allclose(seen, upper_bounds(head, 64, scaled=scaled), rtol=1e-5)
        aged = 1 + 0.05 * (1 - np.arange(4) / 4)
        seen = VARIANTS["trt"].score(q, summaries("trt", k, 64), scale)[0].numpy()
        np.testing.assert_allclose(seen, trt_potentials(head, 64) * aged, rtol=1e-4)


def test_the_specifications_test_vectors():
    i, j = np.arange(8), np.arange(32)[:, None]
    q = 2 * np.sin(i + 1)
    k = 2 * np.cos(0.3 * (j + 1) * (i + 1) + 0.1 * (j + 1))
    asked, keys = torch.from_numpy(q)[None], torch.from_numpy(k)
    found = scores("raw", asked, keys, 8)[0, :2]
    torch.testing.assert_close(
        found, torch.tensor([16.384716, 20.486934]).double(), rtol=0, atol=2e-6
    )
    scaled = scores("scaled", asked, keys, 8, scale=8**-0.5)[0, :2]
    torch.testing.assert_close(
        scaled, torch.tensor([5.792872, 7.243225]).double(), rtol=0, atol=2e-6
    )
    radii = summaries("raw", keys, 8).figures[:2, 0]
    torch.testing.assert_close(radii, torch.tensor([3.988551, 5.004061]), rtol=0, atol=2e-6)
    truth = greatest_logits(Head(q, k, k), 8)[:2]
    np.testing.assert_allclose(truth, [3.659427, 0.696830], atol=2e-6)


def test_rounding_up_is_never_below_and_by_less_than_one_step():
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    up = rounded_up(exact)
    assert (up.double() >= exact).all()
    assert (torch.nextafter(up, torch.tensor(-torch.inf)).double() < exact).all()
    assert torch.equal(rounded_up(up.double()), up)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("prompt", [0, 1, 7, 8, 31, 32, 33])
def test_appending_changes_the_last_blocks_alone_and_gives_what_filling_gives(prompt, levels):
    keys = torch.randn(2, 3, 70, 4, generator=torch.Generator().manual_seed(prompt))
    shape, raw = shape_of(keys, 75), VARIANTS["raw"]
    grown = BlockStore(shape, raw, 8, levels, fan=2)
    grown.fill(keys[:, :, :prompt])
    start = [tensor.clone() for tensor in grown.tensors()]
    for tokens in range(prompt + 1, 71):
        before = [level.centre.clone() for level in grown.levels]
        grown.append(keys[:, :, :tokens])
        for old, new, span in zip(before, grown.levels, grown.spans, strict=True):
            changed = (old != new.centre).any(dim=-1).any(dim=0).any(dim=0).nonzero()[:, 0]
            assert changed.tolist() == [(tokens - 1) // span]
        filled = BlockStore(shape, raw, 8, levels, fan=2)
        filled.fill(keys[:, :, :tokens])
        for one, other in zip(grown.tensors(), filled.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    grown.reset(keys[:, :, :prompt])
    for one, other in zip(start, grown.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 23])
def test_the_last_block_counts_its_own_tokens_alone_in_mean_and_radius(tokens):
    keys = 5 + torch.randn(1, 1, tokens, 4, generator=torch.Generator().manual_seed(tokens))
    store = BlockStore(shape_of(keys, 40), VARIANTS["raw"], 8)
    store.fill(keys)
    last = keys[0, 0, (blocks_in(tokens, 8) - 1) * 8 :].double()
    seen = store.seen(tokens)
    centre = last.mean(dim=0)
    torch.testing.assert_close(seen.centre[0, 0, -1].double(), centre, rtol=1e-6, atol=1e-6)
    radius = (last - centre).norm(dim=-1).max()
    torch.testing.assert_close(seen.figures[0, 0, -1, 0].double(), radius, rtol=1e-5, atol=1e-5)
    assert seen.centre.shape[2] == blocks_in(tokens, 8)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_block_of_blocks_bounds_every_logit_in_it(name):
    variant = VARIANTS[name]
    for seed in range(4):
        for q, keys in adversarial(seed):
            store = BlockStore(shape_of(keys[None, None], 60), variant, 4, levels=3, fan=3)
            store.fill(keys[None, None])
            for level, span in enumerate(store.spans):
                blocks = Summary(*(part[0, 0] for part in store.seen(50, level)))
                bound = variant.logits(variant.score(q.double(), blocks, 1.0), 1.0)
                truth = greatest(q, keys, span)
                assert (truth <= bound + slack(q, keys)).all()
