"""What a layer returned must be a plain tensor of its own, finished when it is returned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnbench.measure.taps import Tap, TappedLayer, unlike
from attnbench.methods.base import CacheLength, CacheView, LayerShape
from tests.measure.broken import GoodLayer

CPU = torch.device("cpu")
SHAPE = LayerShape(
    batch=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    capacity=6,
    dtype=torch.float32,
    device=CPU,
    layer=0,
    scale=0.3,
)
SIZE = (2, 4, 1, 8)


class Lazy(Tensor):
    pass


def cache(tokens: int = 5) -> CacheView:
    k, v = (torch.randn(2, 2, 6, 8) for _ in range(2))
    return CacheView(k, v, CacheLength(CPU, tokens))


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(SIZE), torch.randn(2, 2, 1, 8), torch.randn(2, 2, 1, 8)


def said(out: Tensor, shape: LayerShape = SHAPE) -> str:
    return unlike(Tap(*inputs(), out), shape, cache())


def answering(name: str) -> Tensor:
    out = torch.randn(SIZE)
    setattr(out, name, lambda *_: torch.randn(SIZE))
    return out


@pytest.mark.parametrize(
    "out",
    [
        torch.randn(SIZE),
        torch.randn(2, 1, 4, 8).transpose(1, 2),
        torch.randn(4, 4, 1, 16)[::2, ..., :8],
        torch.zeros(SIZE),
    ],
    ids=["fresh", "transposed", "part of its own", "zeros"],
)
def test_a_tensor_of_its_own_is_what_it_should_be(out):
    assert said(out) == ""


@pytest.mark.parametrize(
    ("out", "wrong"),
    [
        (torch.randn(SIZE).as_subclass(Lazy), "a Lazy that is no plain tensor"),
        (torch.nn.Parameter(torch.randn(SIZE)), "a Parameter that is no plain tensor"),
        (answering("clone"), "a Tensor that is no plain tensor"),
        (torch.randn(2, 1, 4, 8), "(2, 1, 4, 8) of torch.float32, not (2, 4, 1, 8)"),
        (torch.randn(2, 4, 8), "(2, 4, 8) of torch.float32"),
        (torch.randn(SIZE).double(), "of torch.float64, not"),
        (torch.randn(SIZE).bfloat16(), "of torch.bfloat16, not"),
        (torch.empty(SIZE, device="meta"), "on meta, not strided on cpu"),
        (torch.randn(SIZE).to_sparse(), "torch.sparse_coo on cpu, not strided"),
        (torch.randn(2, 1, 1, 8).expand(SIZE), "one row shown as several"),
        (torch.randn(SIZE).requires_grad_(), "not computed yet"),
        (torch.randn(SIZE, requires_grad=True) * 2, "not computed yet"),
        (torch._neg_view(torch.randn(SIZE)), "not computed yet"),
    ],
    ids=[
        "subclass", "parameter", "own clone", "transposed", "squeezed", "float64", "bfloat16",
        "meta", "sparse", "expanded", "leaf with gradient", "gradient", "negated",
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_tensor_is_said(out, wrong):
    assert wrong in said(out)


def test_a_lazy_conjugate_is_not_computed_yet():
    shape = replace(SHAPE, dtype=torch.complex64)
    assert "not computed yet" in said(torch.randn(SIZE, dtype=torch.complex64).conj(), shape)
    assert said(torch.randn(SIZE, dtype=torch.complex64), shape) == ""


@pytest.mark.parametrize("which", ["q", "k", "v", "cache k", "cache v"])
def test_a_view_of_an_input_or_of_the_cache_is_no_output(which):
    q, k, v = torch.randn(SIZE), torch.randn(2, 4, 1, 8), torch.randn(2, 4, 1, 8)
    view = cache()
    out = {
        "q": q,
        "k": k.view(SIZE),
        "v": v[:],
        "cache k": view.k.flatten()[:64].view(SIZE),
        "cache v": view.v.flatten()[-64:].view(SIZE),
    }[which]
    assert "a view of an input or of the cache" in unlike(Tap(q, k, v, out), SHAPE, view)


def test_a_layer_that_is_tapped_does_what_it_did_and_keeps_its_last_step():
    plain, tapped = GoodLayer(SHAPE), TappedLayer(GoodLayer(SHAPE))
    view, same = cache(), cache()
    same.k.copy_(view.k)
    same.v.copy_(view.v)
    plain.prefill(view)
    tapped.prefill(same)
    for _ in range(2):
        q, k, v = inputs()
        right, out = plain.decode(q, k, v), tapped.decode(q, k, v)
        assert torch.equal(right, out)
        assert tapped.last.out is out
        assert tapped.last.q is q
    assert tapped.witness() == plain.witness()
    assert tapped.bytes_read() == plain.bytes_read()
    assert [t.data_ptr() for t in tapped.tensors()] == [same.k.data_ptr(), same.v.data_ptr()]
    tapped.reset()
    assert not same.k[:, :, 5:].any()


def test_a_copy_is_not_changed_by_the_next_step():
    tap = Tap(*inputs(), torch.randn(SIZE))
    copied, before = tap.copied(), tap.out.clone()
    for each in (tap.q, tap.k, tap.v, tap.out):
        each.zero_()
    assert torch.equal(copied.out, before)
    assert bool(copied.q.any())


def test_a_copy_is_of_what_memory_holds_and_not_of_what_a_tensor_says_of_itself():
    out = torch.zeros(SIZE)
    out.detach = lambda: torch.ones(SIZE)
    out.to = lambda *_, **__: torch.ones(SIZE)
    assert not Tap(*inputs(), out).copied().out.any()
