"""The four-bit cache: what is a code and what is not, and that bytes and state are as they are."""

from __future__ import annotations

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods import registry
from attnbench.methods.conformance import BOUNDS, relative_error, worst_error
from attnbench.methods.int4_kv import (
    LARGEST_CODE,
    Int4Kv,
    by_group,
    codes_of,
    packed,
    scales,
    unpacked,
)
from attnbench.methods.reference import exact_attention
from attnbench.methods.trial import Case, Trial, prefilled

CPU = torch.device("cpu")
SPECS = (
    "int4_kv,group=16",
    "int4_kv,group=16,keys=token",
    "int4_kv,group=16,values=exact",
)


def trial_of(tokens: int, appended: int = 1, dtype: torch.dtype = torch.float16) -> Trial:
    return Trial.make(Case(tokens, 64, 4, batch=2), dtype, CPU, appended)


def rounded(values: torch.Tensor) -> torch.Tensor:
    """One range in four bits, from its definition: float64 over all of `values`."""
    least, most = float(values.amin()), float(values.amax())
    zero = float(torch.tensor(least).half())
    scale = float(torch.tensor((most - zero) / LARGEST_CODE).half())
    codes = ((values.double() - zero) / scale + 0.5).floor().clamp(0, LARGEST_CODE)
    return codes * scale + zero


@pytest.mark.parametrize("keys", ["channel", "token"])
@pytest.mark.parametrize("values", ["token", "exact"])
def test_it_attends_to_what_a_loop_over_groups_channels_and_tokens_rounds(keys, values):
    trial = trial_of(40)
    step = trial.steps[0]
    k = torch.cat((trial.k, step.k), dim=2).double()
    v = torch.cat((trial.v, step.v), dim=2).double()
    for b in range(2):
        for h in range(trial.case.kv_heads):
            for n in range(32):
                if keys == "token":
                    k[b, h, n] = rounded(trial.k[b, h, n])
                if values == "token":
                    v[b, h, n] = rounded(trial.v[b, h, n])
            for d in range(64 if keys == "channel" else 0):
                for begin in (0, 16):
                    rows = slice(begin, begin + 16)
                    k[b, h, rows, d] = rounded(trial.k[b, h, rows, d])
    expected = exact_attention(step.q, k, v, trial.shape.scale)
    method = Int4Kv(keys=keys, values=values, group=16)
    assert relative_error(trial.first_output(method.reference_layer(trial.shape)), expected) < 1e-4
    out = trial.first_output(method.layer(trial.shape))
    assert relative_error(out, expected) < BOUNDS[torch.float16]
    assert relative_error(expected, exact_attention(step.q, *exact_rows(trial), 0.125)) > 1e-2


def exact_rows(trial: Trial) -> tuple[torch.Tensor, torch.Tensor]:
    step = trial.steps[0]
    return torch.cat((trial.k, step.k), dim=2), torch.cat((trial.v, step.v), dim=2)


@pytest.mark.parametrize("sharing", ["channel", "token"])
def test_codes_are_whole_numbers_of_four_bits_and_half_a_step_off(sharing):
    rows = torch.randn(2, 3, 32, 8) * 5 + 3
    rows[0, 0, :, 0] = 0.0  # no step at all
    grouped = by_group(rows, 16)
    scale, zero = scales(grouped, sharing)
    codes = codes_of(grouped, scale, zero)
    assert codes.amin() == 0
    assert codes.amax() == LARGEST_CODE
    assert torch.equal(codes, codes.round())
    off = (codes * scale.float() + zero.float() - grouped).abs()
    rounding = zero.float().abs() * 2.0**-11 + scale.float() * LARGEST_CODE * 2.0**-11
    assert (off <= scale.float() / 2 + 2 * rounding + 1e-6).all()
    assert torch.equal(unpacked(packed(codes)).float(), codes)
    assert packed(codes).shape == (2, 3, 2, 16, 4)


def test_ranges_that_float16_does_not_hold_stay_finite():
    for rows in (torch.tensor([[-1e30, 3e38]]), torch.tensor([[1e-30, 3e-30]])):
        grouped = rows.view(1, 1, 1, 1, 2)
        scale, zero = scales(grouped, "token")
        worth = codes_of(grouped, scale, zero) * scale.float() + zero.float()
        assert worth.isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("tokens", [12, 15, 16, 17])
def test_groups_that_fill_while_decoding_become_the_codes_that_prefill_would_make(spec, tokens):
    trial = trial_of(tokens, appended=37)
    method = registry.parse(spec)
    layer, cache = prefilled(method, trial)
    decoded = list(trial.continued(layer, cache))
    error, _ = worst_error(iter(decoded), trial.appended_by(method.reference_layer(trial.shape)))
    assert error < BOUNDS[torch.float16]
    anew = method.layer(trial.shape)
    appended = trial.cache()
    for step in trial.steps:
        row = appended.length.tokens
        appended.k[:, :, row : row + 1], appended.v[:, :, row : row + 1] = step.k, step.v
        appended.length.advance()
    anew.prefill(appended)
    codes = [t for t in layer.tensors() if t.dtype == torch.uint8]
    assert codes
    for made, whole in zip(
        codes, (t for t in anew.tensors() if t.dtype == torch.uint8), strict=True
    ):
        assert torch.equal(made, whole)


@pytest.mark.parametrize("spec", SPECS)
def test_reset_after_groups_were_filled_gives_all_of_prefill_back(spec):
    trial = trial_of(21, appended=40)
    layer, cache = prefilled(registry.parse(spec), trial)
    before = [tensor.clone() for tensor in layer.tensors()]
    first = [out.clone() for out in trial.continued(layer, cache)]
    assert any(not torch.equal(a, b) for a, b in zip(before, layer.tensors(), strict=True))
    layer.reset()
    cache.length.set(21)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.tensors(), strict=True))
    for again, out in zip(trial.continued(layer, cache), first, strict=True):
        assert torch.equal(again, out)


@pytest.mark.parametrize("spec", SPECS)
def test_a_step_that_fills_a_group_may_be_repeated(spec):
    """As a captured one is, on other inputs."""
    trial = trial_of(31, appended=2)
    method = registry.parse(spec)
    layer, _ = prefilled(method, trial)
    for step in (*trial.steps, *trial.steps):
        expected = method.reference_layer(trial.shape)
        expected.prefill(trial.cache())
        out = layer.decode(step.q, step.k, step.v)
        error = relative_error(out, expected.decode(step.q, step.k, step.v))
        assert error < BOUNDS[torch.float16]


def test_bytes_are_those_of_packed_codes_scales_zeros_and_exact_rows():
    trial = trial_of(300)
    heads, dim = 2 * trial.case.kv_heads, 64
    layer, _ = prefilled(Int4Kv(), trial)
    coded = heads * 256 * dim // 2
    key_scales, value_scales = heads * 2 * dim * 2 * 2, heads * 256 * 2 * 2
    residual = heads * 45 * dim * 2
    assert layer.bytes_read() == 2 * coded + key_scales + value_scales + 2 * residual
    sizes = {tensor.dtype: 0 for tensor in layer.tensors()}
    for tensor in layer.tensors():
        sizes[tensor.dtype] += tensor.nbytes
    assert sizes[torch.uint8] == 2 * coded
    layer, cache = prefilled(Int4Kv(values="exact"), trial)
    assert layer.bytes_read() == coded + key_scales + residual + heads * 301 * dim * 2
    assert any(tensor is cache.v for tensor in layer.tensors())
    layer, _ = prefilled(Int4Kv(keys="token"), trial)
    assert layer.bytes_read() == 2 * coded + 2 * value_scales + 2 * residual


def test_a_long_cache_takes_and_reads_between_a_quarter_and_a_third_of_16_bits():
    trial = trial_of(4096)
    layer, cache = prefilled(Int4Kv(), trial)
    exact = cache.k.nbytes + cache.v.nbytes
    assert 0.25 * exact < layer.bytes_read() < 0.3 * exact
    assert sum(tensor.nbytes for tensor in layer.tensors()) < 0.32 * exact


def test_what_was_rounded_is_not_read_from_the_exact_cache_again():
    trial = trial_of(40)
    step = trial.steps[0]
    expected = trial.first_output(Int4Kv(group=16).layer(trial.shape))
    layer, cache = prefilled(Int4Kv(group=16), trial)
    cache.k.fill_(float("nan"))
    cache.v.fill_(float("nan"))
    assert torch.equal(layer.decode(step.q, step.k, step.v), expected)


def test_the_witness_counts_what_is_exact():
    layer, _ = prefilled(Int4Kv(group=16), trial_of(40))
    assert layer.witness() == {"kept_share": 1.0, "attended_tokens": 41.0, "exact_tokens": 9.0}


def test_an_odd_head_dimension_is_refused():
    shape = Case(8, 63, 4).shape(torch.float32, CPU, 1)
    with pytest.raises(Unsupported, match="head dimension 63 is odd"):
        Int4Kv().check(shape)
