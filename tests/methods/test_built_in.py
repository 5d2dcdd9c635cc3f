"""The built-in methods: what each promises beyond what conformance asks of all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods import registry
from attnbench.methods.abkv import Abkv
from attnbench.methods.base import CacheLength, CacheView, LayerShape
from attnbench.methods.coded_topk import CodedTopK
from attnbench.methods.conformance import Outcome, conform, relative_error
from attnbench.methods.dcr_topk import DcrTopK
from attnbench.methods.fp8_kv import Fp8Kv
from attnbench.methods.fp8_kv import codes_of as fp8_codes
from attnbench.methods.int4_kv import Int4Kv
from attnbench.methods.int8_kv import Int8Kv, key_scales, nearest_codes, value_scales
from attnbench.methods.mean_k_axis import MeanKAxis
from attnbench.methods.oracle_topk import OracleTopK
from attnbench.methods.random_k import RandomK
from attnbench.methods.rank_window import RankWindow
from attnbench.methods.reference import exact_attention
from attnbench.methods.sdpa import Sdpa
from attnbench.methods.sink_window import SinkWindow
from attnbench.methods.topk_warm import TopKWarm
from attnbench.methods.trial import Case, Trial

CPU = torch.device("cpu")
IN_TORCH = [
    *registry.exact_methods("cpu"),
    *(registry.parse(spec) for spec in ("zero_cost", "uniform_mean", "random_k")),
    *(
        replace(m, impl="torch")
        for m in (*SinkWindow.variants("cpu"), Int8Kv(), *CodedTopK.variants("cpu"))
    ),
    *(*Int4Kv.variants("cpu"), *OracleTopK.variants("cpu")),
    *(method for method in DcrTopK.variants("cpu") if method.generation == "m1"),
    *(*Int4Kv.variants("cpu"), *Fp8Kv.variants("cpu"), *OracleTopK.variants("cpu")),
    *(*MeanKAxis.variants("cpu")[1:], *Abkv.variants("cpu")[2:]),
    *(*RankWindow.variants("cpu")[1:], *TopKWarm.variants("cpu")[1:]),
]


@pytest.mark.parametrize("method", IN_TORCH, ids=lambda method: method.label)
def test_every_method_in_pytorch_conforms(method):
    checks = conform(method, CPU)
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    assert sum(check.passed for check in checks) >= 25


@pytest.mark.parametrize("backend", ["efficient", "cudnn"])
def test_an_sdpa_backend_that_a_cpu_lacks_is_refused_and_nothing_else_runs(backend):
    method = Sdpa(backend=backend)
    shape = Case(8, 64, 4).shape(torch.float32, CPU, 1)
    with pytest.raises(Unsupported, match=f"backend={backend} does not run on cpu"):
        method.check(shape)
    trial = Trial.make(Case(8, 64, 4), torch.float32, CPU)
    with pytest.raises(Unsupported, match="does not run on cpu"):
        trial.first_output(method.layer(shape))


def test_the_triton_kernel_is_refused_for_head_dimensions_that_it_does_not_have():
    method = registry.parse("flash_decode")
    for head_dim in (32, 64, 128, 256):
        method.check(Case(8, head_dim, 4).shape(torch.float32, CPU, 1))
    for head_dim in (80, 96, 512):
        with pytest.raises(Unsupported, match=f"head dimension {head_dim}"):
            method.check(Case(8, head_dim, 4).shape(torch.float32, CPU, 1))


def test_the_triton_kernels_are_refused_on_a_cpu_without_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    shape = Case(8, 64, 4).shape(torch.float32, CPU, 1)
    triton = ("int8_kv", "int4_kv", "fp8_kv", "sink_window", "coded_topk")
    for spec in ("flash_decode", *(f"{name},impl=triton" for name in triton)):
        with pytest.raises(Unsupported, match="needs a CUDA GPU"):
            registry.parse(spec).check(shape)


def prefilled_int8(tokens: int = 300):
    trial = Trial.make(Case(tokens, 64, 4, batch=2), torch.float16, CPU, 2)
    layer, cache = Int8Kv(impl="torch").layer(trial.shape), trial.cache()
    layer.prefill(cache)
    return trial, layer, cache


def test_int8_keeps_and_reads_about_half_of_a_16_bit_cache():
    trial, layer, cache = prefilled_int8()
    exact = cache.k.nbytes + cache.v.nbytes
    assert sum(tensor.nbytes for tensor in layer.tensors()) < 0.55 * exact
    assert layer.bytes_read() < 0.53 * 301 * trial.shape.row_bytes
    assert layer.bytes_read() > 0.5 * 301 * trial.shape.row_bytes


def test_int8_does_not_need_the_exact_cache_after_prefill():
    trial, layer, cache = prefilled_int8()
    expected = trial.first_output(Int8Kv(impl="torch").layer(trial.shape))
    cache.k.fill_(float("nan"))
    cache.v.fill_(float("nan"))
    step = trial.steps[0]
    assert torch.equal(layer.decode(step.q, step.k, step.v), expected)


def test_int8_keys_beyond_the_prefilled_range_saturate_and_are_counted():
    trial, layer, _ = prefilled_int8()
    step = trial.steps[0]
    assert layer.witness()["appended_key_codes_at_limit"] == 0
    layer.decode(step.q, torch.full_like(step.k, 100.0), step.v)
    assert layer.witness()["appended_key_codes_at_limit"] == step.k.numel()
    layer.reset()
    assert layer.witness()["appended_key_codes_at_limit"] == 0


def test_int8_reset_zeroes_codes_and_scales_from_the_first_appended_token_on():
    trial, layer, cache = prefilled_int8()
    before = [tensor.clone() for tensor in layer.tensors()]
    for output in trial.continued(layer, cache):
        assert output.isfinite().all()
    assert any(not torch.equal(a, b) for a, b in zip(before, layer.tensors(), strict=True))
    layer.reset()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.tensors(), strict=True))


def test_codes_are_within_half_a_step_and_zeros_stay_zero():
    values = torch.randn(2, 3, 50, 8)
    values[0, 0, :, 0] = 0
    worth = key_scales(values)[:, :, None]
    assert ((nearest_codes(values, worth) * worth - values).abs() <= worth * 0.5001).all()
    worth = value_scales(values)[..., None]
    assert ((nearest_codes(values, worth) * worth - values).abs() <= worth * 0.5001).all()
    assert (nearest_codes(values, worth)[0, 0, :, 0] == 0).all()


def test_int8_is_near_exact_attention_but_not_equal_to_it():
    trial = Trial.make(Case(300, 64, 4), torch.float32, CPU)
    int8 = trial.first_output(Int8Kv(impl="torch").layer(trial.shape))
    exact = trial.first_output(Sdpa().layer(trial.shape))
    assert 1e-4 < relative_error(int8, exact) < 5e-2


@pytest.mark.parametrize("scale", ["head", "tensor"])
def test_fp8_codes_are_within_a_sixteenth_and_one_scale_serves_a_head_or_the_layer(scale):
    rows = torch.randn(2, 3, 50, 8)
    rows[0, 1] *= 10
    worth = Fp8Kv(scale=scale).scales(rows)
    largest = rows.abs().amax(dim=(2, 3)) if scale == "head" else rows.abs().max().expand(2, 3)
    assert torch.equal(worth, largest / 448)
    rounded = fp8_codes(rows, worth).float() * worth[:, :, None, None]
    least = 2.0**-10 * worth[:, :, None, None]  # half of the step next to zero
    assert ((rounded - rows).abs() <= rows.abs() / 16 * 1.001 + least).all()


def test_fp8_keeps_a_byte_an_element_and_needs_no_exact_cache():
    trial = Trial.make(Case(300, 64, 4, batch=2), torch.float16, CPU, 1)
    layer, cache = Fp8Kv(impl="torch").layer(trial.shape), trial.cache()
    layer.prefill(cache)
    exact = cache.k.nbytes + cache.v.nbytes
    scales = 2 * 2 * 2 * 4
    assert sum(tensor.nbytes for tensor in layer.tensors()) == exact // 2 + scales
    assert layer.bytes_read() == 301 * trial.shape.row_bytes // 2 + scales
    step = trial.steps[0]
    expected = layer.decode(step.q, step.k, step.v)
    layer.reset()
    cache.k.fill_(float("nan"))
    cache.v.fill_(float("nan"))
    assert torch.equal(layer.decode(step.q, step.k, step.v), expected)


def test_random_k_draws_the_same_rows_again_and_others_for_another_layer_or_seed():
    shape = Case(200, 64, 4).shape(torch.float32, CPU, 1)
    rows = RandomK().drawn(shape, 200)
    assert rows.shape == (1, 2, 30)
    assert torch.equal(rows, RandomK().drawn(shape, 200))
    assert not torch.equal(rows, RandomK(seed=1).drawn(shape, 200))
    assert not torch.equal(rows, RandomK().drawn(replace(shape, layer=4), 200))
    assert not torch.equal(rows[:, 0], rows[:, 1])


def test_zero_cost_returns_a_copy_of_the_query_and_still_appends():
    trial = Trial.make(Case(8, 64, 4), torch.float32, CPU)
    layer, cache = registry.parse("zero_cost").layer(trial.shape), trial.cache()
    layer.prefill(cache)
    step = trial.steps[0]
    out = layer.decode(step.q, step.k, step.v)
    assert torch.equal(out, step.q)
    assert out.data_ptr() != step.q.data_ptr()
    assert torch.equal(cache.k[:, :, 8:9], step.k)
    assert layer.bytes_read() == 0


def test_exact_attention_agrees_with_a_loop_over_heads_and_tokens():
    q, k, v = torch.randn(2, 6, 1, 4), torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    out = exact_attention(q, k, v, 0.7)
    assert out.dtype == torch.float64
    for b in range(2):
        for h in range(6):
            scores = torch.tensor([0.7 * (q[b, h, 0] @ k[b, h // 2, t]) for t in range(5)])
            weights = scores.exp() / scores.exp().sum()
            expected = sum(weights[t] * v[b, h // 2, t] for t in range(5))
            torch.testing.assert_close(out[b, h, 0].float(), expected, rtol=1e-5, atol=1e-6)


def test_every_layer_hands_out_contiguous_outputs_for_strided_inputs():
    shape = LayerShape(2, 8, 2, 64, 40, torch.float32, CPU, 0, 0.125)
    q = torch.randn(2, 1, 8, 64).transpose(1, 2)
    k, v = (torch.randn(2, 1, 2, 64).transpose(1, 2) for _ in range(2))
    for method in IN_TORCH:
        layer = method.layer(shape)
        rows = torch.zeros(2, 2, 40, 64)
        layer.prefill(CacheView(rows, rows.clone(), CacheLength(CPU, 8)))
        out = layer.decode(q, k, v)
        assert out.shape == (2, 8, 1, 64), method.label
        assert out.is_contiguous(), method.label
