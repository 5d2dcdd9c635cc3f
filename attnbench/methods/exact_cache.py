"""What every layer that keeps the exact cache shares: the view, the appended row, the reset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer


class ExactCacheLayer(MethodLayer):
    """Keeps the view of the exact cache; attends to all of it unless a subclass says otherwise."""

    cache: CacheView

    def __init__(self, shape: LayerShape) -> None:
        self.shape = shape
        self.prefilled = 0

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view and remember how long it was."""
        del q
        self.cache = cache
        self.prefilled = cache.length.tokens

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new row; returns keys and values [B,Hkv,N+1,D] as views of the cache."""
        row, keys, values = self.cache.length.tokens, self.cache.k, self.cache.v
        if keys.is_cuda and keys.is_contiguous() and values.is_contiguous():
            from attnbench.kernels.append import append_row

            append_row(k, v, keys, values, row)
        else:
            keys[:, :, row : row + 1].copy_(k)
            values[:, :, row : row + 1].copy_(v)
        return keys[:, :, : row + 1], values[:, :, : row + 1]

    def reset(self) -> None:
        """Zero the rows appended since prefill."""
        self.cache.k[:, :, self.prefilled :].zero_()
        self.cache.v[:, :, self.prefilled :].zero_()

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache."""
        yield self.cache.k
        yield self.cache.v

    @property
    def visible(self) -> int:
        """Tokens that a decode step at this length may attend to: the cached ones and its own."""
        return self.cache.length.tokens + 1

    @property
    def attended(self) -> int:
        """Tokens that a decode step at this length attends to, of each sequence and KV head."""
        return self.visible

    def bytes_read(self) -> int:
        """Keys and values of the attended tokens."""
        return self.attended * self.shape.row_bytes

    def witness(self) -> Mapping[str, float]:
        """The attended share of what is visible."""
        return {"kept_share": self.attended / self.visible, "attended_tokens": float(self.attended)}
