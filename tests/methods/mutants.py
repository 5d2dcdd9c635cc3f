"""Methods with one thing wrong each, which the conformance suite must find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import Family, LayerShape, Method, MethodLayer
from attnbench.methods.exact_cache import ExactCacheLayer
from attnbench.methods.reference import exact_attention


class HonestLayer(ExactCacheLayer):
    """Exact attention, correct in everything; the mutants change one method each."""

    def rows(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.append(k, v)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.rows(k, v)
        return exact_attention(q, keys, values, self.shape.scale).to(q.dtype)


class MaintainsTooMuch(HonestLayer):
    """Rounds the keys in what should change nothing."""

    def maintain(self):
        self.cache.k.copy_(self.cache.k.half())


class LeavesOutTheNewest(HonestLayer):
    def rows(self, k, v):
        keys, values = self.append(k, v)
        return keys[:, :, :-1], values[:, :, :-1]


class ReadsOneRowTooMany(HonestLayer):
    def rows(self, k, v):
        self.append(k, v)
        end = self.cache.length.tokens + 2
        return self.cache.k[:, :, :end], self.cache.v[:, :, :end]


class AttendsBeforeItAppends(HonestLayer):
    def decode(self, q, k, v):
        end = self.cache.length.tokens + 1
        out = exact_attention(
            q, self.cache.k[:, :, :end], self.cache.v[:, :, :end], self.shape.scale
        )
        self.append(k, v)
        return out.to(q.dtype)


class UsesTheDefaultScale(HonestLayer):
    def decode(self, q, k, v):
        return exact_attention(q, *self.rows(k, v), self.shape.head_dim**-0.5).to(q.dtype)


class IgnoresTheGroups(HonestLayer):
    def decode(self, q, k, v):
        heads = torch.arange(self.shape.heads) % self.shape.kv_heads
        keys, values = (rows[:, heads] for rows in self.rows(k, v))
        return exact_attention(q, keys, values, self.shape.scale).to(q.dtype)


class DropsOneHead(HonestLayer):
    def decode(self, q, k, v):
        out = super().decode(q, k, v)
        out[:, -1] = 0
        return out


class ComputesInHalf(HonestLayer):
    def decode(self, q, k, v):
        keys, values = (rows.half() for rows in self.rows(k, v))
        return exact_attention(q.half(), keys, values, self.shape.scale).to(q.dtype)


class SkipsEarlyTokens(HonestLayer):
    """Says that it attends to everything."""

    def rows(self, k, v):
        keys, values = self.append(k, v)
        return keys[:, :, 2:], values[:, :, 2:]


class UnderstatesItsBytes(HonestLayer):
    def bytes_read(self) -> int:
        return super().bytes_read() // 2


class OverstatesItsShare(HonestLayer):
    def witness(self) -> Mapping[str, float]:
        return {"kept_share": 0.5}


class KeepsAHiddenCopy(HonestLayer):
    def prefill(self, cache, q=None):
        super().prefill(cache, q)
        self.hidden = {"copies": [cache.k.clone()]}


class ForgetsToReset(HonestLayer):
    def reset(self) -> None:
        """Leave the appended rows where they are."""


class ChangesItsQuery(HonestLayer):
    def decode(self, q, k, v):
        out = super().decode(q, k, v)
        q.mul_(2)
        return out


class CountsItsCalls(HonestLayer):
    calls: ClassVar[int] = 0

    def decode(self, q, k, v):
        CountsItsCalls.calls += 1
        return super().decode(q, k, v) * (1 + 1e-6 * CountsItsCalls.calls)


class OverflowsOnLargeScores(HonestLayer):
    def decode(self, q, k, v):
        keys, values = self.rows(k, v)
        weights = torch.exp(q.float() @ keys.repeat_interleave(self.shape.group, 1).float().mT)
        values = values.repeat_interleave(self.shape.group, 1).float()
        return (weights @ values / weights.sum(-1, keepdim=True)).to(q.dtype)


@dataclass(frozen=True)
class Mutant(Method):
    """Any of the layers above, by the name of its class."""

    layer_name: str = "HonestLayer"

    name: ClassVar[str] = "mutant"
    family: ClassVar[Family] = Family.EXACT
    source: ClassVar[str] = "a test"

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        return exact_attention(q, k, v, shape.scale)

    def layer(self, shape: LayerShape) -> MethodLayer:
        return globals()[self.layer_name](shape)
