"""Upkeep that recurs so rarely that a visit hardly ever holds it, or never.

A cache of pages, clusters or codes has to be put in order as it grows. Who does that in every 64th
step pays in few of the timed ones; who does it in every 4096th, or when a page fills, pays in none,
as sessions run some hundreds of steps after a set-up, all at one length.

Cheats: `CompactsRarely` (in every so many steps; `every=4096` looks as cheap as doing nothing),
`CompactsFullPages` (by the length, at which it is never timed), `CompactsOnPaper` (declares the
period and has no `maintain`). Honest: `CompactsInTime`, by its steps and with `by=length`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from tests.evil.common import Approximate, AttendingLayer

CENTRES, PASSES = 16, 2


class CompactsRarelyLayer(AttendingLayer):
    """Exact attention; the keys are clustered anew in every so many steps."""

    def __init__(self, shape: LayerShape, every: int) -> None:
        super().__init__(shape)
        self.every, self.steps = every, 0

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        self.centres = cache.k[:, :, :CENTRES].clone()
        self.steps = 0

    def compact(self) -> None:
        """Lloyd's passes over all keys; the rarer, the more there is to do."""
        keys = self.cache.k[:, :, : self.prefilled]
        for _ in range(PASSES * max(1, self.every // 64)):
            nearest = torch.cdist(keys, self.centres).argmin(dim=-1, keepdim=True)
            ones = torch.zeros(*keys.shape[:3], CENTRES).scatter_(-1, nearest, 1.0)
            self.centres = ones.mT @ keys / ones.sum(dim=2).clamp_min(1)[..., None]

    def is_due(self) -> bool:
        return self.steps % self.every == 0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = super().decode(q, k, v)
        self.steps += 1
        if self.is_due():
            self.compact()
        return out

    def tensors(self):
        yield from super().tensors()
        yield self.centres


class CompactsFullPagesLayer(CompactsRarelyLayer):
    def is_due(self) -> bool:
        return self.visible % self.every == 0


class CompactsInTimeLayer(CompactsRarelyLayer):
    """In a generation a step that fills a page does it; where time is taken, `maintain`."""

    def is_due(self) -> bool:
        return False

    def maintain(self) -> None:
        self.compact()


class CompactsPagesInTimeLayer(CompactsFullPagesLayer):
    def maintain(self) -> None:
        self.compact()


@dataclass(frozen=True)
class CompactsRarely(Approximate):
    """Says nothing of a period."""

    every: int = 64

    name: ClassVar[str] = "compacts_rarely"
    layer_class: ClassVar[type[MethodLayer]] = CompactsRarelyLayer

    def layer(self, shape: LayerShape) -> MethodLayer:
        return self.layer_class(shape, self.every)


@dataclass(frozen=True)
class CompactsFullPages(CompactsRarely):
    """The same when a page is full: at a length that 64 divides."""

    name: ClassVar[str] = "compacts_full_pages"
    layer_class: ClassVar[type[MethodLayer]] = CompactsFullPagesLayer


@dataclass(frozen=True)
class CompactsOnPaper(CompactsFullPages):
    """Visits time whole periods of it, with nothing in them."""

    name: ClassVar[str] = "compacts_on_paper"

    @property
    def period(self) -> int:
        return self.every


@dataclass(frozen=True)
class CompactsInTime(CompactsRarely):
    """Honest: declares its period, and visits hold what it does in one."""

    by: Literal["steps", "length"] = "steps"

    name: ClassVar[str] = "compacts_in_time"

    @property
    def period(self) -> int:
        return self.every

    def layer(self, shape: LayerShape) -> MethodLayer:
        kind = CompactsInTimeLayer if self.by == "steps" else CompactsPagesInTimeLayer
        return kind(shape, self.every)
