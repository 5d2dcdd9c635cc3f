"""Selections that keep more of some data than of other: true at one step, false at another.

The cache on which influence is counted has nearly even scores, that of timed steps has not. Whoever
compares what is declared on the one with what was counted on the other calls an honest selection a
liar, and lets a liar hide.

Cheats: `FewBytesTimed` (truthful where scores are even; elsewhere it attends to all and declares
the bytes of a few), `FewBytesProbed` (the other way round), `NothingTimed` (selects and declares as
its twin does, and where scores are not even returns the newest value). Honest: `NearBest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from tests.evil.common import Approximate, AttendingLayer

BLOCK = 32
NEAR = 0.05  # of the best block's logit: where scores are even, all blocks are as near
EVEN = 0.1  # standard deviation of the blocks' logits, below which scores are even


def block_logits(q: Tensor, means: Tensor, shape: LayerShape) -> Tensor:
    """Of each block's mean key with the mean query of a group: float64 [B,Hkv,n]."""
    mean = q.double().reshape(shape.batch, shape.kv_heads, shape.group, -1).mean(dim=2)
    return (means @ mean[..., None])[..., 0] * shape.scale


class NearBestLayer(AttendingLayer):
    """Blocks whose mean key is nearly as good as the best one's, what is left over, and the newest
    token."""

    chosen: Tensor  # bool [B,Hkv,N+1], in the last step
    even: bool

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.whole = self.prefilled // BLOCK * BLOCK
        blocks = cache.k[:, :, : self.whole].double().unflatten(2, (-1, BLOCK))
        self.means = blocks.mean(dim=3)
        self.chosen, self.even = torch.ones(0, dtype=torch.bool), True

    def near(self, q: Tensor) -> Tensor:
        logits = block_logits(q, self.means, self.shape)
        self.even = float(logits.std()) < EVEN / BLOCK**0.5
        return logits >= logits.amax(dim=-1, keepdim=True) - NEAR

    def mask(self, q: Tensor) -> Tensor:
        kept = self.near(q).repeat_interleave(BLOCK, dim=-1)
        rest = kept.new_ones((*kept.shape[:2], self.visible - self.whole))
        return torch.cat((kept, rest), dim=-1)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        self.chosen = self.mask(q)
        every = self.chosen.repeat_interleave(self.shape.group, dim=1)[:, :, None]
        return scaled_dot_product_attention(
            q, keys, values, every, scale=self.shape.scale, enable_gqa=self.shape.group > 1
        )

    @property
    def share(self) -> float:
        return float(self.chosen.double().mean()) if len(self.chosen) else 1.0

    def witness(self) -> Mapping[str, float]:
        return {"kept_share": self.share}

    def bytes_read(self) -> int:
        """The means in the cache's dtype, and the rows that were chosen."""
        means = self.means.numel() * self.shape.dtype.itemsize
        return means + round(self.share * self.visible * self.shape.row_bytes)

    def tensors(self):
        yield from super().tensors()
        yield from (self.means, self.chosen)


class FewBytesTimedLayer(NearBestLayer):
    def mask(self, q: Tensor) -> Tensor:
        """Few where scores are even, all elsewhere."""
        self.near(q)
        kept = torch.ones((*self.means.shape[:2], self.visible), dtype=torch.bool)
        if self.even:
            kept[:, :, self.visible // 32 :] = False
        return kept

    def bytes_read(self) -> int:
        return self.visible * self.shape.row_bytes // 32


class FewBytesProbedLayer(NearBestLayer):
    def bytes_read(self) -> int:
        return self.shape.row_bytes if self.even else super().bytes_read()


class NothingTimedLayer(NearBestLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended = super().decode(q, k, v)
        return attended if self.even else v.repeat_interleave(self.shape.group, dim=1)


@dataclass(frozen=True)
class NearBest(Approximate):
    """Honest: how much it keeps hangs on the data, and is declared step by step."""

    name: ClassVar[str] = "near_best"
    layer_class: ClassVar[type[MethodLayer]] = NearBestLayer

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        whole = (k.shape[2] - 1) // BLOCK * BLOCK
        means = k[:, :, :whole].double().unflatten(2, (-1, BLOCK)).mean(dim=3)
        kept = self.kept(block_logits(q, means, shape), k.shape[2])
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, -1).double()
        logits = grouped @ k.double().mT * shape.scale
        weights = logits.masked_fill(~kept[:, :, None], -torch.inf).softmax(dim=-1)
        return (weights @ v.double()).reshape(q.shape)

    def kept(self, logits: Tensor, tokens: int) -> Tensor:
        """Which tokens its definition attends to, by the logits of the blocks."""
        near = logits >= logits.amax(dim=-1, keepdim=True) - NEAR
        rows = near.repeat_interleave(BLOCK, dim=-1)
        return torch.cat((rows, rows.new_ones((*rows.shape[:2], tokens - rows.shape[2]))), dim=-1)


@dataclass(frozen=True)
class FewBytesTimed(NearBest):
    """Attends to a thirty-second part of a cache with even scores, and to all of any other, by its
    definition and its witness: but its bytes are those of the part."""

    name: ClassVar[str] = "few_bytes_timed"
    layer_class: ClassVar[type[MethodLayer]] = FewBytesTimedLayer

    def kept(self, logits: Tensor, tokens: int) -> Tensor:
        kept = torch.ones((*logits.shape[:2], tokens), dtype=torch.bool)
        if float(logits.std()) < EVEN / BLOCK**0.5:
            kept[:, :, tokens // 32 :] = False
        return kept


@dataclass(frozen=True)
class FewBytesProbed(NearBest):
    """By its bytes one row, where it attends to nearly all tokens; truthful in timed steps."""

    name: ClassVar[str] = "few_bytes_probed"
    layer_class: ClassVar[type[MethodLayer]] = FewBytesProbedLayer


@dataclass(frozen=True)
class NothingTimed(NearBest):
    """Truthful wherever its influence is counted; the newest value wherever time is taken."""

    name: ClassVar[str] = "nothing_timed"
    layer_class: ClassVar[type[MethodLayer]] = NothingTimedLayer
