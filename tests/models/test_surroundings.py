"""What stands around a product, recognised in graphs of small functions; and what is only like it,
which is not."""

from __future__ import annotations

import pytest
import torch
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import silu

from attnbench.models.surroundings import gate_of, norm_of, residual_of

X, OTHER = torch.randn(2, 1, 32), torch.randn(2, 1, 32)
W, WIDE, NORM = torch.randn(32, 32), torch.randn(96, 32), torch.randn(32)
EPSILON = 1e-5


def product_in(function, *inputs, dtype=torch.bfloat16):
    """The node of the one product in the function's graph."""
    traced = make_fx(function, decomposition_table=select_decomp_table())
    graph = traced(*(each.to(dtype) for each in inputs)).graph
    graph.eliminate_dead_code()  # as before a pass of the compiler
    (product,) = (n for n in graph.nodes if n.target is torch.ops.aten.mm.default)
    return product


def times(x, w):
    return torch.mm(x.reshape(2, -1), w.t()).view(2, 1, -1)


def rms(x, norm):
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    return norm * wide.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_rms_norm_is_recognised(dtype):
    product = product_in(lambda x, g, w: times(rms(x, g), w), X, NORM, W, dtype=dtype)
    found = norm_of(product.args[0])
    assert (found.x.name, found.weight.name, found.epsilon) == ("x_1", "g_1", EPSILON)


@pytest.mark.parametrize(
    "other",
    [
        lambda x, g: rms(x, 1 + g),  # Gemma's: its weight is computed
        lambda x, g: rms(x, g) * 1,
        lambda x, g: g * (x.float() * torch.rsqrt(x.float().mean(-1, keepdim=True) + 1e-5)).to(x),
        lambda x, g: g * (x.float() * torch.rsqrt(x.float().pow(2).mean(1, True) + 1e-5)).to(x),
        lambda x, g: (
            g * (x.float() * torch.rsqrt((x + g).float().pow(2).mean(-1, True) + 1e-5)).to(x)
        ),
    ],
)
def test_what_is_only_like_an_rms_norm_is_not(other):
    product = product_in(lambda x, g, w: times(other(x, g), w), X, NORM, W)
    assert norm_of(product.args[0]) is None


def test_a_norm_that_somebody_else_uses_too_is_left_alone():
    def twice(x, g, w):
        normed = rms(x, g)
        return times(normed, w) + normed

    assert norm_of(product_in(twice, X, NORM, W).args[0]) is None


def by_sigmoid(x):
    wide = x.float()
    return (wide * torch.sigmoid(wide)).to(x.dtype)


def by_exponential(x):
    wide = x.float()
    return (wide / (1 + torch.exp(-wide))).to(x.dtype)


@pytest.mark.parametrize("activation", [by_sigmoid, by_exponential])
def test_silu_of_the_left_half_times_the_right_half_is_recognised(activation):
    def gated(x, w):
        out = times(x, w)
        return activation(out[..., :48]) * out[..., 48:96]

    found = gate_of(product_in(gated, X, WIDE))
    assert found.name.startswith("mul")
    assert found.meta["val"].shape == (2, 1, 48)


@pytest.mark.parametrize(
    "other",
    [
        lambda out: by_sigmoid(out[..., 48:96]) * out[..., :48],  # the halves the other way round
        lambda out: by_sigmoid(out[..., :32]) * out[..., 32:64],
        lambda out: torch.tanh(out[..., :48]) * out[..., 48:96],
        lambda out: by_sigmoid(out[..., :48]) + out[..., 48:96],
        lambda out: by_sigmoid(out[..., :48]) * out[..., 48:96] + out[..., :48],
        lambda out: out[..., :48] / (2 + torch.exp(-out[..., :48])) * out[..., 48:96],
    ],
)
def test_what_is_only_like_it_is_not(other):
    assert gate_of(product_in(lambda x, w: other(times(x, w)), X, WIDE)) is None


def test_silu_alone_is_no_gate():
    assert gate_of(product_in(lambda x, w: silu(times(x, w)), X, W)) is None


@pytest.mark.parametrize("turned", [False, True])
def test_a_residual_is_recognised_on_either_side(turned):
    def added(x, other, w):
        return times(x, w) + other if turned else other + times(x, w)

    found = residual_of(product_in(added, X, OTHER, W))
    assert found.other.name == "other_1"
    assert found.total.name == "add"


@pytest.mark.parametrize(
    "other",
    [
        lambda out, other: torch.add(other, out, alpha=2),
        lambda out, other: out + other[:1],
        lambda out, other: out + 1,
        lambda out, other: out + out,
        lambda out, other: (out + other) * out,
        lambda out, other: out + other.float(),
    ],
)
def test_what_is_only_like_a_residual_is_not(other):
    product = product_in(lambda x, o, w: other(times(x, w), o), X, OTHER, W)
    assert residual_of(product) is None
