"""SDPA after repeating every KV head for its group: a slow way that is often timed as "SDPA"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention


@dataclass(frozen=True)
class SdpaRepeatKv(Method):
    """Writes K and V out once for each query head, then calls SDPA on as many KV heads as heads.

    Exact, and moves at least `2 * group + 1` times the bytes; it stays as a named arm to show how
    much of a published speed-up such a baseline explains.
    """

    name: ClassVar[str] = "sdpa_repeat_kv"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "transformers: repeat_kv before scaled_dot_product_attention"

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention."""
        return exact_attention(q, k, v, shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that repeats the cache at every step."""
        return RepeatKvLayer(shape)


class RepeatKvLayer(ExactCacheLayer):
    """Repeats the whole cache at every step."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new row, repeat every KV head, attend."""
        keys, values = (
            rows.repeat_interleave(self.shape.group, dim=1) for rows in self.append(k, v)
        )
        return scaled_dot_product_attention(q, keys, values, scale=self.shape.scale)
