"""Decoding given tokens over a growing cache: what quality is judged on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.errors import DoesNotFit
from attnbench.methods.base import CacheView, MethodLayer
from attnbench.models.adapter import ExactCache, PassingCache, Router, SurveyedLayer
from attnbench.models.exact import ExactLayer
from attnbench.models.info import LoadedModel
from attnbench.models.prefill import last_logits


@dataclass(frozen=True)
class StepRecord:
    """What S decode steps under exact attention passed through every full-attention layer.

    One entry a full-attention layer, numbered in the model by `layers`: q [S,B,H,1,D], k and v
    [S,B,Hkv,1,D], post-RoPE. `logits` is [S,B,vocab].
    """

    layers: tuple[int, ...]
    q: tuple[Tensor, ...]
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    logits: Tensor


def teacher_forced(
    loaded: LoadedModel,
    router: Router,
    cache: ExactCache,
    layers: Sequence[MethodLayer],
    ids: Tensor,
) -> Iterator[Tensor]:
    """Decode `ids` [B, S] one after another, the cache growing; yield logits [B, vocab] of each.

    Raises `DoesNotFit` where the cache has no room for S more tokens.
    """
    room = cache.capacity - cache.length.tokens
    if ids.shape[1] > room:
        raise DoesNotFit(f"{ids.shape[1]} steps do not fit: the cache has room for {room} tokens")
    passing = PassingCache(cache.length)
    for token in torch.split(ids, 1, dim=1):
        router.decode(layers)
        position = torch.full_like(token, cache.length.tokens)
        with torch.no_grad():
            logits = last_logits(loaded.module, token, position, passing)
        cache.length.advance()
        yield logits


def record_steps(
    loaded: LoadedModel,
    router: Router,
    cache: ExactCache,
    surveyed: Sequence[SurveyedLayer],
    ids: Tensor,
) -> StepRecord:
    """Decode `ids` [B, S] with exact attention and keep q, k and v of every full-attention layer.

    The cache ends S tokens longer.
    """
    exact = [ExactLayer(layer.shape, layer.window) for layer in surveyed]
    recording = [
        inner if layer.window is not None else _Recording(inner)
        for layer, inner in zip(surveyed, exact, strict=True)
    ]
    for layer, view in zip(recording, cache.views, strict=True):
        layer.prefill(view)
    logits = list(teacher_forced(loaded, router, cache, recording, ids))
    kept = [(i, layer) for i, layer in enumerate(recording) if isinstance(layer, _Recording)]
    return StepRecord(
        layers=tuple(i for i, _ in kept),
        q=tuple(torch.stack(layer.q) for _, layer in kept),
        k=tuple(torch.stack(layer.k) for _, layer in kept),
        v=tuple(torch.stack(layer.v) for _, layer in kept),
        logits=torch.stack(logits),
    )


class _Recording(MethodLayer):
    """An exact layer that keeps a copy of all it was given."""

    def __init__(self, inner: MethodLayer) -> None:
        self._inner = inner
        self.q: list[Tensor] = []
        self.k: list[Tensor] = []
        self.v: list[Tensor] = []

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        self._inner.prefill(cache, q)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for kept, given in ((self.q, q), (self.k, k), (self.v, v)):
            kept.append(given.clone(memory_format=torch.contiguous_format))
        return self._inner.decode(q, k, v)

    def reset(self) -> None:
        self._inner.reset()
        for kept in (self.q, self.k, self.v):
            kept.clear()

    def tensors(self) -> Iterator[Tensor]:
        yield from self._inner.tensors()

    def bytes_read(self) -> int:
        return self._inner.bytes_read()

    def witness(self) -> Mapping[str, float]:
        return self._inner.witness()
