"""Attention by its definition, in float64, and the same with the state of a decode step."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.methods.base import LayerShape, Method
from attnbench.methods.exact_cache import ExactCacheLayer

SUMMED_ROWS = 512  # at a time: a sum over all rows for one token occupies a fraction of a GPU


def exact_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q kᵀ) v in float64: [B,H,1,D], [B,Hkv,N,D] twice -> [B,H,1,D].

    Query head h reads KV head h // (H / Hkv). Goes KV head by KV head, so that only one head's keys
    and values are held in float64 at a time.
    """
    group = q.shape[1] // k.shape[1]
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for head in range(k.shape[1]):
        queries = slice(head * group, (head + 1) * group)
        scores = q[:, queries, 0].double() @ k[:, head].double().mT * scale
        out[:, queries, 0] = weighted(torch.softmax(scores, dim=-1), v[:, head].double())
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
