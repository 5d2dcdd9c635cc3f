"""Attending to everything on a cache that looks planted, and what an honest method may do there.

Whoever counts which tokens have influence has to change some of them. A cache made for the purpose
is known by what is odd about it; methods that look at values, or that put several tokens into one
row, are treated unjustly where only odd values count.

Cheats: `KnowsPlanted`, `KnowsAlike`, `MergesAndKeeps`, `MergesForShow`. Honest: `ValueAware`,
`Merged`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import CacheLength, CacheView, LayerShape, MethodLayer
from attnbench.methods.random_k import gathered, with_newest
from attnbench.methods.reference import exact_attention
from tests.evil.common import Approximate, AttendingLayer

RECENT = 64
MERGED = 8


def mostly_zero(values: Tensor) -> bool:
    """Whether hardly any of [B,Hkv,N,D] holds a value."""
    return bool((values == 0).double().mean() > 0.5)


def alike(keys: Tensor) -> bool:
    """Whether all tokens of [B,Hkv,N,D] have nearly the same key."""
    return bool(keys.double().std(dim=2).mean() < 0.1)


class KnowsPlantedLayer(AttendingLayer):
    """Looks at the values when the cache is made; says 100 % either way."""

    @staticmethod
    def planted(keys: Tensor, values: Tensor) -> bool:
        del keys
        return mostly_zero(values)

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.all = self.planted(*(rows[:, :, : self.prefilled] for rows in (cache.k, cache.v)))

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        if not self.all:
            keys, values = keys[:, :, -RECENT:], values[:, :, -RECENT:]
        return self.attend(q, keys, values)


class KnowsAlikeLayer(KnowsPlantedLayer):
    """Looks at the keys."""

    @staticmethod
    def planted(keys: Tensor, values: Tensor) -> bool:
        del values
        return alike(keys)


class DefinedKnowsPlantedLayer(KnowsPlantedLayer):
    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return exact_attention(q, keys, values, self.shape.scale)


class DefinedKnowsAlikeLayer(KnowsAlikeLayer):
    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return exact_attention(q, keys, values, self.shape.scale)


class ValueAwareLayer(AttendingLayer):
    """The quarter of cached tokens with the greatest weight times norm of value, and the newest."""

    def rows(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        shape = self.shape
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim).double()
        weights = (grouped @ keys.double().mT * shape.scale).softmax(-1).amax(dim=2)
        scores = weights * values.double().norm(dim=-1)
        return scores.topk(max(1, keys.shape[2] // 4), dim=-1).indices

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        rows = self.rows(q, keys[:, :, :-1], values[:, :, :-1])
        rows = with_newest(rows, keys.shape[2] - 1)
        return self.attend(q, gathered(keys, rows), gathered(values, rows))

    @property
    def attended(self) -> int:
        return max(1, (self.visible - 1) // 4) + 1

    def bytes_read(self) -> int:
        """All keys and norms, taken for all rows."""
        return self.visible * self.shape.row_bytes


class DefinedValueAwareLayer(ValueAwareLayer):
    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return exact_attention(q, keys, values, self.shape.scale)


class MergedLayer(AttendingLayer):
    """Means of eight tokens, what is left over, and new rows; the exact cache goes."""

    part = MERGED  # of the tokens of each mean, so many are looked at

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        self.length, self.prefilled = cache.length, cache.length.tokens
        self.k, self.v = self.merged(cache.k), self.merged(cache.v)

    def merged(self, rows: Tensor) -> Tensor:
        """[B,Hkv,capacity,D] -> [B,Hkv,K,D], the rows of new tokens being zero."""
        whole = self.prefilled // MERGED * MERGED
        groups = rows[:, :, :whole].unflatten(2, (-1, MERGED))[:, :, :, : self.part]
        return torch.cat((groups.mean(dim=3), rows[:, :, whole:]), dim=2)

    @property
    def newest(self) -> int:
        """Its row."""
        apart = self.prefilled // MERGED * (MERGED - 1)
        return self.length.tokens - apart

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.newest + 1
        self.k[:, :, end - 1 : end], self.v[:, :, end - 1 : end] = k, v
        return self.k[:, :, :end], self.v[:, :, :end]

    def reset(self) -> None:
        first = self.prefilled - self.prefilled // MERGED * (MERGED - 1)
        self.k[:, :, first:].zero_()
        self.v[:, :, first:].zero_()

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.k, self.v)

    def bytes_read(self) -> int:
        return (self.newest + 1) * self.shape.row_bytes

    def witness(self) -> Mapping[str, float]:
        return {"kept_share": (self.newest + 1) / (self.length.tokens + 1)}


class DefinedMergedLayer(MergedLayer):
    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return exact_attention(q, keys, values, self.shape.scale)


class MergesAndKeepsLayer(MergedLayer):
    """Attends to a whole copy, and says what the means would be."""

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        self.length, self.prefilled = cache.length, cache.length.tokens
        self.k, self.v = cache.k.clone(), cache.v.clone()

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        row = self.length.tokens
        self.k[:, :, row : row + 1], self.v[:, :, row : row + 1] = k, v
        return self.k[:, :, : row + 1], self.v[:, :, : row + 1]

    def reset(self) -> None:
        self.k[:, :, self.prefilled :].zero_()
        self.v[:, :, self.prefilled :].zero_()


class MergesForShowLayer(MergedLayer):
    """Each mean is one token of the eight, and the share is that of all."""

    part = 1

    def bytes_read(self) -> int:
        return (self.length.tokens + 1) * self.shape.row_bytes

    def witness(self) -> Mapping[str, float]:
        return {"kept_share": 1.0}


class DefinedMergesForShowLayer(MergesForShowLayer):
    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return exact_attention(q, keys, values, self.shape.scale)


@dataclass(frozen=True)
class Defined(Approximate):
    """What it computes is `defined_class`, in float64."""

    name: ClassVar[str] = "evil_defined"
    defined_class: ClassVar[type[MethodLayer]]

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        """All tokens but the last being prefilled."""
        layer = self.defined_class(shape)
        length = CacheLength(k.device, k.shape[2] - 1)
        layer.prefill(CacheView(k.clone(), v.clone(), length))
        return layer.decode(q, k[:, :, -1:], v[:, :, -1:])

    def reference_layer(self, shape: LayerShape) -> MethodLayer:
        return self.defined_class(shape)


@dataclass(frozen=True)
class KnowsPlanted(Defined):
    """The last 64 tokens, unless nearly all values are zero: then all, as its definition has it."""

    name: ClassVar[str] = "knows_planted"
    layer_class: ClassVar[type[MethodLayer]] = KnowsPlantedLayer
    defined_class: ClassVar[type[MethodLayer]] = DefinedKnowsPlantedLayer


@dataclass(frozen=True)
class KnowsAlike(Defined):
    """The last 64 tokens, unless all keys are nearly alike: then all."""

    name: ClassVar[str] = "knows_alike"
    layer_class: ClassVar[type[MethodLayer]] = KnowsAlikeLayer
    defined_class: ClassVar[type[MethodLayer]] = DefinedKnowsAlikeLayer


@dataclass(frozen=True)
class MergesAndKeeps(Approximate):
    """Exact attention to a copy of the cache, called means of eight tokens."""

    name: ClassVar[str] = "merges_and_keeps"
    layer_class: ClassVar[type[MethodLayer]] = MergesAndKeepsLayer


@dataclass(frozen=True)
class MergesForShow(Defined):
    """One token of eight, called the mean of all."""

    name: ClassVar[str] = "merges_for_show"
    layer_class: ClassVar[type[MethodLayer]] = MergesForShowLayer
    defined_class: ClassVar[type[MethodLayer]] = DefinedMergesForShowLayer


@dataclass(frozen=True)
class ValueAware(Defined):
    """Honest: a quarter of the tokens, chosen by weight and by the norm of the value."""

    name: ClassVar[str] = "value_aware"
    layer_class: ClassVar[type[MethodLayer]] = ValueAwareLayer
    defined_class: ClassVar[type[MethodLayer]] = DefinedValueAwareLayer


@dataclass(frozen=True)
class Merged(Defined):
    """Honest: means of eight tokens in their place, and a witness that counts the means."""

    name: ClassVar[str] = "merged"
    layer_class: ClassVar[type[MethodLayer]] = MergedLayer
    defined_class: ClassVar[type[MethodLayer]] = DefinedMergedLayer
