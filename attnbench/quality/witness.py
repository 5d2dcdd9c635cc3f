"""Whether the share of tokens that a method says it attends to can be true.

Null models stand at that share, so a share that is too small makes any method look as if it chose
well. No selection of a share of the rows keeps more softmax mass than the rows of the largest
weights, whatever it gives to each head. A method that merged tokens beforehand may seem to: it is
believed where it reads nothing but what it keeps, and that is no larger than it says.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.methods.base import KernelConfig, Method, MethodLayer
from attnbench.quality.replay import LayerTrace, replay

SPARE_SHARE, SPARE_ROWS = 1.25, 64  # of what is kept beside what is declared: indices, alignment


def most_mass(weights: Tensor, share: float, heads: int) -> float:
    """The most softmax mass, averaged over the heads of `weights` [H', R], that a selection can
    keep: `heads` heads, of which these are some, may share out `share` of all their rows."""
    if not len(weights):
        return math.nan
    kept = min(weights.numel(), math.ceil(share * heads * weights.shape[1]))
    return float(weights.flatten().topk(kept).values.sum() / len(weights))


def is_compact(
    method: Method, trace: LayerTrace, share: float, kernel: KernelConfig | None = None
) -> bool:
    """Whether the one step of a trace is the same when the cache is emptied after prefill, and
    what the layer keeps of its own is no larger than the share that it declares."""
    shape = replace(trace.shape, kernel=kernel)
    view = trace.prompt_view()
    layer = method.layer(shape)
    layer.prefill(view)
    for rows in (view.k, view.v):
        rows.zero_()
    kept_bytes = _own_bytes(layer, (view.k, view.v))
    row = slice(trace.context, trace.context + 1)
    output = layer.decode(
        trace.q[0][None, :, None].clone(),
        trace.k[None, :, row].clone(),
        trace.v[None, :, row].clone(),
    )[0, :, 0]
    same = torch.equal(output, replay(method, trace, kernel).outputs[0])
    room = SPARE_SHARE * share * shape.capacity + SPARE_ROWS
    return same and kept_bytes <= room * shape.row_bytes


def _own_bytes(layer: MethodLayer, exact: tuple[Tensor, ...]) -> int:
    """Of the storages that the layer keeps, without those of the exact cache."""
    shared = {rows.untyped_storage().data_ptr() for rows in exact}
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage() for each in layer.tensors()
    }
    return sum(storage.nbytes() for place, storage in storages.items() if place not in shared)
