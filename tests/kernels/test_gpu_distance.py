"""Attention with a bias by distance on a real GPU: bfloat16, long caches, compiled training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnbench.methods import registry
from attnbench.methods.base import CacheLength, CacheView, LayerShape
from attnbench.methods.conformance import BOUNDS, Outcome, conform, relative_error
from attnbench.methods.conformance_graph import CapturedDecode
from attnbench.methods.conformance_scheme import Rows
from attnbench.methods.distance_method import learned_attention
from attnbench.methods.scheme import SchemeConfig
from attnbench.methods.trial import Step
from attnbench.quality.scratch_recipe import preset
from attnbench.quality.scratch_text import ScratchText
from attnbench.quality.scratch_training import Place, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CUDA = torch.device("cuda")
TOKENS = 31999  # and the newest
HERO = LayerShape(4, 32, 8, 64, TOKENS + 33, torch.bfloat16, CUDA, layer=0, scale=0.125)
SPECS = (
    "nope",
    "alibi",
    "sliding_window,window=512",
    "cy_bias",
    "cy_bias,tau=128",
    "cy_bias,mode=comet",
    "cy_bias,tau=512,least_weight=0.01",
)


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


@pytest.mark.parametrize("spec", SPECS)
def test_every_configuration_is_right_at_the_hero_shape_and_a_replay_gives_the_same_bits(
    spec, hero
):
    cache, step = hero
    method = registry.parse(f"{spec},impl=triton")
    reference = method.reference_layer(HERO)
    reference.prefill(cache)
    right = reference.decode(step.q, step.k, step.v)
    reference.reset()
    for config in method.configurations(HERO):
        layer = method.layer(replace(HERO, kernel=config))
        layer.prefill(cache)
        out = layer.decode(step.q, step.k, step.v).clone()
        assert relative_error(out, right) < BOUNDS[HERO.dtype], config
        replay = CapturedDecode(layer, step)
        assert all(torch.equal(replay(step), out) for _ in range(50)), config
        layer.reset()


def test_the_recurrence_in_registers_is_right_at_4096_tokens():
    method = registry.parse("cy_bias,tau=512,tail=exact,impl=triton")
    checks = conform(method, CUDA, dtypes=(torch.float32, torch.bfloat16))
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "spec",
    [
        "alibi,learn=true",
        "sliding_window",
        "cy_bias,mode=holo,curvature=free",
        "cy_bias,mode=comet,shift=256",
        "cy_bias,mode=softmax_temp",
    ],
)
@pytest.mark.parametrize(("tokens", "head_dim"), [(1024, 64), (777, 128)])
def test_full_sequences_and_their_gradients_agree_with_float64(spec, dtype, tokens, head_dim):
    method = registry.parse(f"{spec},impl=triton")
    config = SchemeConfig(2, 8, 2, head_dim, 8 * head_dim, tokens, CUDA)
    attention = method.scheme(config).attention(0)
    rows = Rows.drawn(config, tokens, dtype, batch=2)
    weight = Rows.drawn(config, tokens, dtype, batch=2, seed=1).q
    found = gradients(rows, weight, lambda r: attention(*r.all()), attention)
    wide = Rows(*(x.double() for x in rows.all()))
    wider = method.scheme(config).attention(0).double()
    right = gradients(
        wide, weight, lambda r: learned_attention(*r.all(), wider.bias(), config.scale), wider
    )
    bound = 1e-4 if dtype is torch.float32 else 2 * BOUNDS[dtype]
    for one, other in zip(found, right, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < bound


def gradients(rows, weight, attend, module):
    """Output and gradients of q, k, v and of what the module learns."""
    asked = Rows(*(x.clone().requires_grad_() for x in rows.all()))
    out = attend(asked)
    loss = (out.double() * weight.double()).sum()
    inputs = (*asked.all(), *module.parameters())
    return (out, *torch.autograd.grad(loss, inputs))


def test_a_compiled_layer_gives_what_the_eager_one_gives():
    config = SchemeConfig(1, 8, 8, 64, 512, 512, CUDA)
    scheme = registry.parse("cy_bias,mode=nested,impl=triton").scheme(config)
    rows = Rows.drawn(config, 512, torch.bfloat16, batch=2)
    eager = gradients(rows, rows.q, lambda r: scheme.attend(0)(*r.all()), scheme.attend(0))
    compiled = torch.compile(scheme.attend(0), fullgraph=True)
    again = gradients(rows, rows.q, lambda r: compiled(*r.all()), scheme.attend(0))
    for one, other in zip(eager, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("spec", ["alibi,learn=true", "cy_bias,mode=nested", "sliding_window"])
def test_models_train_in_triton_as_in_pytorch_and_compiled_as_eagerly(spec):
    drawn = np.random.default_rng(0).choice(["the cat ", "sat on ", "a mat. "], size=4000)
    data = np.frombuffer("".join(drawn).encode(), dtype=np.uint8)
    text = ScratchText("words", data[:20_000], data[20_000:])
    recipe = replace(preset("smoke"), width=128, heads=2, kv_heads=1, steps=20, watch_every=10)

    def losses(impl: str, dtype: torch.dtype, compiled: bool) -> list[float]:
        place = Place(CUDA, dtype, compiled=compiled)
        method = registry.parse(f"{spec},impl={impl}")
        return [p.held_out for p in train(recipe, method, 0, text, place, lambda *_: None).curve]

    right = losses("torch", torch.float32, False)
    assert losses("triton", torch.float32, False) == pytest.approx(right, rel=1e-3)
    assert losses("triton", torch.float32, True) == pytest.approx(right, rel=1e-3)
    assert losses("triton", torch.bfloat16, True) == pytest.approx(right, rel=3e-2)
