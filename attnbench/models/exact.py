"""Exact attention: causal over a prompt, and one token over a cache or its last rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import CacheView, LayerShape, MethodLayer


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """Attention of the last n tokens of m: q [B,H,n,D], k and v [B,Hkv,m,D] -> [B,H,n,D].

    Token i of the m sees tokens up to i, and with a window only the last `window` of those.
    """
    rows, total = q.shape[-2], k.shape[-2]
    if rows == total and (window is None or window >= total):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    mask = _lower_right_mask(rows, total, window, q.device)
    if q.device.type != "cuda":
        return scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    # No fused CUDA kernel takes a mask with grouped queries; the unfused one would hold all scores.
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return scaled_dot_product_attention(q, k, v, mask, scale=scale)


def _lower_right_mask(rows: int, total: int, window: int | None, device: torch.device) -> Tensor:
    """[rows, total] of bool: the last query is aligned with the last key."""
    query = torch.arange(total - rows, total, device=device)[:, None]
    key = torch.arange(total, device=device)[None, :]
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


class ExactLayer(MethodLayer):
    """Exact attention over the cache, or over its last `window` rows, the new one among them.

    Sliding-window layers decode with this in every arm.
    """

    def __init__(self, shape: LayerShape, window: int | None = None) -> None:
        self._shape = shape
        self._window = window
        self._view: CacheView | None = None

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        del q
        self._view = cache

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        view = self._cache
        row, end = view.length.tokens, view.length.tokens + 1
        view.k[:, :, row:end].copy_(k)
        view.v[:, :, row:end].copy_(v)
        first = end - self._attended
        return scaled_dot_product_attention(
            q,
            view.k[:, :, first:end],
            view.v[:, :, first:end],
            scale=self._shape.scale,
            enable_gqa=self._shape.group > 1,
        )

    def reset(self) -> None:
        view = self._cache
        for rows in (view.k, view.v):
            rows[:, :, view.length.tokens :].zero_()

    def tensors(self) -> Iterator[Tensor]:
        yield self._cache.k
        yield self._cache.v

    def bytes_read(self) -> int:
        return self._attended * self._shape.row_bytes

    def witness(self) -> Mapping[str, float]:
        return {"kept_share": self._attended / (self._cache.length.tokens + 1)}

    @property
    def _cache(self) -> CacheView:
        if self._view is None:
            raise RuntimeError("prefill comes before the first step")
        return self._view

    @property
    def _attended(self) -> int:
        """Tokens that the current step sees."""
        end = self._cache.length.tokens + 1
        return end if self._window is None else min(end, self._window)
