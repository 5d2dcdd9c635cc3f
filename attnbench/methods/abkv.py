"""ABKV (axis-block key-value): a cache sorted once by one axis of each KV head.

The axis is normalise(mean of K / |K|) over the prompt's tokens and over all sequences; the prompt's
rows are sorted by their projection on it, farthest first. In mode A every query attends to the
first k_eff of them, which is a static eviction; in mode B each query head scans the first S and
attends to the k_eff with the highest logits there. The source's bins name parts of the sorted rows
and change nothing that is computed, so there are none here.

The source has no rule for tokens that come after the prompt: here they are all attended to. It also
keeps all rows, with their scores and their old places, though no step reads beyond the first k_eff
or S: here the others are gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from attnbench.errors import UsageError
from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.oracle_topk import highest, logits, of_kv_head
from attnbench.methods.random_k import gathered
from attnbench.methods.reference import exact_attention
from attnbench.methods.selection import (
    attend_chosen,
    by_projection,
    even_budget,
    grouped,
    joined,
    mean_direction,
    require_budget,
    require_groups,
    score_dtype,
    share_of,
)
from attnbench.methods.static_rows import StaticReferenceLayer, StaticRowsLayer


@dataclass(frozen=True)
class Abkv(Method):
    """Keep the prompt's tokens that lie farthest along the mean direction of its keys.

    Of N prompt tokens k_eff = max(k_min, floor(coverage · N)), rounded up to even, are attended to;
    all of them where there are no more. `scan` is mode B's S as a share of N (k_eff at least).
    """

    mode: Literal["A", "B"] = "A"
    coverage: float = 0.15
    scan: float = 0.5
    k_min: int = 64

    name: ClassVar[str] = "abkv"
    family: ClassVar[Family] = Family.APPROXIMATE
    source: ClassVar[str] = "Seqev/dcr-attention_v3"

    def __post_init__(self) -> None:
        require_budget(self.name, self.coverage, self.k_min)
        if not 0 < self.scan <= 1 or (self.mode == "B" and self.scan < self.coverage):
            raise UsageError(
                f"abkv: scan={self.scan} leaves nothing to choose {self.coverage} of the tokens "
                "from",
                hint="coverage <= scan <= 1: the share of the prompt that a query scans in mode B",
            )

    @classmethod
    def variants(cls, device_type: str) -> tuple[Self, ...]:
        """Both modes, and budgets small enough to leave tokens out of a short cache."""
        del device_type
        return (cls(), cls(mode="B"), cls(coverage=0.3, k_min=4), cls("B", 0.2, 0.6, k_min=4))

    def full_budget(self, tokens: int) -> Self:
        """Every token."""
        del tokens
        return replace(self, coverage=1.0, scan=1.0)

    def k_eff(self, prompt: int) -> int:
        """Tokens attended to of so many in the prompt."""
        return even_budget(self.coverage, self.k_min, prompt)

    def chosen(self, keys: Tensor) -> Tensor:
        """Rows to keep of the prompt's keys [B,Hkv,N,D], farthest first: int64 [B,Hkv,K]."""
        prompt = keys.shape[2]
        count = self.k_eff(prompt)
        if self.mode == "B":
            count = max(count, math.floor(share_of(self.scan, prompt)))
        return by_projection(keys, mean_direction(keys, over=(0, 2)), count)

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """What one token after a prompt of all others attends to."""
        prompt = k.shape[2] - 1
        return self.attend(q, k, v, self.chosen(k[:, :, :prompt]), prompt, shape)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, prompt: int, shape: LayerShape
    ) -> Tensor:
        """Exact attention of each query head over its own of the sorted rows [B,Hkv,S], and over
        all tokens after the prompt."""
        heads = []
        for head in range(shape.kv_heads):
            one = slice(head, head + 1)
            keys, values, scanned = k[:, one], v[:, one], rows[:, one]
            for query in torch.split(of_kv_head(q, head, shape), 1, dim=1):
                scores = logits(query, gathered(keys, scanned), shape.scale)
                own = scanned.gather(2, highest(scores, self.k_eff(prompt)))
                kept, worth = joined(keys, own, prompt), joined(values, own, prompt)
                heads.append(exact_attention(query, kept, worth, shape.scale))
        return torch.cat(heads, dim=1)

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        """The definition over rows that were sorted at prefill."""
        return StaticReferenceLayer(self, shape)

    def check(self, shape: LayerShape) -> None:
        """Whole groups."""
        super().check(shape)
        require_groups(self.label, shape)

    def layer(self, shape: LayerShape) -> MethodLayer:
        """A layer of the sorted rows that a step may read."""
        self.check(shape)
        if self.mode == "A":
            return StaticRowsLayer(shape, self.chosen)
        return AbkvScanLayer(self, shape)


class AbkvScanLayer(StaticRowsLayer):
    """Mode B: scans the sorted rows that it keeps, and gathers the values of the best."""

    def __init__(self, method: Abkv, shape: LayerShape) -> None:
        super().__init__(shape, method.chosen)
        self.method = method

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append, score, choose among the sorted rows, attend in float32."""
        keys, values = self.append(k, v)
        dtype = score_dtype(q.dtype)
        queries = grouped(q, self.shape.kv_heads).to(dtype)
        scores = queries @ keys.to(dtype).mT * self.shape.scale
        best = highest(scores[..., : self.kept], self.method.k_eff(self.prefilled))
        since = torch.arange(self.kept, self.stored, device=best.device)
        rows = torch.cat((best, since.expand(*best.shape[:3], -1)), dim=-1)
        return attend_chosen(scores.gather(3, rows), values, rows).reshape(q.shape).to(q.dtype)

    @property
    def attended(self) -> int:
        """The best of the sorted rows, and all tokens since."""
        return self.method.k_eff(self.prefilled) + self.visible - self.prefilled

    def bytes_read(self) -> int:
        """All kept keys, and of the values what one head attends to: a group's heads may attend to
        the same."""
        return (self.stored + self.attended) * self.shape.row_bytes // 2
