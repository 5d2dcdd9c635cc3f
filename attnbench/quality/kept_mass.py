"""How much of the attention a method keeps, read off its outputs and not off what it says.

With q and k as they were and values that are zero but for a one in one channel a token, what comes
out of a channel is the weight that the method gave to that token. Going through all tokens so, a
head dimension's worth in each of many sequences side by side, tells the weights of all, and the
part of softmax's weights that
they hold is the kept mass: sum of min(weight, softmax's weight). Of a selection that is exactly the
softmax mass of what it selected; of anything else one minus the total variation distance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnbench.methods.base import CacheLength, CacheView, KernelConfig, Method
from attnbench.quality.metrics import head_metrics
from attnbench.quality.nulls import exact_weights
from attnbench.quality.replay import LayerTrace, replay, require_plain
from attnbench.quality.witness import most_mass

# The weights must explain the real output, as a cosine, or they were not those of the real values:
# a method that looks at values chooses otherwise on ones and zeros.
EXPLAINED = 0.98
ROOM_BYTES = 128 * 1024**2  # of keys and values that stand side by side


@dataclass(frozen=True)
class KeptMass:
    """The softmax mass [H] (float64) that each query head keeps, NaN where the weights that were
    found do not explain its output; and the most, on average over the others, that a selection of
    the declared share could keep."""

    mass: Tensor
    most: float


def kept_mass(method: Method, trace: LayerTrace, kernel: KernelConfig | None = None) -> KeptMass:
    """Of the last step of the trace."""
    last = last_step(trace)
    ran = replay(method, last, kernel)
    weights = effective_weights(method, last, kernel)
    is_explained = _explain(weights, last, ran.outputs[0])
    if not is_explained.all():  # it may choose otherwise in each of many sequences: in one, then
        weights = effective_weights(method, last, kernel, at_once=1)
        is_explained = _explain(weights, last, ran.outputs[0])
    softmax = exact_weights(last.q, last.k, last.v, last.shape.scale, last.context)
    exact = softmax.weights[:, :, 0].flatten(0, 1)
    mass = torch.minimum(weights, exact).clamp_min(0).sum(-1)
    return KeptMass(
        mass.masked_fill(~is_explained, torch.nan),
        most_mass(exact[is_explained], ran.kept_share[0], last.shape.heads),
    )


def _explain(weights: Tensor, last: LayerTrace, output: Tensor) -> Tensor:
    """Whether these weights [H,R] of the last step's values give its output [H,D]: bool [H]."""
    grouped = weights.reshape(last.shape.kv_heads, last.shape.group, -1)
    explained = (grouped @ last.v.double()).flatten(0, 1)
    return head_metrics(explained, output).cosine >= EXPLAINED


def effective_weights(
    method: Method, trace: LayerTrace, kernel: KernelConfig | None = None, at_once: int = 0
) -> Tensor:
    """What each cached row counts for in the one step of a trace: float64 [H, R].

    `at_once` sequences stand side by side; 0: as many as `ROOM_BYTES` hold.
    """
    rows, dim = trace.v.shape[1:]
    most = at_once or max(1, ROOM_BYTES // (trace.shape.row_bytes * trace.shape.capacity))
    told = [
        _told(method, trace, begins, kernel)
        for begins in torch.split(torch.arange(0, rows, dim), most)
    ]
    return torch.cat(told).transpose(0, 1).flatten(1)[:, :rows]


def _told(method: Method, trace: LayerTrace, begins: Tensor, kernel: KernelConfig | None) -> Tensor:
    """What came out of every channel for the rows from each of `begins` [B] on: [B, H, D]."""
    count, context = len(begins), trace.context
    rows, dim = trace.v.shape[1:]
    shape = replace(trace.shape, batch=count, kernel=kernel)
    method.check(shape)
    k = torch.zeros(
        (count, shape.kv_heads, shape.capacity, dim), dtype=trace.k.dtype, device=trace.k.device
    )
    v = torch.zeros_like(k)
    k[:, :, :context] = trace.k[:, :context]
    for values, begin in zip(v, begins.tolist(), strict=True):
        at = torch.arange(min(dim, rows - begin), device=v.device)
        values[:, begin + at, at] = 1.0
    newest_v = v[:, :, context : context + 1].clone()
    v[:, :, context:] = 0.0
    layer = method.layer(shape)
    layer.prefill(CacheView(k, v, CacheLength(k.device, context)))
    q = trace.q[0][None, :, None].expand(count, -1, -1, -1).clone()
    newest_k = trace.k[None, :, context : context + 1].expand(count, -1, -1, -1).clone()
    output = layer.decode(q, newest_k, newest_v)
    require_plain(method, output, q)
    return output[:, :, 0].double()


def last_step(trace: LayerTrace) -> LayerTrace:
    """The trace as if its last step were the only one after the prompt."""
    return replace(trace, context=trace.context + trace.steps - 1, q=trace.q[-1:])
