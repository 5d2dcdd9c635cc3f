"""Attention as three eager operations over a concatenated and repeated cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention


@dataclass(frozen=True)
class EagerRepeatKv(Method):
    """Concatenates the cache with the new row, repeats heads, then matmul, float32 softmax, matmul.

    Exact up to scores that are rounded to the model's dtype. The slowest common baseline: several
    papers and repositories call it SDPA.
    """

    name: ClassVar[str] = "eager_repeat_kv"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "transformers: eager_attention_forward with DynamicCache"

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention."""
        return exact_attention(q, k, v, shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that copies the cache at every step."""
        return EagerRepeatKvLayer(shape)


class EagerRepeatKvLayer(ExactCacheLayer):
    """Concatenates and repeats the whole cache at every step."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Copy the cache with the new row at its end, repeat it, attend in eager operations."""
        cached = self.cache.length.tokens
        keys = torch.cat((self.cache.k[:, :, :cached], k), dim=2)
        values = torch.cat((self.cache.v[:, :, :cached], v), dim=2)
        self.append(k, v)
        keys = keys.repeat_interleave(self.shape.group, dim=1)
        values = values.repeat_interleave(self.shape.group, dim=1)
        scores = (q @ keys.mT) * self.shape.scale
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype) @ values
