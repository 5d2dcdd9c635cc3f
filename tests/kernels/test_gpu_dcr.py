"""Direction-cosine ranking on a real GPU, at the source's hero shape in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.kernels.topk_select import row_width, select_highest
from attnbench.methods.base import CacheLength, CacheView, LayerShape
from attnbench.methods.conformance import BOUNDS, relative_error
from attnbench.methods.conformance_graph import CapturedDecode
from attnbench.methods.dcr_layers import sorted_out
from attnbench.methods.dcr_topk import GENERATIONS, DcrTopK
from attnbench.methods.oracle_topk import of_kv_head
from attnbench.methods.random_k import gathered
from attnbench.methods.reference import exact_attention
from attnbench.methods.trial import Step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CUDA = torch.device("cuda")
TOKENS = 31999  # and the newest
HERO = LayerShape(4, 32, 8, 64, TOKENS + 33, torch.bfloat16, CUDA, layer=0, scale=0.125)
KERNELS = [DcrTopK(generation=name) for name in GENERATIONS if name != "m1"]
KERNELS += [DcrTopK(generation="m6", sharing="group"), DcrTopK(generation="m6", scorer="cache")]


@pytest.fixture(scope="module")
def hero() -> tuple[CacheView, Step]:
    """One layer's cache at full length, and one token to append."""
    torch.manual_seed(0)
    rows = (HERO.batch, HERO.kv_heads, HERO.capacity, HERO.head_dim)
    k, v = (torch.randn(rows, device=CUDA).to(HERO.dtype) for _ in range(2))
    k[:, :, TOKENS:] = 0
    v[:, :, TOKENS:] = 0
    new = (HERO.batch, HERO.kv_heads, 1, HERO.head_dim)
    step = Step(
        q=2 * torch.randn((HERO.batch, HERO.heads, 1, HERO.head_dim), device=CUDA).to(HERO.dtype),
        k=torch.randn(new, device=CUDA).to(HERO.dtype),
        v=torch.randn(new, device=CUDA).to(HERO.dtype),
    )
    return CacheView(k, v, CacheLength(CUDA, TOKENS)), step


def defined(method: DcrTopK, k: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """The rows of every choice by definition: [B,H,K], or [B,Hkv,K]."""
    each = [
        method.chosen(of_kv_head(q, head, HERO), k[:, head : head + 1], HERO)
        for head in range(HERO.kv_heads)
    ]
    return torch.cat(each, dim=1)


@pytest.mark.parametrize("method", KERNELS, ids=lambda method: method.label)
def test_every_generation_keeps_the_contract_of_parity_at_the_hero_shape(method, hero):
    cache, step = hero
    layer = method.layer(HERO)
    layer.prefill(cache)
    out = layer.decode(step.q, step.k, step.v).clone()
    keep = method.kept(TOKENS + 1)
    scores = layer.score(step.q, step.k, step.v)
    chosen = layer.choose(scores)[:, :keep].long()
    k = cache.k[:, :, : TOKENS + 1]
    right = defined(method, k, step.q)
    if method.sharing == "head":
        u = step.q[:, :, 0].double()
        u = (u / u.norm(dim=-1, keepdim=True)).view(HERO.batch, HERO.kv_heads, HERO.group, -1)
        exact = (u @ k.double().mT).flatten(0, 2)
        wrong = scores[:, : TOKENS + 1].double() - exact
        rounding = 2.0**-8 * exact.abs() if method.scorer == "cache" else 0.0
        assert (wrong.abs() <= 1e-4 + rounding).all(), float(wrong.abs().max())
        if method.scorer == "exact":
            assert float(wrong.square().mean()) <= 1e-6
    assert (chosen[:, 1:] > chosen[:, :-1]).all()

    # A near-tie shifts all indices between two places: sets are compared, then their order.
    hit = torch.zeros((len(chosen), TOKENS + 1), dtype=torch.bool, device=CUDA)
    hit.scatter_(1, right.flatten(0, 1), True)
    assert float(hit.gather(1, chosen).double().mean()) >= 0.999

    choices = chosen.view(HERO.batch, -1, keep)
    errors = []
    for head in range(HERO.heads):
        choice = head if method.sharing == "head" else head // HERO.group
        rows, kv_head = choices[:, choice : choice + 1], head // HERO.group
        one = slice(kv_head, kv_head + 1)
        kept = (gathered(cache.k[:, one], rows), gathered(cache.v[:, one], rows))
        expected = exact_attention(step.q[:, head : head + 1], *kept, HERO.scale)
        apart = out[:, head : head + 1].double() - expected
        assert float(apart.abs().max()) <= 5e-3
        assert float(apart.square().mean()) <= 1e-6
        errors.append(relative_error(out[:, head : head + 1], expected))
    assert max(errors) < BOUNDS[HERO.dtype]
    layer.reset()


@pytest.mark.parametrize("method", KERNELS, ids=lambda method: method.label)
def test_a_captured_step_gives_the_same_bits_again_and_again(method, hero):
    cache, step = hero
    layer = method.layer(HERO)
    layer.prefill(cache)
    eager = layer.decode(step.q, step.k, step.v).clone()
    replay = CapturedDecode(layer, step)
    wrong = sum(not torch.equal(replay(step), eager) for _ in range(200))
    other = Step(step.q.flip(1).contiguous(), step.k.flip(1), step.v.flip(1))
    assert torch.equal(replay(other), layer.decode(other.q, other.k, other.v))
    layer.reset()
    assert wrong == 0, f"{wrong} of 200 replays differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "tokens"), [(128, 32000), (128, 32001), (8, 131072), (3, 70001)])
@pytest.mark.parametrize("levels", [0, 2, 300])
def test_the_choice_is_that_of_a_stable_sort_at_full_length(rows, tokens, dtype, levels):
    torch.manual_seed(tokens + levels)
    scores = torch.full((rows, row_width(tokens)), float("nan"), dtype=dtype, device=CUDA)
    drawn = torch.randn((rows, tokens), device=CUDA)
    scores[:, :tokens] = (drawn * levels).round() if levels else drawn
    length = torch.tensor([tokens - 1], dtype=torch.int32, device=CUDA)
    for count in (1, tokens * 15 // 100, tokens):
        found = select_highest(scores, length, (0, 1, count, 1), count)
        assert torch.equal(found, sorted_out(scores[:, :tokens], count))


def test_every_configuration_of_the_gather_is_right_at_the_hero_shape(hero):
    cache, step = hero
    for sharing in ("head", "group"):
        method = DcrTopK(generation="m6", sharing=sharing)
        outputs = {}
        for config in method.configurations(HERO):
            layer = method.layer(replace(HERO, kernel=config))
            layer.prefill(cache)
            outputs[config] = layer.decode(step.q, step.k, step.v).clone()
            layer.reset()
        first, *others = outputs.values()
        assert others
        for config, out in outputs.items():
            assert relative_error(out, first) < BOUNDS[HERO.dtype], config
