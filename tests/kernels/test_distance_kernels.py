"""Attention with a bias by distance in Triton: decoding, full sequences and their gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.kernels.distance_backward import distance_backward
from attnbench.kernels.distance_forward import FullLaunch, distance_forward
from attnbench.methods import conformance_checks as checks
from attnbench.methods import registry
from attnbench.methods.base import KernelConfig
from attnbench.methods.conformance import BOUNDS, Outcome, worst_error
from attnbench.methods.conformance_scheme import Rows
from attnbench.methods.distance_bias import Coefficients, HeadBias
from attnbench.methods.distance_launch import attend, fields_of, form_of, numbers_of, table_of
from attnbench.methods.distance_method import learned_attention
from attnbench.methods.scheme import SchemeConfig
from attnbench.methods.trial import Case, Trial, prefilled

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = FullLaunch(16, 32, 4, 2)
SCALE = 0.11
SPECS = (
    "nope",
    "sliding_window,window=24",
    "alibi,learn=true",
    "cy_bias,tau=20",
    "cy_bias,mode=holo,curvature=free",
    "cy_bias,mode=comet,shift=20,curvature=zero",
    "cy_bias,mode=nested",
    "cy_bias,mode=softmax_temp",
    "cy_bias,tau=20,least_weight=0.01",
)


def in_triton(spec):
    return registry.parse(f"{spec},impl=triton")


@pytest.mark.parametrize("spec", SPECS)
def test_decoding_agrees_with_the_definition(spec):
    method = in_triton(spec)
    trial = Trial.make(Case(75, 64, 4), torch.float32, DEVICE, 2, seed=5)
    config = KernelConfig(block_n=32, splits=3, num_warps=4, num_stages=2)
    layer = method.layer(replace(trial.shape, kernel=config))
    reference = trial.appended_by(method.reference_layer(trial.shape))
    assert worst_error(trial.appended_by(layer), reference)[0] < BOUNDS[torch.float32]


@pytest.mark.parametrize("spec", ["cy_bias,tau=20", "cy_bias,mode=comet,shift=5,tau=20"])
def test_the_recurrence_in_registers_agrees_with_whole_numbers(spec):
    method = in_triton(f"{spec},tail=exact")
    trial = Trial.make(Case(75, 64, 3, kv_heads=1), torch.float32, DEVICE, 1, seed=5)
    config = KernelConfig(block_n=32, splits=2, num_warps=4, num_stages=2)
    layer = method.layer(replace(trial.shape, kernel=config))
    exact = list(trial.appended_by(method.reference_layer(trial.shape)))
    assert worst_error(trial.appended_by(layer), iter(exact))[0] < BOUNDS[torch.float32]
    tail = replace(method, tail="asymptotic")
    apart = worst_error(iter(exact), trial.appended_by(tail.reference_layer(trial.shape)))[0]
    assert apart > BOUNDS[torch.float32]  # so that it is the recurrence that was computed


@pytest.mark.parametrize(
    "check",
    [checks.stale_tail, checks.reset, checks.bytes_read, checks.declared_state],
    ids=lambda check: check.__name__,
)
def test_decoding_in_triton_conforms(check):
    method = in_triton("cy_bias,tau=20,least_weight=0.3")
    assert check(method, torch.float16, DEVICE).outcome is Outcome.PASSED


def test_what_is_declared_of_a_cut_is_what_the_kernel_attends_to():
    trial = Trial.make(Case(20, 64, 2, kv_heads=1), torch.float32, DEVICE, sharpness=0.25)
    method = in_triton("cy_bias,tau=4,least_weight=0.1")
    layer, cache = prefilled(method, trial)
    clean = next(trial.continued(layer, cache))
    declared = layer.witness()["attended_tokens"]
    moves = []
    for token in range(20):
        negated = trial.with_negated(token)
        moves.append(not torch.equal(negated.first_output(method.layer(trial.shape)), clean))
    assert sum(moves) + 1 == declared == method.reaches(2)[0]


def moved(spec, heads, dtype=torch.float64):
    """The bias of a method with numbers moved as by training, in float64."""
    method = in_triton(spec)
    bias = method.untrained(heads, DEVICE)
    generator = torch.Generator().manual_seed(3)
    by = [1 + 0.3 * torch.rand(heads, generator=generator).to(n) for n in bias.numbers]
    numbers = Coefficients(*(n * b for n, b in zip(bias.numbers, by, strict=True)))
    return HeadBias(bias.rule, Coefficients(*(n.to(dtype) for n in numbers)), bias.reach)


def drawn(tokens, heads=4, kv_heads=2, head_dim=32, dtype=torch.float32, batch=2):
    config = SchemeConfig(1, heads, kv_heads, head_dim, 1, tokens, DEVICE)
    return Rows.drawn(config, tokens, dtype, batch=batch, seed=tokens)


def defined(rows, bias):
    """Output and gradients in float64, of a loss that weighs outputs unevenly."""
    exact = Rows(*(x.double().requires_grad_() for x in rows.all()))
    numbers = Coefficients(*(n.clone().requires_grad_() for n in bias.numbers))
    out = learned_attention(*exact.all(), HeadBias(bias.rule, numbers, bias.reach), SCALE)
    loss = (out * weight_of(out)).sum()
    inputs = (*exact.all(), *numbers)
    return out, torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


def weight_of(out):
    generator = torch.Generator().manual_seed(9)
    return torch.randn(out.shape, generator=generator).to(out)


def error(found, right):
    apart = (found.double() - right).norm() / right.norm().clamp(min=1e-6)
    return float(apart.detach())


@pytest.mark.parametrize(
    "spec", [spec for spec in SPECS if spec not in ("nope", "alibi,learn=true", "cy_bias,tau=20")]
)
def test_full_sequences_and_their_gradients_agree_with_float64(spec):
    rows, bias = drawn(75, heads=2, kv_heads=1, batch=1), moved(spec, 2)
    form, numbers = form_of(bias.rule, bias.reach), numbers_of(bias)
    table = table_of(bias.rule, DEVICE)
    out, lse = distance_forward(*rows.all(), form, numbers, table, SCALE, SMALL)
    right, gradients = defined(rows, bias)
    assert error(out, right) < 1e-5
    found = distance_backward(
        weight_of(out), *rows.all(), out, lse, form, numbers, table, SCALE, learns=True,
        launch=SMALL,
    )  # fmt: skip
    for name, one, other in zip(
        ("q", "k", "v", "slope", "curvature", "gain"),
        (*found[:3], *found[3]),
        gradients,
        strict=True,
    ):
        if name == "slope" and bias.rule.kind == "none":
            assert float(other.abs().max()) == 0
            continue
        assert error(one, other) < 5e-5, name


@pytest.mark.parametrize("tokens", [1, 16, 33])
@pytest.mark.parametrize("launch", [SMALL, FullLaunch(32, 16, 4, 2)])
def test_ragged_lengths_and_other_tiles_are_right(tokens, launch):
    rows, bias = drawn(tokens, heads=3, kv_heads=1, batch=1), moved("cy_bias,mode=holo", 3)
    form, numbers = form_of(bias.rule, bias.reach), numbers_of(bias)
    table = table_of(bias.rule, DEVICE)
    out, lse = distance_forward(*rows.all(), form, numbers, table, SCALE, launch)
    right, gradients = defined(rows, bias)
    assert error(out, right) < 1e-5
    found = distance_backward(
        weight_of(out), *rows.all(), out, lse, form, numbers, table, SCALE, learns=True,
        launch=launch,
    )  # fmt: skip
    if tokens > 1:
        assert max(error(a, b) for a, b in zip(found[:3], gradients[:3], strict=True)) < 5e-5
        assert error(found[3][0], gradients[3]) < 5e-5


def test_float16_inputs_as_a_model_lays_them_out_are_near_float64():
    rows, bias = drawn(40, dtype=torch.float16), moved("alibi", 4)
    packed = Rows(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in rows.all()))
    form, numbers = form_of(bias.rule, bias.reach), numbers_of(bias)
    table = table_of(bias.rule, DEVICE)
    out, lse = distance_forward(*packed.all(), form, numbers, table, SCALE)
    assert out.stride() == packed.q.stride()
    right, gradients = defined(rows, bias)
    assert error(out, right) < BOUNDS[torch.float16]
    found = distance_backward(
        weight_of(out), *packed.all(), out, lse, form, numbers, table, SCALE, learns=False
    )
    assert max(error(a, b) for a, b in zip(found[:3], gradients[:3], strict=True)) < 1e-2
    assert float(found[3].abs().max()) == 0  # nothing learns


def test_the_operation_gives_autograd_the_same_gradients_and_none_where_none_is_asked_for():
    rows, bias = drawn(20, batch=1), moved("cy_bias,mode=nested", 4, torch.float32)
    form = fields_of(form_of(bias.rule, bias.reach))
    reach = numbers_of(bias).reach
    table = table_of(bias.rule, DEVICE)
    asked = Rows(*(x.clone().requires_grad_() for x in rows.all()))
    slope = bias.numbers.slope.clone().requires_grad_()
    numbers = Coefficients(slope, bias.numbers.curvature, bias.numbers.gain)
    out = attend(*asked.all(), numbers, reach, table, form, SCALE)
    (out * weight_of(out)).sum().backward()
    wide = HeadBias(bias.rule, Coefficients(*(n.double() for n in bias.numbers)), bias.reach)
    right, gradients = defined(rows, wide)
    assert error(out, right) < 1e-5
    for one, other in zip((*(x.grad for x in asked.all()), slope.grad), gradients, strict=False):
        assert error(one, other) < 5e-5


def test_what_no_kernel_has_is_refused():
    for spec in ("sieve=251", "tail=exact,sequence=s15", "tail=exact,exact_window=2"):
        method = in_triton(f"cy_bias,{spec}")
        with pytest.raises(Unsupported) as refused:
            method.check(Case(8, 64, 4).shape(torch.float32, DEVICE, 1))
        assert "impl=torch" in refused.value.hint
    config = SchemeConfig(1, 4, 2, 64, 256, 64, DEVICE)
    with pytest.raises(Unsupported, match="decodes alone"):
        in_triton("cy_bias,tail=exact").scheme(config)


def test_a_row_that_sees_nothing_but_itself_returns_its_value():
    rows = drawn(33, batch=1)
    bias = moved("sliding_window,window=1", 4)
    form, numbers = form_of(bias.rule, bias.reach), numbers_of(bias)
    table = table_of(bias.rule, DEVICE)
    out, lse = distance_forward(*rows.all(), form, numbers, table, SCALE, SMALL)
    torch.testing.assert_close(out, rows.v.repeat_interleave(2, dim=1))
    own = (rows.q * rows.k.repeat_interleave(2, dim=1)).sum(-1) * SCALE * math.log2(math.e)
    gain = numbers.gain[:, None]
    torch.testing.assert_close(lse, own * gain, atol=1e-4, rtol=1e-4)
