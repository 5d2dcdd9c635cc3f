"""A null model: attend to a random subset of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.errors import UsageError
from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention


@dataclass(frozen=True)
class RandomK(Method):
    """A random `share` of the prefilled tokens, drawn once at prefill, and the newest token.

    Drawn apart for every sequence and KV head. A selection method has skill where it beats this.
    """

    share: float = 0.15
    seed: int = 0

    name: ClassVar[str] = "random_k"
    family: ClassVar[Family] = Family.CONTROL
    source: ClassVar[str] = "this project: the null model of token selection"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(f"random_k: share={self.share} is not a share", hint="0 < share <= 1")

    def drawn(self, shape: LayerShape, tokens: int) -> Tensor:
        """Rows to keep of `tokens` prefilled ones: int64 [B,Hkv,K], ascending."""
        keep = max(1, round(self.share * tokens))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + shape.layer)
        noise = torch.rand(shape.batch, shape.kv_heads, tokens, generator=generator)
        return noise.argsort(dim=-1)[..., :keep].sort(dim=-1).values.to(shape.device)

    def full_budget(self, tokens: int) -> Self:
        """Every token drawn."""
        del tokens
        return replace(self, share=1.0)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention over the drawn rows of all but the last token, and the last one."""
        return attend_exactly(q, k, v, self.drawn(shape, k.shape[2] - 1), shape)

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        """The definition over rows that were drawn at prefill."""
        return RandomKReferenceLayer(self, shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that gathers its rows at every step."""
        return RandomKLayer(self, shape)


def with_newest(rows: Tensor, newest: int) -> Tensor:
    """The drawn rows and the newest one: [B,Hkv,K] -> [B,Hkv,K+1]."""
    return torch.cat((rows, rows.new_full((*rows.shape[:-1], 1), newest)), dim=-1)


def gathered(cache: Tensor, rows: Tensor) -> Tensor:
    """Rows [B,Hkv,K] of a cache [B,Hkv,N,D] -> [B,Hkv,K,D]."""
    return cache.gather(2, rows[..., None].expand(*rows.shape, cache.shape[-1]))


def mask_of(rows: Tensor, tokens: int) -> Tensor:
    """Where rows [..,K] are among so many tokens: bool [..,tokens]."""
    found = torch.zeros((*rows.shape[:-1], tokens), dtype=torch.bool, device=rows.device)
    return found.scatter(-1, rows, True)


def attend_exactly(q: Tensor, k: Tensor, v: Tensor, drawn: Tensor, shape: LayerShape) -> Tensor:
    """Exact attention over the drawn rows and the last one."""
    rows = with_newest(drawn, k.shape[2] - 1)
    return exact_attention(q, gathered(k, rows), gathered(v, rows), shape.scale)


class RandomKLayer(ExactCacheLayer):
    """Keeps the whole cache and the drawn rows."""

    rows: Tensor

    def __init__(self, method: RandomK, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Draw the rows."""
        super().prefill(cache, q)
        self.rows = self.method.drawn(self.shape, self.prefilled)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, gather the kept rows, attend to them."""
        keys, values = self.append(k, v)
        rows = with_newest(self.rows, keys.shape[2] - 1)
        return scaled_dot_product_attention(
            q,
            gathered(keys, rows),
            gathered(values, rows),
            scale=self.shape.scale,
            enable_gqa=self.shape.group > 1,
        )

    def attended_rows(self, q: Tensor) -> Tensor:
        """The drawn tokens and the newest one."""
        del q
        rows = with_newest(self.rows, self.visible - 1)
        return mask_of(rows, self.visible).repeat_interleave(self.shape.group, dim=1)

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache and the row numbers."""
        yield from super().tensors()
        yield self.rows

    @property
    def attended(self) -> int:
        """The drawn tokens and the newest one."""
        return self.rows.shape[-1] + 1

    def bytes_read(self) -> int:
        """The kept rows and their numbers."""
        return super().bytes_read() + self.rows.nbytes


class RandomKReferenceLayer(RandomKLayer):
    """Exact attention over the rows drawn at prefill and the newest one."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend; the output is float64."""
        keys, values = self.append(k, v)
        return attend_exactly(q, keys, values, self.rows, self.shape)
