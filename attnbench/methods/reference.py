"""Attention by its definition, in float64, and the same with the state of a decode step."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.methods.base import LayerShape, Method
from attnbench.methods.exact_cache import ExactCacheLayer

SUMMED_ROWS = 512  # at a time: a sum over all rows for one token occupies a fraction of a GPU
# Of keys in float64, held at a time: a GPU wants few large products, a CPU what its cache holds.
HELD_BYTES = {"cuda": 1 << 30}
LEAST_HELD_BYTES = 1 << 20


def exact_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q kᵀ) v in float64: [B,H,1,D], [B,Hkv,N,D] twice -> [B,H,1,D].

    Query head h reads KV head h // (H / Hkv). Goes some KV heads at a time, so that only their keys
    and values are held in float64.
    """
    batch, heads, _, head_dim = q.shape
    kv_heads, rows = k.shape[1:3]
    group = heads // kv_heads
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    held_bytes = HELD_BYTES.get(q.device.type, LEAST_HELD_BYTES)
    at_once = max(1, held_bytes // (batch * rows * head_dim * out.itemsize))
    for first in range(0, kv_heads, at_once):
        here = slice(first, first + at_once)
        queries = slice(first * group, (first + at_once) * group)
        asked = q[:, queries].double().reshape(-1, group, head_dim)
        scores = asked @ k[:, here].double().reshape(-1, rows, head_dim).mT * scale
        found = weighted(torch.softmax(scores, dim=-1), v[:, here].double().flatten(0, 1))
        out[:, queries] = found.view(batch, -1, 1, head_dim)
    return out


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """weights [B,G,N] @ values [B,N,D] -> [B,G,D], a stretch of rows at a time, which are added."""
    batch, group, rows = weights.shape
    whole = rows // SUMMED_ROWS * SUMMED_ROWS
    stretches = weights[..., :whole].reshape(batch, group, -1, SUMMED_ROWS).transpose(1, 2)
    summed = stretches @ values[:, :whole].reshape(batch, -1, SUMMED_ROWS, values.shape[-1])
    return summed.sum(dim=1) + weights[..., whole:] @ values[:, whole:]


class ReferenceLayer(ExactCacheLayer):
    """A method's `reference` over the exact cache, one appended token after another."""

    def __init__(self, method: Method, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append one token and attend by the definition; the output is float64."""
        keys, values = self.append(k, v)
        return self.method.reference(q, keys, values, self.shape)
