"""The best that a selection by logit can do: the exact top share of the tokens, by exact logits.

What direction-cosine ranking selects (a positive factor of the query changes no order), without a
lower limit. It reads every key to find out, so it shows what a selection could keep, not what one
could save.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from attnbench.errors import UsageError
from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.random_k import gathered, mask_of
from attnbench.methods.reference import exact_attention


@dataclass(frozen=True)
class OracleTopK(Method):
    """The `share` of all tokens with the highest logits, the newest being one like the others.

    Chosen anew at every step, for every query head; with `shared=True` once for a KV group, by the
    sum over its heads of their softmax weights. Of equal tokens the earlier is taken.
    """

    share: float = 0.15
    shared: bool = False

    name: ClassVar[str] = "oracle_topk"
    family: ClassVar[Family] = Family.CONTROL
    source: ClassVar[str] = "this project: the ceiling of token selection"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UsageError(
                f"oracle_topk: share={self.share} is not a share", hint="0 < share <= 1"
            )

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """A selection for each head, and one for each group."""
        del device_type
        return (cls(), cls(shared=True))

    def full_budget(self, tokens: int) -> Self:
        """Every token."""
        del tokens
        return replace(self, share=1.0)

    def kept(self, tokens: int) -> int:
        """Tokens to keep of so many, the newest included."""
        return max(1, round(self.share * tokens))

    def chosen(self, scores: Tensor) -> Tensor:
        """Rows to keep by logits [B,G,N] of one KV head: int64 [B,G,K], [B,1,K] if shared."""
        if self.shared:
            scores = torch.softmax(scores, dim=-1).sum(dim=1, keepdim=True)
        return highest(scores, self.kept(scores.shape[-1]))

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """Exact attention of each query head over the rows chosen for it."""
        heads = []
        for head in range(shape.kv_heads):
            one = slice(head, head + 1)
            queries, keys, values = of_kv_head(q, head, shape), k[:, one], v[:, one]
            rows = self.chosen(logits(queries, keys, shape.scale))
            each = torch.split(rows.expand(-1, shape.group, -1), 1, dim=1)
            for own, row in zip(torch.split(queries, 1, dim=1), each, strict=True):
                kept, worth = gathered(keys, row), gathered(values, row)
                heads.append(exact_attention(own, kept, worth, shape.scale))
        return torch.cat(heads, dim=1)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that scores all keys, and gathers values."""
        return OracleTopKLayer(self, shape)


def of_kv_head(q: Tensor, head: int, shape: LayerShape) -> Tensor:
    """The queries of one KV head: [B,H,1,D] -> [B,G,1,D]."""
    return q[:, head * shape.group : (head + 1) * shape.group]


def logits(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """In float64, so that rounding decides nothing: [B,G,1,D], [B,1,N,D] -> [B,G,N].

    Of 16-bit keys that are equal the logits are too; of float32 ones the last bit may differ.
    """
    return queries[:, :, 0].double() @ keys[:, 0].double().mT * scale


def highest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` highest of [..,N] are: int64 [..,count], in no order; of equals the first.

    `topk` alone takes equals as they come. What is no number counts as the highest, so that it
    shows. Nothing waits for the host.
    """
    ranked = scores.nan_to_num(nan=torch.inf)
    least = ranked.topk(count, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    above, equal = ranked > least, ranked == least
    room = count - above.sum(dim=-1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=-1) <= room))
    return chosen.byte().topk(count, dim=-1, sorted=False).indices


class OracleTopKLayer(ExactCacheLayer):
    """Keeps the exact cache; one KV head after another, since logits are float64."""

    def __init__(self, method: OracleTopK, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, score, choose, attend to the chosen values in float32."""
        keys, values = self.append(k, v)
        heads = [
            self._attend(of_kv_head(q, head, self.shape), keys[:, head : head + 1], values[:, head])
            for head in range(self.shape.kv_heads)
        ]
        return torch.cat(heads, dim=1).to(q.dtype)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One KV head: queries [B,G,1,D], keys [B,1,N,D], values [B,N,D] -> float32 [B,G,1,D]."""
        scores = logits(queries, keys, self.shape.scale)
        rows = self.method.chosen(scores)
        own = scores.gather(2, rows.expand(-1, self.shape.group, -1))
        weights = torch.softmax(own, dim=-1).float()[:, :, None]
        return weights @ gathered(values[:, None].expand(-1, rows.shape[1], -1, -1), rows).float()

    def attended_rows(self, q: Tensor) -> Tensor:
        """The tokens of the highest logits, chosen once more."""
        keys = self.cache.k[:, :, : self.visible]
        found = []
        for head in range(self.shape.kv_heads):
            queries = of_kv_head(q, head, self.shape)
            rows = self.method.chosen(logits(queries, keys[:, head : head + 1], self.shape.scale))
            found.append(mask_of(rows, self.visible).expand(-1, self.shape.group, -1))
        return torch.cat(found, dim=1)

    @property
    def attended(self) -> int:
        """Tokens whose values enter the output of each query head."""
        return self.method.kept(self.visible)

    def bytes_read(self) -> int:
        """All keys, and of the values what one head keeps: a group's heads may keep the same."""
        return (self.visible + self.attended) * self.shape.row_bytes // 2
