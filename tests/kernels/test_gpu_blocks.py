"""Kernels that choose blocks on a real GPU, at Llama-3.2-1B's shape in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.methods import registry
from attnbench.methods.base import CacheLength, CacheView, LayerShape, MethodLayer
from attnbench.methods.conformance import BOUNDS, Outcome, conform, relative_error
from attnbench.methods.conformance_graph import CapturedDecode
from attnbench.methods.quest import page_bounds
from attnbench.methods.reference import exact_attention
from attnbench.methods.selection import grouped
from attnbench.methods.trial import Step
from tests.kernels.test_gpu_parity import report

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CUDA = torch.device("cuda")
TOKENS = 31999  # and the newest
HERO = LayerShape(4, 32, 8, 64, TOKENS + 33, torch.bfloat16, CUDA, layer=3, scale=0.125)
SPECS = (
    "aether,variant=scaled,threshold=share,value=0.05,sinks=1,local=1",
    "aether,variant=raw,value=70.0",
    "aether,variant=rust,threshold=relative,value=0.97,heads=own",
    "aether,variant=trt,threshold=mass,value=0.1,local=4",
    "aether,variant=cone,threshold=share,value=0.05",
    "quest,share=0.15",
)
NEAR = 1e-5  # of the largest score: two nearer than that may be told apart otherwise


@pytest.fixture(scope="module")
def hero() -> tuple[CacheView, Step]:
    """One layer's cache at full length, its blocks unlike each other, and one token to append."""
    torch.manual_seed(0)
    rows = (HERO.batch, HERO.kv_heads, HERO.capacity, HERO.head_dim)
    k, v = (torch.randn(rows, device=CUDA) for _ in range(2))
    drift = torch.randn((*rows[:2], rows[2] // 64 + 1, 1, rows[3]), device=CUDA)
    k += 0.5 * drift.expand(-1, -1, -1, 64, -1).flatten(2, 3)[:, :, : rows[2]]
    k[:, :, TOKENS:] = 0
    v[:, :, TOKENS:] = 0
    new = (HERO.batch, HERO.kv_heads, 1, HERO.head_dim)
    step = Step(
        q=2 * torch.randn((HERO.batch, HERO.heads, 1, HERO.head_dim), device=CUDA).to(HERO.dtype),
        k=torch.randn(new, device=CUDA).to(HERO.dtype),
        v=torch.randn(new, device=CUDA).to(HERO.dtype),
    )
    return CacheView(k.to(HERO.dtype), v.to(HERO.dtype), CacheLength(CUDA, TOKENS)), step


def layer_of(spec: str, cache: CacheView) -> MethodLayer:
    layer = registry.parse(f"{spec},impl=triton").layer(HERO)
    layer.prefill(cache)
    return layer


def exact_scores(layer, q: torch.Tensor) -> torch.Tensor:
    """By the summaries that the layer holds, in float64: [B,Hkv,G,n]."""
    queries = grouped(q, HERO.kv_heads).double()
    if "least" in vars(layer):
        count = -(-(TOKENS + 1) // layer.method.page)
        return page_bounds(queries, layer.least[:, :, :count], layer.greatest[:, :, :count])
    return layer.method.formula.score(queries, layer.store.seen(TOKENS + 1), HERO.scale)


@pytest.mark.parametrize("spec", SPECS)
def test_scores_choice_and_output_are_right_at_the_hero_shape(spec, hero):
    cache, step = hero
    layer = layer_of(spec, cache)
    out = layer.decode(step.q, step.k, step.v).clone()
    right = exact_scores(layer, step.q)
    count = right.shape[-1]
    seen = layer.kernels.scores()[..., :count].double()
    assert float((seen - right).abs().max() / right.abs().max()) <= NEAR

    plain = registry.parse(f"{spec},impl=torch").layer(HERO)
    mask = layer.kernels.mask()
    if "least" not in vars(plain):  # that of Quest gathers, and keeps no mask
        plain.prefill(cache)
        plain.decode(step.q, step.k, step.v)
        assert float((mask != plain.mask).double().mean()) <= 1e-4
        for one, same in zip(layer.store.tensors(), plain.store.tensors(), strict=True):
            torch.testing.assert_close(one, same, rtol=1e-6, atol=0)

    block = layer.kernels.rule.block
    for head in range(HERO.heads):
        for b in range(HERO.batch):
            kv_head, own = head // HERO.group, head % HERO.group
            rows = mask[b, kv_head, own].repeat_interleave(block)[: TOKENS + 1].nonzero()[:, 0]
            kept = (kv[b, kv_head][rows][None, None] for kv in (cache.k, cache.v))
            expected = exact_attention(step.q[b, head][None, None], *kept, HERO.scale)
            assert relative_error(out[b, head][None, None], expected) < BOUNDS[HERO.dtype]
    layer.reset()


@pytest.mark.parametrize("spec", SPECS)
def test_a_captured_step_gives_the_same_bits_again_and_again(spec, hero):
    cache, step = hero
    layer = layer_of(spec, cache)
    eager = layer.decode(step.q, step.k, step.v).clone()
    replay = CapturedDecode(layer, step)
    wrong = sum(not torch.equal(replay(step), eager) for _ in range(200))
    other = Step(step.q.flip(1).contiguous(), step.k.flip(1), step.v.flip(1))
    assert torch.equal(replay(other), layer.decode(other.q, other.k, other.v))
    layer.reset()
    assert wrong == 0, f"{wrong} of 200 replays differ"


@pytest.mark.parametrize("spec", SPECS)
def test_kernels_conform_in_both_precisions_and_grow_inside_a_cuda_graph(spec):
    spec = spec.replace("value=70.0", "value=5.0")
    checks = conform(
        registry.parse(f"{spec},impl=triton"), CUDA, dtypes=(torch.bfloat16, torch.float32)
    )
    assert not [c for c in checks if c.outcome is Outcome.FAILED], "\n" + report(checks)
    assert next(c for c in checks if c.name == "growth in a CUDA graph").passed, report(checks)


def test_nothing_is_kept_but_the_last_block_and_a_replay_says_so(hero):
    cache, step = hero
    layer = layer_of("aether,value=1e9", cache)
    replay = CapturedDecode(layer, step)
    out = replay(replace(step, q=torch.zeros_like(step.q)))
    said = layer.witness()
    assert (said["rescued"], said["blocks_kept"]) == (1.0, 1.0)
    begin = TOKENS // 64 * 64
    rows = torch.cat((cache.v[:, :, begin:TOKENS], step.v), dim=2).double().mean(dim=2)
    expected = rows.repeat_interleave(HERO.group, dim=1)[:, :, None]
    assert relative_error(out, expected) < BOUNDS[HERO.dtype]
    layer.reset()
