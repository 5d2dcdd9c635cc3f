"""Lower precision than declared.

Half the bytes are half the time, and a cosine of .999999 hides it. Each declares exact attention in
the dtype of the run and keeps or computes with a narrower one.

Cheats: `NarrowCopy`, `NarrowKeys` (values stay), `NarrowFar` (the newest 64 tokens stay: short
checks see nothing), `Int8Inside` (and a quarter of the memory),
`AutocastInside`. Honest: `WideInside`, `NarrowDeclared`,
`Int8Declared`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.methods.base import CacheView, LayerShape, MethodLayer
from attnbench.methods.reference import exact_attention
from tests.evil.common import Approximate, AttendingLayer, Exact

NEWEST = 64


def narrower(dtype: torch.dtype) -> torch.dtype:
    """Half of the bytes."""
    return torch.float16 if dtype is torch.float32 else torch.float8_e4m3fn


def int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and a scale for each row: [B,Hkv,N,D] -> int8 [B,Hkv,N,D], float32 [B,Hkv,N,1]."""
    scales = rows.abs().amax(-1, keepdim=True).float().clamp_min(1e-30) / 127
    return (rows / scales).round().to(torch.int8), scales


class NarrowCopyLayer(AttendingLayer):
    """Keeps narrow copies beside the exact cache and reads those; all of it is declared."""

    narrow_keys, narrow_values = True, True

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        super().prefill(cache, q)
        to = narrower(self.shape.dtype)
        self.k = cache.k.to(to) if self.narrow_keys else cache.k
        self.v = cache.v.to(to) if self.narrow_values else cache.v

    def rows(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        row = self.cache.length.tokens
        self.append(k, v)
        for copy, new in ((self.k, k), (self.v, v)):
            copy[:, :, row : row + 1] = new.to(copy.dtype)
        return self.k[:, :, : row + 1], self.v[:, :, : row + 1]

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (rows.to(q.dtype) for rows in self.rows(k, v))
        return self.attend(q, keys, values)

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        yield self.k
        yield self.v


class NarrowKeysLayer(NarrowCopyLayer):
    narrow_values = False


class NarrowFarLayer(NarrowCopyLayer):
    """The newest tokens weigh most and are few."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        narrow, exact = self.rows(k, v), (self.cache.k, self.cache.v)
        end = self.visible
        start = max(0, end - NEWEST)
        keys, values = (
            torch.cat((few[:, :, :start].to(q.dtype), all_[:, :, start:end]), dim=2)
            for few, all_ in zip(narrow, exact, strict=True)
        )
        return self.attend(q, keys, values)


class AutocastInsideLayer(AttendingLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = self.append(k, v)
        with torch.autocast(q.device.type, dtype=torch.bfloat16):
            return self.attend(q, *rows).to(q.dtype)


class WideInsideLayer(AttendingLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (rows.double() for rows in self.append(k, v))
        return self.attend(q.double(), keys, values).to(q.dtype)


class OwnCopyLayer(MethodLayer):
    """Rounds the cache as `rounded` says, keeps that and the length, and reads and declares it."""

    def __init__(self, shape: LayerShape) -> None:
        self.shape = shape

    def rounded(self, rows: Tensor) -> tuple[Tensor, ...]:
        return (rows.to(narrower(rows.dtype)),)

    def restored(self, kept: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return kept[0].to(dtype)

    def prefill(self, cache: CacheView, q: Tensor | None = None) -> None:
        self.length, self.prefilled = cache.length, cache.length.tokens
        self.k, self.v = self.rounded(cache.k), self.rounded(cache.v)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = self.length.tokens
        for kept, new in ((self.k, k), (self.v, v)):
            for part, fresh in zip(kept, self.rounded(new), strict=True):
                part[:, :, row : row + 1] = fresh
        keys, values = (
            self.restored(tuple(part[:, :, : row + 1] for part in kept), q.dtype)
            for kept in (self.k, self.v)
        )
        return AttendingLayer(self.shape).attend(q, keys, values)

    def reset(self) -> None:
        for part in self.tensors():
            part[:, :, self.prefilled :] = 0

    def tensors(self) -> Iterator[Tensor]:
        yield from (*self.k, *self.v)

    def bytes_read(self) -> int:
        rows = self.length.tokens + 1
        return sum(part[:, :, :rows].numel() * part.itemsize for part in self.tensors())

    def witness(self):
        return {"kept_share": 1.0}


class OwnInt8Layer(OwnCopyLayer):
    def rounded(self, rows: Tensor) -> tuple[Tensor, ...]:
        return int8(rows)

    def restored(self, kept: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return (kept[0].float() * kept[1]).to(dtype)


@dataclass(frozen=True)
class NarrowCopy(Exact):
    """Float16 copies in a float32 run, eight bits in a 16-bit one."""

    name: ClassVar[str] = "narrow_copy"
    layer_class: ClassVar[type[MethodLayer]] = NarrowCopyLayer


@dataclass(frozen=True)
class NarrowKeys(Exact):
    """Narrow keys, exact values: the error of the scores alone."""

    name: ClassVar[str] = "narrow_keys"
    layer_class: ClassVar[type[MethodLayer]] = NarrowKeysLayer


@dataclass(frozen=True)
class NarrowFar(Exact):
    """Narrow beyond the newest 64 tokens, exact where the context is shorter."""

    name: ClassVar[str] = "narrow_far"
    layer_class: ClassVar[type[MethodLayer]] = NarrowFarLayer


@dataclass(frozen=True)
class Int8Inside(Exact):
    """Eight bits a number, the exact cache gone, declared exact."""

    name: ClassVar[str] = "int8_inside"
    layer_class: ClassVar[type[MethodLayer]] = OwnInt8Layer


@dataclass(frozen=True)
class AutocastInside(Exact):
    """Autocast to bfloat16 for the call; in a bfloat16 run it changes nothing."""

    name: ClassVar[str] = "autocast_inside"
    layer_class: ClassVar[type[MethodLayer]] = AutocastInsideLayer


@dataclass(frozen=True)
class WideInside(Exact):
    """Honest: computes in float64 and rounds once."""

    name: ClassVar[str] = "wide_inside"
    layer_class: ClassVar[type[MethodLayer]] = WideInsideLayer


@dataclass(frozen=True)
class NarrowDeclared(Approximate):
    """Honest: half the bytes, lets the exact cache go, and is defined so."""

    name: ClassVar[str] = "narrow_declared"
    layer_class: ClassVar[type[MethodLayer]] = OwnCopyLayer

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        to = narrower(k.dtype)
        return exact_attention(q, k.to(to).to(k.dtype), v.to(to).to(v.dtype), shape.scale)


@dataclass(frozen=True)
class Int8Declared(Approximate):
    """Honest: eight bits a number, defined so, and nothing else kept."""

    name: ClassVar[str] = "int8_declared"
    layer_class: ClassVar[type[MethodLayer]] = OwnInt8Layer

    def reference(self, q: Tensor, k: Tensor, v: Tensor, shape: LayerShape) -> Tensor:
        keys, values = (codes.float() * scales for codes, scales in (int8(k), int8(v)))
        return exact_attention(q, keys, values, shape.scale)
