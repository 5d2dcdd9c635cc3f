"""Rank-local attention along the query's own direction: what direct top-k selection replaced.

Keys are sorted by K · u with u = q / |q|, which is their order by logit. The query's own projection
q · u = |q| has an insertion rank among them, how many projections are less, N - 1 at most, and the
window is centred on it: the tokens whose rank is off by half of k_eff or less. Logits rise with the
rank, so the best tokens lie beyond the window's centre or, where |q| exceeds every projection, in
its lower half alone.

The source's code cuts the window off at the ends (`edge=cut`), so that there it holds little more
than half of k_eff; `edge=shift` moves it inside, which makes it the top k_eff where the centre lies
at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.dcr_topk import SHORTEST
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.random_k import mask_of
from attnbench.methods.reference import exact_attention
from attnbench.methods.selection import (
    attend_chosen,
    even_budget,
    grouped,
    require_budget,
    require_groups,
    score_dtype,
)


@dataclass(frozen=True)
class RankWindow(Method):
    """Attend to the contiguous window of k_eff + 1 ranks around the query's own rank.

    Of N tokens, the newest among them, k_eff = max(k_min, floor(coverage · N)), rounded up to even;
    where N is no more, all are attended to. How many a head attends to depends on the data with
    `edge=cut`, and the witness counts them.
    """

    coverage: float = 0.15
    k_min: int = 64
    edge: Literal["cut", "shift"] = "cut"

    name: ClassVar[str] = "rank_window"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "Seqev/dcr-attention_v3"

    def __post_init__(self) -> None:
        require_budget(self.name, self.coverage, self.k_min)

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The default, and budgets small enough to leave tokens out of a short cache."""
        del device_type
        return (cls(), cls(coverage=0.3, k_min=4), cls(coverage=0.3, k_min=4, edge="shift"))

    def full_budget(self, tokens: int) -> Self:
        """Every token."""
        del tokens
        return replace(self, coverage=1.0)

    def k_eff(self, tokens: int) -> int:
        """The budget of so many tokens, the newest included."""
        return even_budget(self.coverage, self.k_min, tokens)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention, head by head, over the tokens whose rank lies in its window."""
        out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                keys, values = k[b, h // shape.group], v[b, h // shape.group]
                rows = self.window_of(q[b, h, 0], keys)
                kept, worth = keys[None, None, rows], values[None, None, rows]
                out[b, h] = exact_attention(q[b, h][None, None], kept, worth, shape.scale)[0, 0]
        return out

    def window_of(self, query: Tensor, keys: Tensor) -> Tensor:
        """Rows of keys [N,D] that one query [D] attends to."""
        tokens = keys.shape[0]
        kept = self.k_eff(tokens)
        if kept >= tokens:
            return torch.arange(tokens, device=keys.device)
        direction: Tensor = query.double() / query.double().norm().clamp_min(SHORTEST)
        along: Tensor = (keys.double() * direction).sum(dim=-1)
        centre = int((along < (query.double() * direction).sum()).sum())
        centre = min(centre, tokens - 1)
        if self.edge == "shift":
            centre = min(max(centre, kept // 2), tokens - 1 - kept // 2)
        window = slice(max(centre - kept // 2, 0), centre + kept // 2 + 1)
        return along.argsort(stable=True)[window]

    def check(self, shape: LayerShape) -> None:
        """Whole groups."""
        super().check(shape)
        require_groups(self.label, shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that sorts at every step."""
        self.check(shape)
        return RankWindowLayer(self, shape)


class RankWindowLayer(ExactCacheLayer):
    """Keeps the exact cache; scores and sorts all keys, gathers the window's values."""

    held: Tensor  # int32 [B,Hkv,G], tokens that each head attended to in the last step

    def __init__(self, method: RankWindow, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view."""
        super().prefill(cache, q)
        size = (self.shape.batch, self.shape.kv_heads, self.shape.group)
        self.held = torch.zeros(size, dtype=torch.int32, device=self.shape.device)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, score, sort, attend to the window in float32."""
        keys, values = self.append(k, v)
        along, norm, rows, inside = self._chosen(q, keys)
        self.held.copy_(inside.sum(dim=-1))
        scores = (along.gather(3, rows) * norm * self.shape.scale).masked_fill(~inside, -torch.inf)
        return attend_chosen(scores, values, rows).reshape(q.shape).to(q.dtype)

    def _window(self, centre: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks of a window around each centre [B,Hkv,G,1], and which of them there are."""
        kept, last = self.method.k_eff(self.visible), self.visible - 1
        if kept > last:
            places = torch.arange(self.visible, device=centre.device)
            places = places.expand(*centre.shape[:3], -1)
            return places, torch.ones_like(places, dtype=torch.bool)
        half = kept // 2
        centre = centre.clamp(max=last)
        if self.method.edge == "shift":
            centre = centre.clamp(half, last - half)
        places = centre + torch.arange(-half, half + 1, device=centre.device)
        return places.clamp(0, last), (places >= 0) & (places <= last)

    def _chosen(self, q: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Projections [B,Hkv,G,N] of keys, lengths of queries [B,Hkv,G,1], tokens of the windows
        [B,Hkv,G,K], and which of them there are."""
        dtype = score_dtype(q.dtype)
        queries = grouped(q, self.shape.kv_heads).to(dtype)
        norm: Tensor = queries.norm(dim=-1, keepdim=True)
        along = (queries / norm.clamp_min(SHORTEST)) @ keys.to(dtype).mT
        order = along.argsort(dim=-1, stable=True)
        places, inside = self._window((along < norm).sum(dim=-1, keepdim=True))
        return along, norm, order.gather(3, places), inside

    def attended_rows(self, q: Tensor) -> Tensor:
        """The tokens of the windows, sorted out once more."""
        _, _, rows, inside = self._chosen(q, self.cache.k[:, :, : self.visible])
        rows = rows.masked_fill(~inside, self.visible)
        return mask_of(rows, self.visible + 1)[..., :-1].flatten(1, 2)

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache, and how many tokens were attended to."""
        yield from super().tensors()
        yield self.held

    @property
    def least(self) -> int:
        """Tokens that a head attends to at least."""
        kept = self.method.k_eff(self.visible)
        if kept >= self.visible:
            return self.visible
        return kept // 2 + 1 if self.method.edge == "cut" else kept + 1

    def bytes_read(self) -> int:
        """All keys, and of the values what one head attends to at least."""
        return (self.visible + self.least) * self.shape.row_bytes // 2

    def witness(self) -> Mapping[str, float]:
        """What the heads attended to in the last step, on average; `dense` is 1 where that was
        all."""
        attended = float(self.held.double().mean())
        return {
            "kept_share": attended / self.visible,
            "attended_tokens": attended,
            "dense": float(self.method.k_eff(self.visible) >= self.visible),
        }
