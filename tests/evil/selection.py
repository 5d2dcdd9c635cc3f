"""Exact attention over the tokens with the highest scores: what honest and other selections use."""

from __future__ import annotations

from torch import Tensor

from attnbench.methods.base import LayerShape
from attnbench.methods.random_k import gathered, with_newest
from attnbench.methods.reference import exact_attention


def budget(share: float, tokens: int) -> int:
    """Tokens to keep of so many cached ones."""
    return max(1, round(share * tokens))


def top_rows(q: Tensor, keys: Tensor, count: int, group: int) -> Tensor:
    """Rows [B,Hkv,count] of keys [B,Hkv,N,D] that the mean query of each group scores highest."""
    mean = q.reshape(q.shape[0], -1, group, q.shape[-1]).mean(dim=2)
    scores = (keys @ mean[..., None])[..., 0]
    return scores.topk(min(count, keys.shape[2]), dim=-1).indices


def chosen_exactly(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, shape: LayerShape) -> Tensor:
    """The definition: exact attention over `rows` and the newest one, float64."""
    rows = with_newest(rows, k.shape[2] - 1)
    return exact_attention(q, gathered(k, rows), gathered(v, rows), shape.scale)
