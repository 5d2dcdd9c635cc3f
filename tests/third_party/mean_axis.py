"""A static selection of keys, as ABKV has it in mode A: excellent on data that was made for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention


@dataclass(frozen=True)
class MeanAxis(Method):
    """Keep the tokens whose keys lie along the mean key's direction, whatever the query.

    The axis of a KV head is normalise(mean of K / |K|), and the largest K·axis are kept; here with
    the tokens appended since, for which the method states no rule.
    """

    share: float = 0.2

    name: ClassVar[str] = "mean_axis"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "ABKV, mode A"

    def full_budget(self, tokens: int) -> Self:
        del tokens
        return type(self)(share=1.0)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        kept = along_mean(k[:, :, :-1], self.share)
        rows = with_new(kept, k.shape[2] - 1, k.shape[2])
        return exact_attention(q, gathered(k, rows), gathered(v, rows), shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        return MeanAxisLayer(self, shape)


class MeanAxisLayer(ExactCacheLayer):
    """The kept rows of the prompt, gathered in every step, and all that came after it."""

    def __init__(self, method: MeanAxis, shape: LayerShape) -> None:
        super().__init__(shape)
        self.share = method.share

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.kept = along_mean(cache.k[:, :, : self.prefilled], self.share)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        rows = with_new(self.kept, self.prefilled, keys.shape[2])
        return scaled_dot_product_attention(
            q,
            gathered(keys, rows),
            gathered(values, rows),
            scale=self.shape.scale,
            enable_gqa=self.shape.group > 1,
        )

    @property
    def attended(self) -> int:
        return self.kept.shape[-1] + self.visible - self.prefilled


def along_mean(keys: Tensor, share: float) -> Tensor:
    """The rows [B,Hkv,K] of keys [B,Hkv,N,D] that lie farthest along their mean direction."""
    axis = normalize(normalize(keys.float(), dim=-1).mean(2), dim=-1)
    scores = (keys.float() @ axis[..., None])[..., 0]
    return scores.topk(max(1, round(share * keys.shape[2])), dim=-1).indices.sort(-1).values


def with_new(kept: Tensor, prompt: int, tokens: int) -> Tensor:
    new = torch.arange(prompt, tokens, device=kept.device).expand(*kept.shape[:2], -1)
    return torch.cat([kept, new], dim=-1)


def gathered(cached: Tensor, rows: Tensor) -> Tensor:
    return cached.gather(2, rows[..., None].expand(-1, -1, -1, cached.shape[-1]))
