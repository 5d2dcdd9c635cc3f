"""A result cached by pointer, by version, by input value, or from the last call.

Caching by identity is a common bug: buffers are reused and `data_ptr()` stays. Caching by value is
how a bench with few inputs, gone round and round, flatters whoever remembers.

Cheats: `ByPointer`, `ByVersion`, `ByValue` (right outputs: only unseen inputs or another cache
tell), `LastCall`, `SimilarQuery`. Honest: `KeepsViews`, `KeepsWorkspace`, `ChecksBeforeReuse`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from tests.evil.common import AttendingLayer, Exact, LastOutputLayer


class MemoLayer(AttendingLayer):
    """Remembers outputs by a key; a copy is handed out, and the memory is declared."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__(shape)
        self.memo: dict[Hashable, Tensor] = {}

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.memo.clear()

    def key(self, q: Tensor, k: Tensor) -> Hashable:
        raise NotImplementedError

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, key = self.append(k, v), self.key(q, k)
        if key not in self.memo:
            self.memo[key] = self.attend(q, *rows)
        return self.memo[key].clone()

    def tensors(self):
        yield from super().tensors()
        yield from self.memo.values()


class ByPointerLayer(MemoLayer):
    def key(self, q: Tensor, k: Tensor) -> Hashable:
        return q.data_ptr(), k.data_ptr(), self.cache.length.tokens


class ByVersionLayer(MemoLayer):
    """Writes its row through `.data`, which has a version counter of its own."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        row = self.cache.length.tokens
        self.cache.k.data[:, :, row : row + 1].copy_(k)
        self.cache.v.data[:, :, row : row + 1].copy_(v)
        return self.cache.k[:, :, : row + 1], self.cache.v[:, :, : row + 1]

    def key(self, q: Tensor, k: Tensor) -> Hashable:
        return self.cache.k._version, self.cache.v._version, self.cache.length.tokens


class ByValueLayer(MemoLayer):
    """Four numbers of the query and one of the key name a step well enough."""

    def key(self, q: Tensor, k: Tensor) -> Hashable:
        return (*q.flatten()[:4].tolist(), k.flatten()[0].item(), self.cache.length.tokens)


class LastCallLayer(LastOutputLayer):
    """Nothing to do where query and length are those of the call before."""

    before: tuple[Tensor, int] | None = None

    def works_now(self, q: Tensor) -> bool:
        now, before = self.cache.length.tokens, self.before
        same = before is not None and before[1] == now and self.alike(q, before[0])
        if not same:
            self.before = (q.clone(), now)
        return not same

    def alike(self, q: Tensor, before: Tensor) -> bool:
        return torch.equal(q, before)

    def tensors(self):
        yield from super().tensors()
        if self.before is not None:
            yield self.before[0]


class SimilarQueryLayer(LastCallLayer):
    """Queries of neighbouring tokens resemble each other."""

    def alike(self, q: Tensor, before: Tensor) -> bool:
        cosine = torch.nn.functional.cosine_similarity(q.flatten(), before.flatten(), dim=0)
        return bool(cosine > 0.5)


class KeepsViewsLayer(AttendingLayer):
    """Makes the views of the cache once a length: they show whatever lies there."""

    views: tuple[int, Tensor, Tensor] = (-1, torch.empty(0), torch.empty(0))

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = self.cache.length.tokens
        if self.views[0] != row or self.views[1].data_ptr() != self.cache.k.data_ptr():
            self.views = (row, self.cache.k[:, :, : row + 1], self.cache.v[:, :, : row + 1])
        _, keys, values = self.views
        keys[:, :, -1:].copy_(k)
        values[:, :, -1:].copy_(v)
        return self.attend(q, keys, values)


class KeepsWorkspaceLayer(AttendingLayer):
    """Attends by hand in a score buffer that is made once and declared."""

    scores: Tensor | None = None

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (keys, values), shape = self.append(k, v), self.shape
        size = (shape.batch, shape.kv_heads, shape.group, keys.shape[2])
        if self.scores is None or self.scores.shape != size:
            self.scores = q.new_empty(size)
        grouped = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.head_dim)
        torch.matmul(grouped * shape.scale, keys.mT, out=self.scores)
        return (self.scores.softmax(-1) @ values).reshape(q.shape)

    def tensors(self):
        yield from super().tensors()
        if self.scores is not None:
            yield self.scores


class ChecksBeforeReuseLayer(AttendingLayer):
    """Keeps the output where query, new row and every cached row are bit for bit the same."""

    known: tuple[Tensor, ...] = ()

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = self.append(k, v)
        now = (q, *rows)
        if len(self.known) == 0 or not all(map(torch.equal, now, self.known[:3])):
            self.known = (*(x.clone() for x in now), self.attend(q, *rows))
        return self.known[3].clone()

    def tensors(self):
        yield from super().tensors()
        yield from self.known


@dataclass(frozen=True)
class ByPointer(Exact):
    """The same addresses are the same step: true of every step of a bench with one input buffer."""

    name: ClassVar[str] = "by_pointer"
    layer_class: ClassVar[type[MethodLayer]] = ByPointerLayer


@dataclass(frozen=True)
class ByVersion(Exact):
    """The cache's version counters did not move, since its own writes go round them."""

    name: ClassVar[str] = "by_version"
    layer_class: ClassVar[type[MethodLayer]] = ByVersionLayer


@dataclass(frozen=True)
class ByValue(Exact):
    """A memo table: after one round through the bench's inputs every step is a look-up."""

    name: ClassVar[str] = "by_value"
    layer_class: ClassVar[type[MethodLayer]] = ByValueLayer


@dataclass(frozen=True)
class LastCall(Exact):
    """Gains wherever a bench repeats one query, whatever k and v are."""

    name: ClassVar[str] = "last_call"
    layer_class: ClassVar[type[MethodLayer]] = LastCallLayer


@dataclass(frozen=True)
class SimilarQuery(Exact):
    """Keeps the last output while the query's cosine to its own is above a half."""

    name: ClassVar[str] = "similar_query"
    layer_class: ClassVar[type[MethodLayer]] = SimilarQueryLayer


@dataclass(frozen=True)
class KeepsViews(Exact):
    """Honest: caches views, not values."""

    name: ClassVar[str] = "keeps_views"
    layer_class: ClassVar[type[MethodLayer]] = KeepsViewsLayer


@dataclass(frozen=True)
class KeepsWorkspace(Exact):
    """Honest: keeps a buffer by shape and fills it anew."""

    name: ClassVar[str] = "keeps_workspace"
    layer_class: ClassVar[type[MethodLayer]] = KeepsWorkspaceLayer


@dataclass(frozen=True)
class ChecksBeforeReuse(Exact):
    """Honest, if slow: reads all that the output depends on before it says that nothing changed."""

    name: ClassVar[str] = "checks_before_reuse"
    layer_class: ClassVar[type[MethodLayer]] = ChecksBeforeReuseLayer
