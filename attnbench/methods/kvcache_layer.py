"""Decode by `flash_attn_with_kvcache`, whose interface two generations of FlashAttention share.

Keys and values are handed over as views [B,capacity,Hkv,D] of the exact cache: only the strides
differ from a cache that is laid out so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape
from attnbench.methods.exact_cache import ExactCacheLayer

# "fused": the kernel writes the new row and reads the lengths from the device, as in an engine.
# "before": the row is written first, and the length is a shape, which spares work on lengths.
Append = Literal["fused", "before"]


class KvCacheLayer(ExactCacheLayer):
    """The exact cache behind `flash_attn_with_kvcache`."""

    def __init__(
        self,
        shape: LayerShape,
        attend: Callable[..., Any],
        append: Append,
        options: Mapping[str, object],
    ) -> None:
        super().__init__(shape)
        self.attend = attend
        self.how = append
        self.options = {"softmax_scale": shape.scale, **options}

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view, and a length for each sequence."""
        super().prefill(cache, q)
        self.lengths = torch.full(
            (self.shape.batch,), self.prefilled, dtype=torch.int32, device=self.shape.device
        )
        self.told = self.prefilled

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend, in one call or in two."""
        query = q.transpose(1, 2)
        if self.how == "before":
            keys, values = (rows.transpose(1, 2) for rows in self.append(k, v))
            out = self.attend(query, keys, values, **self.options)
        else:
            self.tell(self.cache.length.tokens)
            out = self.attend(
                query,
                self.cache.k.transpose(1, 2),
                self.cache.v.transpose(1, 2),
                k=k.transpose(1, 2),
                v=v.transpose(1, 2),
                cache_seqlens=self.lengths,
                **self.options,
            )
        attended: Tensor = out.reshape(q.shape)
        return attended

    def tell(self, tokens: int) -> None:
        """Bring the lengths on the device up to date; a step at an unchanged length does nothing,
        so that nothing of it is captured."""
        if self.told != tokens:
            self.lengths.fill_(tokens)
            self.told = tokens

    def reset(self) -> None:
        """Zero the rows appended since prefill; the lengths are those of prefill again."""
        super().reset()
        self.tell(self.prefilled)

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache and the lengths."""
        yield from super().tensors()
        yield self.lengths
