"""Exact attention: causal over a prompt, and one token over a cache or its last rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import LayerShape
from attnbench.methods.exact_cache import ExactCacheLayer


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


class ExactLayer(ExactCacheLayer):
    """Exact attention over the cache, or over its last `window` rows, the new one among them.

    Sliding-window layers decode with this in every arm.
    """

    def __init__(self, shape: LayerShape, window: int | None = None) -> None:
        super().__init__(shape)
        self._window = window

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new row, then attend to the rows in sight."""
        keys, values = self.append(k, v)
        first = self.visible - self.attended
        return scaled_dot_product_attention(
            q,
            keys[:, :, first:],
            values[:, :, first:],
            scale=self.shape.scale,
            enable_gqa=self.shape.group > 1,
        )

    @property
    def attended(self) -> int:
        """Tokens that the current step sees."""
        return self.visible if self._window is None else min(self.visible, self._window)
