"""Conformance on a real GPU: bfloat16 and float16, graphs, every configuration, the full shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods import registry
from attnbench.methods.base import CacheLength, CacheView, LayerShape, Method, MethodLayer
from attnbench.methods.conformance import (
    BOUNDS,
    Check,
    Outcome,
    conform,
    relative_error,
    worst_error,
)
from attnbench.methods.conformance_graph import CASE, CapturedDecode
from attnbench.methods.reference import exact_attention
from attnbench.methods.split_kv import has_ring, ring_configurations
from attnbench.methods.trial import Case, Step, Trial
from tests.kernels.front import write_late

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CUDA = torch.device("cuda")
METHODS = [
    method for name in registry.names() for method in registry.every_implementation(name, "cuda")
]
# Llama-3.2-1B's layer: four sequences of 32768 tokens.
HERO = LayerShape(4, 32, 8, 64, 32768 + 16, torch.bfloat16, CUDA, layer=0, scale=0.125)
FEW_BITS = ("int8_kv", "int4_kv", "fp8_kv")
KERNELS = (
    "flash_decode",
    "sink_window,impl=triton",
    *(f"{name},impl=triton" for name in FEW_BITS),
    "coded_topk,dense=0,impl=triton",
    "coded_topk,dense=0,rows=int8,impl=triton",
)


def report(checks: list[Check]) -> str:
    """Every check in full, failures first, for a log that is read only once."""
    ordered = sorted(checks, key=lambda check: check.outcome is not Outcome.FAILED)
    return "\n".join(
        f"{c.outcome:<8}{c.name}: figure {c.figure} bound {c.bound} {c.detail}" for c in ordered
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_every_method_conforms_in_16_bits_and_in_a_cuda_graph(method):
    # FlexAttention is compiled for every length and dtype, in seconds.
    dtypes = (torch.bfloat16,) if method.name == "flex" else (torch.bfloat16, torch.float16)
    checks = conform(method, CUDA, dtypes=dtypes)
    failed = [check for check in checks if check.outcome is Outcome.FAILED]
    assert not failed, "\n" + report(checks)
    if all(check.outcome is Outcome.SKIPPED for check in checks):
        pytest.skip(checks[0].detail)
    captured = next(check for check in checks if check.name == "CUDA graph")
    if captured.outcome is Outcome.SKIPPED:
        with pytest.raises(Unsupported):
            method.resolved(CUDA).check(CASE.shape(torch.bfloat16, CUDA, 1))


def skip_if_unsupported(method: Method) -> None:
    """FP8 needs instructions that not every GPU has."""
    try:
        method.check(HERO)
    except Unsupported as refusal:
        pytest.skip(refusal.message)


@pytest.mark.parametrize("spec", KERNELS)
def test_kernels_grow_inside_a_cuda_graph(spec):
    skip_if_unsupported(registry.parse(spec))
    checks = conform(registry.parse(spec), CUDA, dtypes=(torch.bfloat16,))
    growth = next(check for check in checks if check.name == "growth in a CUDA graph")
    assert growth.passed, report(checks)


@pytest.mark.parametrize("keys", ["channel", "token"])
def test_a_group_of_four_bit_codes_fills_up_inside_a_cuda_graph(keys):
    method = registry.parse(f"int4_kv,group=16,keys={keys},impl=triton")
    trial = Trial.make(replace(CASE, tokens=1006), torch.bfloat16, CUDA, 4, seed=7)
    layer, cache = method.layer(trial.shape), trial.cache()
    layer.prefill(cache)
    replay = CapturedDecode(layer, trial.steps[0])
    layer.reset()
    expected = trial.appended_by(method.reference_layer(trial.shape))
    for step, wanted in zip(trial.steps, expected, strict=True):
        assert relative_error(replay(step), wanted) < BOUNDS[torch.bfloat16]
        cache.length.advance()


@pytest.mark.parametrize("spec", [spec for spec in KERNELS if "sink" not in spec])
def test_kernels_conform_in_float32_without_tf32(spec):
    skip_if_unsupported(registry.parse(spec))
    checks = conform(registry.parse(spec), CUDA, dtypes=(torch.float32,))
    assert not [c for c in checks if c.outcome is Outcome.FAILED], "\n" + report(checks)


@pytest.fixture(scope="module")
def hero() -> tuple[CacheView, Step]:
    """One layer's cache at full length, and one token to append."""
    torch.manual_seed(0)
    tokens = HERO.capacity - 16
    rows = (HERO.batch, HERO.kv_heads, HERO.capacity, HERO.head_dim)
    k, v = (torch.randn(rows, dtype=HERO.dtype, device=CUDA) for _ in range(2))
    k[:, :, tokens:] = 0
    v[:, :, tokens:] = 0
    new = (HERO.batch, HERO.kv_heads, 1, HERO.head_dim)
    step = Step(
        q=2 * torch.randn((HERO.batch, HERO.heads, 1, HERO.head_dim), device=CUDA).to(HERO.dtype),
        k=torch.randn(new, device=CUDA).to(HERO.dtype),
        v=torch.randn(new, device=CUDA).to(HERO.dtype),
    )
    return CacheView(k, v, CacheLength(CUDA, tokens)), step


def exact_at(hero: tuple[CacheView, Step]) -> torch.Tensor:
    """Exact attention at the full shape, in float64."""
    cache, step = hero
    tokens = cache.length.tokens
    k, v = (
        torch.cat((rows[:, :, :tokens], new), dim=2)
        for rows, new in ((cache.k, step.k), (cache.v, step.v))
    )
    return exact_attention(step.q, k, v, HERO.scale)


def decoded(layer: MethodLayer, hero: tuple[CacheView, Step]) -> torch.Tensor:
    """What one step of a freshly prefilled layer gives; the cache is restored."""
    cache, step = hero
    layer.prefill(cache)
    out = layer.decode(step.q, step.k, step.v).clone()
    layer.reset()
    return out


def test_every_configuration_of_the_exact_kernel_is_right_at_the_full_shape(hero):
    method, expected = registry.parse("flash_decode"), exact_at(hero)
    errors = {
        config: relative_error(decoded(method.layer(replace(HERO, kernel=config)), hero), expected)
        for config in method.configurations(HERO)
    }
    assert max(errors.values()) < BOUNDS[HERO.dtype], errors


def test_the_exact_kernel_is_as_near_to_float64_as_sdpa_at_the_full_shape(hero):
    expected = exact_at(hero)
    errors = {}
    for spec in ("flash_decode", "sdpa", "sdpa,backend=flash", "sdpa,backend=cudnn"):
        method = registry.parse(spec)
        try:
            method.check(HERO)
        except Unsupported as refusal:
            errors[spec] = refusal.message
            continue
        errors[spec] = relative_error(decoded(method.layer(HERO), hero), expected)
    assert errors["flash_decode"] <= 2 * errors["sdpa"], errors


@pytest.mark.parametrize("name", FEW_BITS)
def test_every_configuration_of_a_kernel_of_few_bits_is_right_at_the_full_shape(hero, name):
    method = registry.parse(f"{name},impl=triton")
    skip_if_unsupported(method)
    expected = decoded(method.reference_layer(HERO), hero)
    errors = {
        config: relative_error(decoded(method.layer(replace(HERO, kernel=config)), hero), expected)
        for config in method.configurations(HERO)
    }
    assert max(errors.values()) < BOUNDS[HERO.dtype], errors


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_every_configuration_of_the_coded_selection_keeps_what_pytorch_keeps_at_the_full_shape(
    bits, hero
):
    method = registry.parse(f"coded_topk,bits={bits},dense=0,impl=triton")
    expected = decoded(method.reference_layer(HERO), hero)
    cache, step = hero
    in_torch = replace(method, impl="torch").layer(HERO)
    in_torch.prefill(cache)
    in_torch.decode(step.q, step.k, step.v)
    kept, newest = in_torch.counts[:, 0].clone(), in_torch.codes[:, :, cache.length.tokens].clone()
    in_torch.reset()
    errors = {}
    for config in method.configurations(HERO):
        layer = method.layer(replace(HERO, kernel=config))
        layer.prefill(cache)
        errors[config] = relative_error(layer.decode(step.q, step.k, step.v), expected)
        assert torch.equal(layer.counts.sum(dim=1), kept), config
        assert torch.equal(layer.codes[:, :, cache.length.tokens], newest), config
        layer.reset()
    assert max(errors.values()) < BOUNDS[HERO.dtype], errors


@pytest.mark.parametrize("spec", KERNELS)
def test_a_thousand_replays_at_the_full_shape_give_the_same_bits(spec, hero):
    cache, step = hero
    skip_if_unsupported(registry.parse(spec))
    layer = registry.parse(spec).layer(HERO)
    layer.prefill(cache)
    replay = CapturedDecode(layer, step)
    first = replay(step)
    wrong = sum(not torch.equal(replay(step), first) for _ in range(1000))
    layer.reset()
    assert wrong == 0, f"{wrong} of 1000 replays differ: programs merged before all had published"


def test_offsets_beyond_two_to_the_31_elements_are_right():
    shape = LayerShape(1, 4, 1, 128, (2**31 // 128) + 4096, torch.float16, CUDA, 0, 128**-0.5)
    tokens = shape.capacity - 8
    if torch.cuda.mem_get_info()[0] < 3 * shape.capacity * shape.row_bytes // 2:
        pytest.skip("needs 14 GB of free GPU memory")
    rows = torch.zeros((1, 1, shape.capacity, 128), dtype=shape.dtype, device=CUDA)
    values = torch.zeros_like(rows)
    torch.manual_seed(0)
    far = slice(tokens - 64, tokens)
    rows[:, :, far] = torch.randn((1, 1, 64, 128), device=CUDA).to(shape.dtype)
    values[:, :, far] = torch.randn((1, 1, 64, 128), device=CUDA).to(shape.dtype)
    rows[:, :, :-72, 0] = -60000.0  # all other tokens weigh nothing
    q = torch.ones((1, 4, 1, 128), dtype=shape.dtype, device=CUDA)
    k, v = rows[:, :, tokens - 1 : tokens].clone(), values[:, :, tokens - 1 : tokens].clone()
    layer = registry.parse("flash_decode").layer(shape)
    layer.prefill(CacheView(rows, values, CacheLength(CUDA, tokens)))
    out = layer.decode(q, k, v)
    near = slice(tokens - 64, tokens + 1)
    expected = exact_attention(q, rows[:, :, near], values[:, :, near], shape.scale)
    assert torch.equal(rows[:, :, tokens : tokens + 1], k)
    assert relative_error(out, expected) < BOUNDS[shape.dtype]


@pytest.mark.parametrize("tokens", [1500, 1408, 129, 128, 1])
@pytest.mark.parametrize("before", [300, 1500, 0])
@pytest.mark.parametrize("wait_ns", [0, 500, 1000, 2000, 4000, 50_000])
def test_what_the_kernel_in_front_writes_last_is_read(tokens, before, wait_ns):
    """The length and the newest cached row are written while the kernel behind already runs, some
    of its threads perhaps having read the length and others not."""
    shape = replace(HERO, batch=1, heads=4, kv_heads=1, capacity=2048)
    method = registry.parse("flash_decode")
    torch.manual_seed(tokens)
    k, v = (torch.randn((1, 1, 2048, 64), device=CUDA).to(shape.dtype) for _ in range(2))
    q = 2 * torch.randn((1, 4, 1, 64), device=CUDA).to(shape.dtype)
    new = Step(q, *(torch.randn((1, 1, 1, 64), device=CUDA).to(shape.dtype) for _ in range(2)))
    expected = exact_attention(
        new.q,
        torch.cat((k[:, :, :tokens], new.k), dim=2),
        torch.cat((v[:, :, :tokens], new.v), dim=2),
        shape.scale,
    )
    newest = v[0, 0, tokens - 1]
    late = newest.clone()
    cache = CacheView(k, v, CacheLength(CUDA, before))
    layer = method.layer(shape)
    layer.prefill(cache)

    def both() -> torch.Tensor:
        write_late(cache.length.tensor, tokens, newest, late, wait_ns)
        return layer.decode(new.q, new.k, new.v)

    both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = both()
    for _ in range(50):
        cache.length.tensor.fill_(before)
        newest.fill_(float("nan"))
        graph.replay()
        assert relative_error(out, expected) < BOUNDS[shape.dtype]


@pytest.mark.parametrize("group", [1, 2, 5, 16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("tokens", [1, 127, 1000, 20000])
def test_the_ring_kernel_is_right_for_any_group_and_every_configuration(group, head_dim, tokens):
    trial = Trial.make(Case(tokens, head_dim, group, batch=3), HERO.dtype, CUDA, appended=2)
    if not has_ring(trial.shape):
        pytest.skip("this GPU has no copy engine")
    method = registry.parse("flash_decode")
    expected = list(trial.appended_by(method.reference_layer(trial.shape)))
    for config in ring_configurations(trial.shape, 4 * head_dim):
        layer = method.layer(replace(trial.shape, kernel=config))
        assert worst_error(trial.appended_by(layer), iter(expected))[0] < BOUNDS[HERO.dtype], config


def test_rows_beyond_the_cache_may_hold_no_number():
    trial = replace(
        Trial.make(Case(1000, 64, 4, batch=2), HERO.dtype, CUDA, appended=2), tail=float("nan")
    )
    method = registry.parse("flash_decode")
    expected = trial.appended_by(method.reference_layer(trial.shape))
    got = trial.appended_by(method.layer(trial.shape))
    assert worst_error(got, expected)[0] < BOUNDS[HERO.dtype]
