"""Top-k selection that starts from the selection of the step before it.

DCR's fourth negative result is that selections drift, to 47 % by step 50, and so cannot be reused.
Chance alone would leave 15 % of them in place, so what it rules out is to reuse them as they are;
this looks for the top k among a few candidates: the last step's selection, the last `recent`
tokens, and every `refresh`-th token of the cache, other ones in each step, so that within `refresh`
steps every token is a candidate at least once.

The refresh is spread over the steps instead of a full scan in each `refresh`-th, which a step that
is timed at one length would always or never be. Where a step reads and writes its selection follows
from the length, so that a step may be repeated. Before the first step there is no query: the last
key of the prompt stands for one, and after `refresh` steps nothing is left of that but what was
chosen again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from attnbench.errors import UsageError
from attnbench.methods.base import CacheView, Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.oracle_topk import highest
from attnbench.methods.random_k import gathered, mask_of
from attnbench.methods.reference import exact_attention
from attnbench.methods.selection import (
    attend_chosen,
    grouped,
    require_budget,
    require_groups,
    score_dtype,
    share_of,
)


@dataclass(frozen=True)
class TopKWarm(Method):
    """Attend to the k tokens with the highest logits among the candidates of each query head.

    Of N tokens, the newest among them, k = max(k_min, ceil(coverage · N)), as DCR's paper has it;
    where N is no more, all are attended to. `refresh=1` makes every token a candidate.
    """

    coverage: float = 0.15
    k_min: int = 64
    recent: int = 64
    refresh: int = 16

    name: ClassVar[str] = "topk_warm"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "Seqev/dcr-attention_v3"

    def __post_init__(self) -> None:
        require_budget(self.name, self.coverage, self.k_min)
        if self.recent < 0 or self.refresh < 1:
            raise UsageError(
                f"topk_warm: recent={self.recent}, refresh={self.refresh} are no candidates",
                hint="recent from 0 tokens, refresh from 1 step",
            )

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """The default, and budgets small enough to leave tokens out of a short cache."""
        del device_type
        return (cls(), cls(0.2, 4, recent=3, refresh=5), cls(0.3, 4, recent=0, refresh=1))

    def full_budget(self, tokens: int) -> Self:
        """Every token."""
        del tokens
        return replace(self, coverage=1.0)

    def kept(self, tokens: int) -> int:
        """Tokens to attend to of so many; one more token is one more of these at most."""
        return min(max(self.k_min, math.ceil(share_of(self.coverage, tokens))), tokens)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """What one token after a prompt of all others attends to."""
        before = [self.first(keys[:-1]) for keys in k.flatten(0, 1)]
        before = [chosen for chosen in before for _ in range(shape.group)]
        return self.attend(q, k, v, before, shape)[0]

    def first(self, keys: Tensor) -> set[int]:
        """What the last of a prompt's keys [N,D] would choose of them, as a query."""
        if not len(keys):
            return set()
        scores = keys.double() @ keys[-1].double()
        return self.top(scores, range(len(keys)), self.kept(len(keys)))

    def top(self, scores: Tensor, candidates: Iterator[int] | range, count: int) -> set[int]:
        """The candidates with the highest scores [N]; of equal ones the earlier."""
        figures = scores.tolist()
        return set(sorted(candidates, key=lambda token: (-figures[token], token))[:count])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, before: list[set[int]], shape: LayerShape
    ) -> tuple[Tensor, list[set[int]]]:
        """Exact attention, and what each query head of each sequence chose; `before` is what it
        chose in the last step."""
        out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
        selections = []
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                keys, values = k[b, h // shape.group], v[b, h // shape.group]
                tokens = len(keys)
                candidates = before[b * q.shape[1] + h].union(
                    range(max(0, tokens - self.recent), tokens),
                    range((tokens - 1) % self.refresh, tokens, self.refresh),
                )
                scores = keys.double() @ q[b, h, 0].double()
                chosen = self.top(scores, iter(candidates), self.kept(tokens))
                rows = torch.tensor(sorted(chosen), device=k.device)
                kept, worth = keys[None, None, rows], values[None, None, rows]
                out[b, h] = exact_attention(q[b, h][None, None], kept, worth, shape.scale)[0, 0]
                selections.append(chosen)
        return out, selections

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        """The definition with the last step's selections."""
        return TopKWarmReferenceLayer(self, shape)

    def check(self, shape: LayerShape) -> None:
        """Whole groups."""
        super().check(shape)
        require_groups(self.label, shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer that scores its candidates."""
        self.check(shape)
        return TopKWarmLayer(self, shape)


class TopKWarmLayer(ExactCacheLayer):
    """Keeps the exact cache and two selections: what a step finds and what it leaves."""

    chosen: Tensor  # int32 [2,B,Hkv,G,K], by the parity of the length at which they were chosen
    start: Tensor  # int32 [B,Hkv,1,K], what the prompt's last key chose

    def __init__(self, method: TopKWarm, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Keep the view, and choose by the last key."""
        super().prefill(cache, q)
        size = (self.shape.batch, self.shape.kv_heads)
        most = self.method.kept(self.shape.capacity)
        self.start = torch.zeros((*size, 1, most), dtype=torch.int32, device=cache.k.device)
        tokens = self.prefilled
        for head in range(self.shape.kv_heads if tokens else 0):
            keys = cache.k[:, head, :tokens].to(score_dtype(cache.k.dtype))
            rows = highest((keys @ keys[:, -1:].mT)[..., 0], self.method.kept(tokens))
            self.start[:, head, 0, : rows.shape[-1]] = rows
        self.chosen = self.start.new_zeros((2, *size, self.shape.group, most))
        self._start_again()

    def _start_again(self) -> None:
        self.chosen.zero_()
        self.chosen[(self.prefilled - 1) % 2].copy_(self.start.expand(self.chosen.shape[1:]))

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, score the candidates, choose, attend in float32."""
        keys, values = self.append(k, v)
        rows, new = self._candidates()
        queries = grouped(q, self.shape.kv_heads).to(score_dtype(q.dtype))
        scores = self._scores(queries, keys, rows).masked_fill(~new, -torch.inf)
        best = highest(scores, self.attended)
        rows = rows.gather(3, best)
        self.chosen[self.cache.length.tokens % 2, ..., : self.attended] = rows
        return attend_chosen(scores.gather(3, best), values, rows).reshape(q.shape).to(q.dtype)

    def _scores(self, queries: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """Logits [B,Hkv,G,M] of queries [B,Hkv,G,D] with rows [B,Hkv,G,M] of keys [B,Hkv,N,D]."""
        candidates = gathered(keys, rows.flatten(2)).reshape(*rows.shape, -1).to(queries.dtype)
        return (candidates @ queries[..., None])[..., 0] * self.shape.scale

    def _candidates(self) -> tuple[Tensor, Tensor]:
        """Candidates by rising token, int64 [B,Hkv,G,M], and which of them stand there once."""
        newest = self.cache.length.tokens
        refresh, recent = self.method.refresh, max(0, self.visible - self.method.recent)
        last = self.chosen[(newest - 1) % 2, ..., : self.method.kept(newest)].long()
        last_new = (last < recent) & (last % refresh != newest % refresh)
        window = torch.arange(recent, self.visible, device=last.device)
        spread = torch.arange(newest % refresh, self.visible, refresh, device=last.device)
        common = torch.cat((window, spread)).expand(*last.shape[:3], -1)
        common_new = torch.cat((window % refresh != newest % refresh, torch.ones_like(spread) > 0))
        rows, order = torch.cat((last, common), dim=-1).sort(dim=-1, stable=True)
        new = torch.cat((last_new, common_new.expand(common.shape)), dim=-1)
        return rows, new.gather(3, order)

    def attended_rows(self, q: Tensor) -> Tensor:
        """The selections of the last step."""
        del q
        rows = self.chosen[self.cache.length.tokens % 2, ..., : self.attended].long()
        return mask_of(rows, self.visible).flatten(1, 2)

    def reset(self) -> None:
        """What the prompt's last key chose."""
        super().reset()
        self._start_again()

    def tensors(self) -> Iterator[Tensor]:
        """The exact cache and the selections."""
        yield from super().tensors()
        yield from (self.chosen, self.start)

    @property
    def attended(self) -> int:
        """Tokens that each query head attends to."""
        return self.method.kept(self.visible)

    def bytes_read(self) -> int:
        """The last selections; the keys of every `refresh`-th token or, if that is more, of one
        head's selection; and one head's values: all else may be the same tokens."""
        spread = -(-self.visible // self.method.refresh)
        keys = max(spread, min(self.method.recent, self.visible), self.attended)
        heads = self.shape.batch * self.shape.heads
        numbers = heads * self.method.kept(self.cache.length.tokens) * self.chosen.itemsize
        return (keys + self.attended) * self.shape.row_bytes // 2 + numbers

    def witness(self) -> Mapping[str, float]:
        """The attended share; candidates of each head at most, as a share of the tokens; `dense` is
        1 where all are attended to."""
        rows, _ = self._candidates()
        return {
            "kept_share": self.attended / self.visible,
            "attended_tokens": float(self.attended),
            "candidate_share": min(1.0, rows.shape[-1] / self.visible),
            "dense": float(self.attended == self.visible),
        }


class TopKWarmReferenceLayer(ExactCacheLayer):
    """The definition with its selections by length, in Python's own sets."""

    chosen: dict[int, list[set[int]]]

    def __init__(self, method: TopKWarm, shape: LayerShape) -> None:
        super().__init__(shape)
        self.method = method

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        """Choose by the last key."""
        super().prefill(cache, q)
        keys = cache.k[:, :, : self.prefilled].flatten(0, 1)
        firsts = [self.method.first(each) for each in keys]
        self.chosen = {
            self.prefilled - 1: [first for first in firsts for _ in range(self.shape.group)]
        }

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append and attend; the output is float64."""
        keys, values = self.append(k, v)
        step = self.cache.length.tokens
        out, self.chosen[step] = self.method.attend(
            q, keys, values, self.chosen[step - 1], self.shape
        )
        return out

    def reset(self) -> None:
        """The prompt's own selections."""
        super().reset()
        self.chosen = {self.prefilled - 1: self.chosen[self.prefilled - 1]}
