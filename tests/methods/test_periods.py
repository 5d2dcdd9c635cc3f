"""Which steps of a growing cache do more than the others, by the operators that they call."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.methods.base import CacheLength, CacheView, LayerShape, MethodLayer
from attnbench.methods.registry import parse

FIRST, STEPS = 60, 38  # past an end of every group and block below, of most several


class Operators(TorchDispatchMode):
    """Counts them, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.called: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.called[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


def grown(method) -> tuple[MethodLayer, list[Counter[str]]]:
    """What each step called, the first of them at `FIRST` cached tokens; the layer, at that length
    again."""
    torch.manual_seed(0)
    shape = LayerShape(
        batch=2,
        heads=4,
        kv_heads=2,
        head_dim=64,
        capacity=FIRST + STEPS,
        dtype=torch.float32,
        device=torch.device("cpu"),
        layer=2,  # where no method attends to everything
        scale=0.125,
    )
    size = (2, 2, shape.capacity, 64)
    cache = CacheView(torch.randn(size), torch.randn(size), CacheLength(shape.device, FIRST))
    cache.k[:, :, FIRST:], cache.v[:, :, FIRST:] = 0, 0
    layer = method.layer(shape)
    layer.prefill(cache)
    calls = []
    for _ in range(STEPS):
        q, k, v = torch.randn(2, 4, 1, 64), torch.randn(2, 2, 1, 64), torch.randn(2, 2, 1, 64)
        with Operators() as operators:
            layer.decode(q, k, v)
        calls.append(operators.called)
        cache.length.advance()
    cache.length.set(FIRST)
    return layer, calls


EVEN = (
    "sdpa",
    "int8_kv,impl=torch",
    "fp8_kv,impl=torch",
    "fp8_kv,impl=torch,scale=tensor",
    "coded_topk,impl=torch,share=0.3,sample=64,sinks=2,recent=6",
    "quest,share=0.3,page=8",
    "aether,block=8,value=0.1",
    "aether,block=8,variant=cone,threshold=share,value=0.5",
    "aether,block=4,variant=scaled,levels=2,fan=4,value=5.0",
    "dcr_topk,k_min=8",
    "topk_warm,k_min=8,recent=4,refresh=6",
)


@pytest.mark.parametrize("spec", EVEN)
def test_a_method_without_a_period_calls_the_same_at_every_length(spec):
    method = parse(spec)
    layer, calls = grown(method)
    assert method.period == 1
    assert type(layer).maintain is MethodLayer.maintain
    assert len({tuple(sorted(called.items())) for called in calls}) == 1


@pytest.mark.parametrize("settings", ["group=16", "keys=token,group=24", "values=exact,group=32"])
def test_the_period_of_a_four_bit_cache_is_the_group_whose_last_token_makes_codes_of_it(settings):
    method = parse(f"int4_kv,impl=torch,{settings}")
    layer, calls = grown(method)
    fewest = min(called.total() for called in calls)
    more = [FIRST + step + 1 for step, called in enumerate(calls) if called.total() > fewest]
    ends = [end for end in range(FIRST + 1, FIRST + STEPS + 1) if end % method.period == 0]
    assert more == ends
    assert ends
    extra = calls[ends[0] - FIRST - 1] - calls[0]
    with Operators() as operators:
        layer.maintain()
    assert operators.called == extra
